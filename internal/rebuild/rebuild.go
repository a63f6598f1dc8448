package rebuild

import (
	"maps"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// RowVersion is that of rows which this package reads.
	RowVersion = 1
	// retryTime is how long after a try those layouts of which something could not be
	// restored are tried again, the first time: one who repairs what he reads may have been
	// in the way. It doubles each time, up to retryTimeMax.
	retryTime    = 5 * time.Second
	retryTimeMax = 10 * time.Minute
)

// Row is the state of the rebuild.
type Row struct {
	Version int `json:"version"`
	// Whole has the incarnations in which spindles are whole.
	Whole map[id.Spindle]uint64 `json:"whole"`
	// Pass is the newest, nil before the first one.
	Pass *Pass `json:"pass,omitempty"`
}

// Pass restores what some spindles have lost.
type Pass struct {
	Began time.Time  `json:"began"`
	Ended *time.Time `json:"ended,omitempty"` // nil while it goes on
	// Spindles are being restored in these incarnations, Restored are those that were.
	Spindles map[id.Spindle]uint64 `json:"spindles"`
	Restored []id.Spindle          `json:"restored,omitempty"`
	// Left are the layouts to be gone through, Failed those of which something could
	// not be restored, at Tried, while the spindles Away did not serve. Tries counts how
	// often those were tried again since something changed.
	Left   Bits         `json:"left,omitempty"`
	Failed Bits         `json:"failed,omitempty"`
	Tried  time.Time    `json:"tried"`
	Tries  int          `json:"tries,omitempty"`
	Away   []id.Spindle `json:"away,omitempty"`
	// Fragments and Bytes (of their data) were restored; FragmentsLeft and BytesLeft
	// are to be, as they were last counted.
	Fragments     int64 `json:"fragments"`
	Bytes         int64 `json:"bytes"`
	FragmentsLeft int64 `json:"fragments_left"`
	BytesLeft     int64 `json:"bytes_left"`
	// Lost are segments that cannot be restored as things are, of those some;
	// LostSegments counts all, by layout.
	Lost         []Lost              `json:"lost,omitempty"`
	LostSegments map[id.Layout]int64 `json:"lost_segments,omitempty"`
	// Hosts have, or had, a part in it: by name.
	Hosts map[string]*Part `json:"hosts,omitempty"`
}

// Lost is a segment of which something cannot be restored.
type Lost struct {
	Segment id.Segment `json:"segment"`
	// What says it with fragments, spindles and bytes, Disks which disks need it.
	What  string    `json:"what"`
	Disks []id.Disk `json:"disks,omitempty"`
	// Final: all its spindles answered, so that nothing is to be hoped for.
	Final bool `json:"final"`
}

// Serving are the incarnations of the spindles that serve.
type Serving map[id.Spindle]uint64

// ServingOf returns those of a node's spindles that serve and whose incarnation is
// known.
func ServingOf(spindles []datanode.SpindleStatus) Serving {
	out := make(Serving)
	for _, s := range spindles {
		if s.State == datanode.SpindleOK && s.Incarnation != 0 {
			out[s.Spindle] = s.Incarnation
		}
	}
	return out
}

// Look compares the spindles that serve with the row and reports whether it has changed.
// The first time all that serve are taken for whole: the pool is new, or of a program that
// knew no incarnations.
func (r *Row) Look(now time.Time, l *stripe.Layouts, serving Serving) (changed bool) {
	if r.Whole == nil {
		if len(serving) == 0 {
			return false
		}
		r.Version, r.Whole = RowVersion, maps.Clone(serving)
		return true
	}
	for _, s := range l.Spindles() {
		incarnation := serving[s]
		if incarnation != 0 && r.Whole[s] == 0 && cameLater(l, s) {
			r.Whole[s] = incarnation
			changed = true
		}
		if incarnation != 0 && r.Whole[s] == incarnation && r.Running() && r.Pass.Spindles[s] != 0 {
			delete(r.Pass.Spindles, s) // it is the one before after all
			r.finish(now, l)
			changed = true
		}
		if incarnation == 0 || r.Whole[s] == incarnation || r.Running() && r.Pass.Spindles[s] == incarnation {
			continue
		}
		if !r.Running() {
			r.Pass = &Pass{Began: now, Spindles: make(map[id.Spindle]uint64)}
		}
		r.Pass.add(l, s, incarnation)
		changed = true
	}
	return r.retry(now, l, serving) || changed
}

// cameLater reports whether a spindle is of a node that has come to the pool since new
// segments last began to use other layouts, or is about to: nothing was written to it before
// it served.
func cameLater(l *stripe.Layouts, s id.Spindle) bool {
	retired, used := false, false
	for n, list := range l.Lists {
		has := slices.Contains(list, s)
		switch l.Kind(id.Layout(n)) {
		case stripe.Old, stripe.OldSpare, stripe.Leaving:
			if retired = true; has {
				return false
			}
		case stripe.Usual, stripe.Spare:
			used = used || has
		}
	}
	return retired || !used
}

// Running reports whether there is a pass that goes on.
func (r *Row) Running() bool { return r.Pass != nil && r.Pass.Ended == nil }

