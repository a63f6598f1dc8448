package rebuild

import (
	"maps"
	"slices"
	"time"

	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// LapseTime is how long a task may stand still before it is given to another host.
	LapseTime = time.Minute
	// restTime is how long a host that gave a task back is given none, the first time; it
	// doubles each time in a row, up to restTimeMax.
	restTime    = 10 * time.Second
	restTimeMax = time.Minute
	// partsMax bounds the hosts that a pass names.
	partsMax = 1024
)

// Part is a host's part in a pass.
type Part struct {
	// Layouts are under way.
	Layouts int `json:"layouts,omitempty"`
	// Fragments and Bytes (of their data) were restored.
	Fragments int64 `json:"fragments,omitempty"`
	Bytes     int64 `json:"bytes,omitempty"`
	// Of the host's row that began At so much is in these figures.
	At          time.Time `json:"at"`
	AtFragments int64     `json:"at_fragments,omitempty"`
	AtBytes     int64     `json:"at_bytes,omitempty"`
}

// Share is how a pass is shared, as its warden knows that: what each host was given, itself
// included. It is derived from the hosts' rows whenever there is another warden. What it has not
// given, or no more counts with, it takes out of the rows: so no result of it can come. It
// is not safe for concurrent use.
type Share struct{ hosts map[string]*hand }

// hand is what one host was given.
type hand struct {
	work *Work // its row as it is, or after Step as it shall be
	open map[uint64]progress
	// The host gets nothing before rests; failed counts how often it gave tasks back in a row.
	rests  time.Time
	failed int
}

// progress is when a task got on last.
type progress struct {
	steps int64
	at    time.Time
}

// NewShare returns one that knows of no host.
func NewShare() *Share { return &Share{make(map[string]*hand)} }

// See takes a host's row as it is. One that is new to this warden may have tasks of an earlier one's,
// which count. A row of another pass is none.
func (x *Share) See(now time.Time, r *Row, host string, w *Work) {
	if !r.Running() || !w.Pass.Equal(r.Pass.Began) {
		x.Gone(host)
		return
	}
	h := x.hosts[host]
	if h == nil || !h.work.Began.Equal(w.Began) {
		h = &hand{open: make(map[uint64]progress)}
		for _, t := range w.Tasks {
			h.open[t.Number] = progress{t.Steps, now}
		}
		x.hosts[host] = h
	}
	h.work = w.Clone()
	has := make(map[uint64]bool, len(w.Tasks))
	for _, t := range w.Tasks {
		has[t.Number] = true
		if p, ok := h.open[t.Number]; ok && t.Steps > p.steps {
			h.open[t.Number] = progress{t.Steps, now}
		}
	}
	maps.DeleteFunc(h.open, func(n uint64, _ progress) bool { return !has[n] })
}

// Gone takes note that a host has no row any more: what it was given others get.
func (x *Share) Gone(host string) { delete(x.hosts, host) }

// Work returns what a host's row shall be.
func (x *Share) Work(host string) *Work {
	if h := x.hosts[host]; h != nil {
		return h.work.Clone()
	}
	return nil
}

// View is how the warden sees the pool when it takes a step: after all results that it knows.
type View struct {
	Layouts *stripe.Layouts
	Serving Serving
	// Answers reports whether a spindle's data node does; nil: there is one, which does.
	Answers func(id.Spindle) bool
}

// Event is something that an operator may want to know of a step.
type Event struct {
	Host   string
	Layout id.Layout
	What   string
}

// Step takes note of what hosts have done, takes back what they shall not do any more and gives
// out layouts. The row has been compared with the view (Look). It returns the hosts whose rows are
// to be put, with Work: one whose row could not be is to be seen (See) as it is.
func (x *Share) Step(now time.Time, r *Row, v *View) (changed []string, events []Event) {
	names := slices.Sorted(maps.Keys(x.hosts))
	touched := make(map[string]bool)
	taken := make(map[id.Layout]bool)
	for _, name := range names {
		h := x.hosts[name]
		r.count(name, h.work)
		var keep []Task
		for _, t := range h.work.Tasks {
			why := x.settle(now, r, v, h, &t, taken)
			if why == "" {
				taken[t.Layout] = true
				keep = append(keep, t)
				continue
			}
			if why != through {
				events = append(events, Event{name, t.Layout, why})
			}
			delete(h.open, t.Number)
			touched[name] = true
		}
		h.work.Tasks = keep
	}
	for _, name := range x.give(now, r, v, names, taken) {
		touched[name] = true
	}
	r.parts(x)
	return slices.Sorted(maps.Keys(touched)), events
}

// through is of a task that has ended as it should.
const through = "gone through"

// settle takes note of what has become of a task, and returns why it ends, empty: it goes on.
func (x *Share) settle(now time.Time, r *Row, v *View, h *hand, t *Task, taken map[id.Layout]bool) string {
	p, open := h.open[t.Number]
	switch {
	case !open:
		return "it does not count any more"
	case taken[t.Layout]:
		return "another host has that layout"
	case !r.wants(v, t):
		return "other spindles are to be restored than when it was given out"
	case t.Outcome != nil:
		h.failed = 0
		r.Done(now, v.Layouts, t.Layout, t.Targets, v.Serving, *t.Outcome)
		return through
	case t.Error != "":
		if !now.Before(h.rests) { // or else it is one of several
			h.rests = now.Add(min(restTime<<min(h.failed, 16), restTimeMax))
			h.failed++
		}
		return t.Error
	case now.Sub(p.at) >= LapseTime:
		h.rests = now.Add(LapseTime)
		return "it stands still"
	}
	return ""
}

