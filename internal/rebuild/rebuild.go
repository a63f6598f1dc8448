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
	// lostNamedMax bounds the segments that a pass names.
	lostNamedMax = 64
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
	if _, _, ok := r.Next(l, serving); !back && (ok || now.Sub(p.Tried) < p.retryTime()) {
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
	_, _, ok := r.Next(l, serving)
	return ok
}

// Next returns the layout to go through next, and those of its spindles that are to be
// restored: of all that are left the one that has lost most of its fragments.
func (r *Row) Next(l *stripe.Layouts, serving Serving) (layout id.Layout, targets []id.Spindle, ok bool) {
	if !r.Running() {
		return 0, nil, false
	}
	var back []id.Spindle // to be restored, and serves
	for s, incarnation := range r.Pass.Spindles {
		if serving[s] == incarnation {
			back = append(back, s)
		}
	}
	is := func(s id.Spindle) bool { return slices.Contains(back, s) }
	most, limit := 0, r.lostMax(serving)
	for n, list := range l.Lists {
		if !r.Pass.Left.has(id.Layout(n)) || !slices.ContainsFunc(list, is) {
			continue
		}
		lost := 0
		for _, s := range list {
			if _, restored := r.Pass.Spindles[s]; restored || serving[s] == 0 {
				lost++
			}
		}
		if lost > most {
			if layout, most = id.Layout(n), lost; most >= limit {
				break // none can have lost more
			}
		}
	}
	if most > 0 {
		targets = slices.DeleteFunc(slices.Clone(l.Lists[layout]), func(s id.Spindle) bool { return !is(s) })
	}
	return layout, targets, most > 0
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

// Outcome is what came of going through a layout.
type Outcome struct {
	// Again: something was not restored that may be later (it could not be written, or
	// spindles that do not serve have what it takes).
	Again bool
	// Lost are segments of which something could not be computed.
	Lost []Lost
}

// Done takes note of a layout that was gone through for the targets of Next. Serving
// are the spindles as they are after it.
func (r *Row) Done(now time.Time, l *stripe.Layouts, layout id.Layout, targets []id.Spindle, serving Serving, o Outcome) {
	if !r.Running() || !r.Pass.Left.has(layout) {
		return
	}
	p := r.Pass
	var away []id.Spindle
	for _, s := range l.Lists[layout] {
		if serving[s] == 0 {
			away = append(away, s)
		}
		_, restored := p.Spindles[s]
		o.Again = o.Again || restored && (serving[s] != p.Spindles[s] || !slices.Contains(targets, s))
	}
	p.Left.clear(layout)
	p.forget(layout)
	for _, lost := range o.Lost {
		o.Again = o.Again || !lost.Final
		if len(p.Lost) < lostNamedMax {
			p.Lost = append(p.Lost, lost)
		}
	}
	if len(o.Lost) > 0 {
		if p.LostSegments == nil {
			p.LostSegments = make(map[id.Layout]int64)
		}
		p.LostSegments[layout] = int64(len(o.Lost))
	}
	if o.Again {
		p.Failed.set(layout)
		p.Tried = now
		for _, s := range away {
			if !slices.Contains(p.Away, s) {
				p.Away = append(p.Away, s)
			}
		}
	}
	r.finish(now, l)
}

// finish calls those spindles whole of which no layout is left, and ends the pass if
// that is true of all.
func (r *Row) finish(now time.Time, l *stripe.Layouts) {
	p := r.Pass
	open := make(map[id.Spindle]bool)
	for n, list := range l.Lists {
		if len(open) == len(p.Spindles) {
			break
		}
		if p.Left.has(id.Layout(n)) || p.Failed.has(id.Layout(n)) {
			for _, s := range list {
				if _, restored := p.Spindles[s]; restored {
					open[s] = true
				}
			}
		}
	}
	for _, s := range slices.Sorted(maps.Keys(p.Spindles)) {
		if !open[s] {
			r.Whole[s] = p.Spindles[s]
			delete(p.Spindles, s)
			p.Restored = append(p.Restored, s)
		}
	}
	if len(p.Spindles) == 0 {
		p.Ended, p.Left, p.Failed, p.Away = &now, nil, nil, nil
		p.FragmentsLeft, p.BytesLeft = 0, 0
	}
}

// Waits returns the spindles for which a pass waits that has nothing else to do.
func (r *Row) Waits(l *stripe.Layouts, serving Serving) (out []id.Spindle) {
	if _, _, ok := r.Next(l, serving); ok || !r.Running() {
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
	return &out
}