// add makes a spindle one that is restored.
func (p *Pass) add(l *stripe.Layouts, s id.Spindle, incarnation uint64) {
	p.Spindles[s], p.Tries = incarnation, 0
	p.Restored = slices.DeleteFunc(p.Restored, func(o id.Spindle) bool { return o == s })
	for n, list := range l.Lists {
		if slices.Contains(list, s) {
			p.Left.set(id.Layout(n))
			p.forget(id.Layout(n))
		}
	}
}

// forget makes a layout one that has not failed.
func (p *Pass) forget(l id.Layout) {
	p.Failed.clear(l)
	p.Lost = slices.DeleteFunc(p.Lost, func(lost Lost) bool { return lost.Segment.Layout() == l })
	delete(p.LostSegments, l)
}

// LostCount returns how many segments cannot be restored as things are.
func (p *Pass) LostCount() (n int64) {
	for _, c := range p.LostSegments {
		n += c
	}
	return n
}

// retry has what failed tried again if there is reason to.
func (r *Row) retry(now time.Time, l *stripe.Layouts, serving Serving) bool {
	if !r.Running() || r.Pass.Failed.count() == 0 {
		return false
	}
	p := r.Pass
	back := slices.ContainsFunc(p.Away, func(s id.Spindle) bool { return serving[s] != 0 })
	if !back && (r.some(l, serving) || now.Sub(p.Tried) < p.retryTime()) {
		return false
	}
	if p.Tries++; back {
		p.Tries = 0
	}
	for n := range l.Lists {
		if l := id.Layout(n); p.Failed.has(l) {
			p.Left.set(l)
			p.forget(l)
		}
	}
	p.Away = nil
	return true
}

// retryTime returns how long to wait after the newest try.
func (p *Pass) retryTime() time.Duration {
	if wait := retryTime << max(0, min(p.Tries, 16)); wait < retryTimeMax {
		return wait
	}
	return retryTimeMax
}

// Busy reports whether there is something to restore that serves.
func (r *Row) Busy(l *stripe.Layouts, serving Serving) bool {
	for _, s := range l.Spindles() {
		if now := serving[s]; r.Whole != nil && now != 0 && now != r.Whole[s] && !(r.Running() && r.Pass.Spindles[s] == now) {
			return true // it has not been looked at yet
		}
	}
	return r.some(l, serving)
}

// some reports whether there is a layout that could be gone through now.
func (r *Row) some(l *stripe.Layouts, serving Serving) bool {
	return len(r.next(l, serving, 1, func(id.Layout) bool { return false })) > 0
}

// next returns layouts that could be gone through now, limit at most: of all that are left and
// not skipped, those first that have lost most of their fragments.
func (r *Row) next(l *stripe.Layouts, serving Serving, limit int, skip func(id.Layout) bool) (out []id.Layout) {
	if !r.Running() || limit <= 0 {
		return nil
	}
	is := func(s id.Spindle) bool { return r.target(s, serving) }
	most := min(r.lostMax(serving), l.Geometry.Width())
	byLost := make([][]id.Layout, most+1)
	for n, list := range l.Lists {
		layout := id.Layout(n)
		if !r.Pass.Left.has(layout) || !slices.ContainsFunc(list, is) || skip(layout) {
			continue
		}
		if lost := min(r.lost(list, serving), most); len(byLost[lost]) < limit {
			byLost[lost] = append(byLost[lost], layout)
		}
		if len(byLost[most]) == limit {
			break // none can have lost more
		}
	}
	for _, some := range slices.Backward(byLost) {
		out = append(out, some[:min(len(some), limit-len(out))]...)
	}
	return out
}

// target reports whether a spindle is to be restored, and serves.
func (r *Row) target(s id.Spindle, serving Serving) bool {
	incarnation, is := r.Pass.Spindles[s]
	return is && serving[s] == incarnation
}

// lost counts the spindles of a list that have lost something or do not serve.
func (r *Row) lost(list []id.Spindle, serving Serving) (n int) {
	for _, s := range list {
		if _, restored := r.Pass.Spindles[s]; restored || serving[s] == 0 {
			n++
		}
	}
	return n
}

// lostMax is how many fragments of a list may be lost.
func (r *Row) lostMax(serving Serving) int {
	lost := len(r.Pass.Spindles)
	for s := range r.Whole {
		if _, restored := r.Pass.Spindles[s]; !restored && serving[s] == 0 {
			lost++
		}
	}
	return lost
}

// Waits returns the spindles for which a pass waits that has nothing else to do.
func (r *Row) Waits(l *stripe.Layouts, serving Serving) (out []id.Spindle) {
	if r.some(l, serving) || !r.Running() {
		return nil
	}
	out = slices.Clone(r.Pass.Away)
	for s, incarnation := range r.Pass.Spindles {
		if serving[s] != incarnation && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// Clone returns a copy that shares nothing.
func (p *Pass) Clone() *Pass {
	if p == nil {
		return nil
	}
	out := *p
	out.Spindles, out.Restored = maps.Clone(p.Spindles), slices.Clone(p.Restored)
	out.Left, out.Failed = slices.Clone(p.Left), slices.Clone(p.Failed)
	out.Away, out.Lost, out.LostSegments = slices.Clone(p.Away), slices.Clone(p.Lost), maps.Clone(p.LostSegments)
	out.Hosts = nil
	for name, part := range p.Hosts {
		if out.Hosts == nil {
			out.Hosts = make(map[string]*Part, len(p.Hosts))
		}
		has := *part
		out.Hosts[name] = &has
	}
	return &out
}
