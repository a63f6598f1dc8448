package rebuild

import (
	"maps"
	"slices"
	"time"

	"plinth/internal/id"
	"plinth/internal/stripe"
)

const (
	// lostNamedMax bounds the segments that a pass names, taskLostMax those of one layout;
	// lostTextMax and lostDisksMax bound what is said of each, in bytes and disks.
	lostNamedMax = 64
	taskLostMax  = 8
	lostTextMax  = 512
	lostDisksMax = 32
)

// Outcome is what came of going through a layout.
type Outcome struct {
	// Again: something was not restored that may be later (it could not be written, or
	// spindles that do not serve have what it takes).
	Again bool `json:"again,omitempty"`
	// LostSegments counts the segments of which something could not be computed, Lost names
	// some of them.
	LostSegments int64  `json:"lost_segments,omitempty"`
	Lost         []Lost `json:"lost,omitempty"`
}

// Lose adds a segment of which something could not be computed.
func (o *Outcome) Lose(lost Lost) {
	o.LostSegments++
	o.Again = o.Again || !lost.Final
	if len(o.Lost) < taskLostMax {
		lost.What = lost.What[:min(len(lost.What), lostTextMax)]
		lost.Disks = lost.Disks[:min(len(lost.Disks), lostDisksMax)]
		o.Lost = append(o.Lost, lost)
	}
}

// Done takes note of a layout that was gone through for targets, in the incarnations that they
// had before. Serving are the spindles as they are after it.
func (r *Row) Done(now time.Time, l *stripe.Layouts, layout id.Layout, targets Serving, serving Serving, o Outcome) {
	if !r.Running() || !r.Pass.Left.has(layout) {
		return
	}
	p := r.Pass
	var away []id.Spindle
	for _, s := range l.Lists[layout] {
		if serving[s] == 0 {
			away = append(away, s)
		}
		incarnation, restored := p.Spindles[s]
		o.Again = o.Again || restored && (serving[s] != incarnation || targets[s] != incarnation)
	}
	p.Left.clear(layout)
	p.forget(layout)
	for _, lost := range o.Lost {
		if len(p.Lost) < lostNamedMax {
			p.Lost = append(p.Lost, lost)
		}
	}
	if o.LostSegments > 0 {
		if p.LostSegments == nil {
			p.LostSegments = make(map[id.Layout]int64)
		}
		p.LostSegments[layout] = o.LostSegments
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