// wants reports whether a task is what would be given out now, but for spindles that do not serve
// at present.
func (r *Row) wants(v *View, t *Task) bool {
	if !r.Running() || int(t.Layout) >= len(v.Layouts.Lists) || !r.Pass.Left.has(t.Layout) {
		return false
	}
	list := v.Layouts.Lists[t.Layout]
	for s, incarnation := range t.Targets {
		if r.Pass.Spindles[s] != incarnation || !slices.Contains(list, s) {
			return false
		}
	}
	return !slices.ContainsFunc(list, func(s id.Spindle) bool { return r.target(s, v.Serving) && t.Targets[s] == 0 })
}

// give gives layouts to hosts, one after the other to that which has fewest, and returns who got
// any. Layouts that must wait are not given: they are as if gone through in vain.
func (x *Share) give(now time.Time, r *Row, v *View, names []string, taken map[id.Layout]bool) (got []string) {
	room := 0
	for _, name := range names {
		if h := x.hosts[name]; !now.Before(h.rests) {
			room += max(TasksMax-len(h.work.Tasks), 0)
		}
	}
	for room > 0 {
		layouts := r.next(v.Layouts, v.Serving, room, func(l id.Layout) bool { return taken[l] })
		if len(layouts) == 0 {
			return got
		}
		for _, l := range layouts {
			targets := r.targets(v, l)
			if MustWait(v, l, targets) {
				r.Done(now, v.Layouts, l, targets, v.Serving, Outcome{Again: true})
				continue
			}
			name := x.idlest(now, names)
			h := x.hosts[name]
			h.work.Given++
			h.work.Tasks = append(h.work.Tasks, Task{Number: h.work.Given, Layout: l, Targets: targets})
			h.open[h.work.Given] = progress{0, now}
			taken[l], got = true, append(got, name)
			room--
		}
	}
	return got
}

// idlest returns the host that gets the next layout. There is one.
func (x *Share) idlest(now time.Time, names []string) (best string) {
	for _, name := range names {
		h := x.hosts[name]
		if now.Before(h.rests) || len(h.work.Tasks) >= TasksMax {
			continue
		}
		if best == "" || len(h.work.Tasks) < len(x.hosts[best].work.Tasks) {
			best = name
		}
	}
	return best
}

// targets are the spindles of a layout that are to be restored, and serve.
func (r *Row) targets(v *View, l id.Layout) Serving {
	out := make(Serving)
	for _, s := range v.Layouts.Lists[l] {
		if r.target(s, v.Serving) {
			out[s] = v.Serving[s]
		}
	}
	return out
}

// MustWait reports whether nodes that do not answer have what it takes to restore targets of a
// layout: the segments' index, or fragments without which too few are left.
func MustWait(v *View, l id.Layout, targets Serving) bool {
	if v.Answers == nil {
		return false
	}
	list := v.Layouts.Lists[l]
	if !v.Answers(list[0]) {
		return true
	}
	silent, lost := 0, 0
	for _, s := range list {
		switch {
		case !v.Answers(s):
			silent++
		case v.Serving[s] == 0 || targets[s] != 0:
			lost++
		}
	}
	m := v.Layouts.Geometry.M
	return silent+lost > m && lost <= m
}

// count adds to the pass what a host has restored since it was counted last.
func (r *Row) count(host string, w *Work) {
	if !r.Running() {
		return
	}
	p := r.Pass
	part := p.part(host, w)
	if part == nil {
		return
	}
	fragments, bytes := max(w.Fragments-part.AtFragments, 0), max(w.Bytes-part.AtBytes, 0)
	part.AtFragments, part.AtBytes = w.Fragments, w.Bytes
	part.Fragments += fragments
	part.Bytes += bytes
	p.Fragments += fragments
	p.Bytes += bytes
	p.FragmentsLeft, p.BytesLeft = max(p.FragmentsLeft-fragments, 0), max(p.BytesLeft-bytes, 0)
}

// part returns a host's part, nil if it has done nothing and has nothing to do.
func (p *Pass) part(host string, w *Work) *Part {
	part := p.Hosts[host]
	if part == nil {
		if len(w.Tasks) == 0 && w.Fragments == 0 {
			return nil
		}
		p.makeRoom()
		part = &Part{At: w.Began}
		p.Hosts[host] = part
	}
	if !part.At.Equal(w.Began) {
		part.At, part.AtFragments, part.AtBytes = w.Began, 0, 0
	}
	return part
}

// makeRoom has room for one more host, if need be by one that has nothing to do.
func (p *Pass) makeRoom() {
	if p.Hosts == nil {
		p.Hosts = make(map[string]*Part)
	}
	for name, part := range p.Hosts {
		if len(p.Hosts) < partsMax {
			return
		}
		if part.Layouts == 0 {
			delete(p.Hosts, name)
		}
	}
}

// parts notes how many layouts each host has under way.
func (r *Row) parts(x *Share) {
	if r.Pass == nil {
		return
	}
	for _, part := range r.Pass.Hosts {
		part.Layouts = 0
	}
	if !r.Running() {
		return
	}
	for name, h := range x.hosts {
		if len(h.work.Tasks) == 0 {
			continue
		}
		if part := r.Pass.part(name, h.work); part != nil {
			part.Layouts = len(h.work.Tasks)
		}
	}
}

// Sharing returns how many hosts have layouts of the pass under way, at least 1: each has that
// part of the rate.
func (p *Pass) Sharing() int {
	n := 0
	if p != nil && p.Ended == nil {
		for _, part := range p.Hosts {
			if part.Layouts > 0 {
				n++
			}
		}
	}
	return max(n, 1)
}
