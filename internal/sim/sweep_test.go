package sim

import (
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
	"plinth/internal/reclaim"
	"plinth/internal/stripe"
)

// sweep is what a host does for the pool: it deletes what nobody holds, empties
// segments, and lets go of what removed disks have left.
func (h *host) sweep(t *task) {
	for {
		t.sleep(h.w.Span(time.Second, 4*time.Second))
		switch {
		case h.w.rest || !h.machine.Valid(h.clock()):
		case h.w.Rand.IntN(2) == 0:
			_ = h.reclaim(t)
		default:
			_ = h.cycle(t)
			_ = h.inherit(t)
		}
	}
}

func (h *host) reclaim(t *task) error {
	x := h.w.index
	_, err := ask(t, x.at, false, func() (struct{}, error) {
		x.reclaim()
		return struct{}{}, nil
	})
	return err
}

// cycle empties segments as reclaim plans it: condemned first, read then, copied, known,
// and then recorded as moved in one step.
func (h *host) cycle(t *task) error {
	w, x := h.w, h.w.index
	e, err := ask(t, w.reg.at, true, func() (id.Epoch, error) { return w.reg.mover(), nil })
	if err != nil {
		return err
	}
	seq := uint64(0)
	release := func(all []id.Segment) error {
		var lists []listed
		for _, s := range all {
			lists = append(lists, listed{segment: s})
		}
		seq++
		seq := seq
		_, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.setLists(moverDisk, e, seq, lists) })
		return err
	}
	// What an earlier mover holds is of moves that did not end.
	left, err := ask(t, x.at, false, func() ([]id.Segment, error) {
		if err := x.fence(moverDisk, e); err != nil {
			return nil, err
		}
		return x.segmentsOf(moverDisk, e)
	})
	if err == nil && len(left) > 0 {
		err = release(left)
	}
	if err != nil {
		return err
	}
	usage, err := ask(t, x.at, true, func() ([]datanode.SegmentUse, error) { return x.usage(), nil })
	if err != nil {
		return err
	}
	plan := reclaim.Decide(&reclaim.State{
		Segments: usage, Geometry: stripe.Geometry{K: 2, M: 1}, Free: 1 << 40, Spare: 1 << 40, Low: 1 << 30, Full: true,
	})
	var numbers []id.Segment
	for _, c := range plan.Condemn {
		numbers = append(numbers, c.Segment)
	}
	if len(numbers) == 0 {
		return nil
	}
	condemned, err := ask(t, x.at, false, func() ([]*segment, error) { return x.condemn(e, numbers) })
	if err != nil {
		return err
	}
	for len(condemned) > 0 {
		n, err := h.pack(t, e, condemned, release)
		if err != nil {
			return err
		}
		condemned = condemned[n:]
	}
	return nil
}

// pack moves what is held of some sources into one target, and returns how many these
// are.
func (h *host) pack(t *task, e id.Epoch, sources []*segment, release func([]id.Segment) error) (int, error) {
	w, x := h.w, h.w.index
	w.segments++
	target := &segment{number: id.Segment(w.segments), state: datanode.StateLive}
	var all []forwarding
	some := 0
	for _, s := range sources {
		held := s.held()
		for _, m := range s.moves {
			held &^= 1 << m.slot
		}
		f := forwarding{from: s.number}
		for slot := range s.fps {
			if held>>slot&1 != 0 {
				f.moves = append(f.moves, move{slot, target.number, len(target.fps) + len(f.moves)})
			}
		}
		if len(target.fps)+len(f.moves) > slotsMax {
			break
		}
		for _, m := range f.moves {
			target.fps = append(target.fps, s.fps[m.slot])
		}
		all = append(all, f)
		some++
	}
	if len(target.fps) == 0 {
		return some, nil
	}
	target.births = []birth{{moverDisk, e, 1<<len(target.fps) - 1}}
	if _, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.publish(-1, target) }); err != nil {
		return 0, err
	}
	if _, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.forward(e, target.number, all) }); err != nil {
		return 0, err
	}
	return some, release([]id.Segment{target.number})
}

// inherit takes what removed disks have left, where nobody has it.
func (h *host) inherit(t *task) error {
	r := h.w.reg
	for d := id.Disk(1); d <= disksMax; d++ {
		if !r.disks[d].there || !r.disks[d].removed { // as a watch would tell
			continue
		}
		lease := h.machine.Lease()
		e, err := ask(t, r.at, true, func() (id.Epoch, error) { return r.inherit(h.name, lease, d) })
		if err == nil {
			err = h.release(t, d, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove ends a disk that is open here.
func (h *host) remove(t *task, k *disk) error {
	r, d := h.w.reg, k.d
	key := ownerKey{h.name, h.machine.Lease(), k.epoch}
	e, err := ask(t, r.at, true, func() (id.Epoch, error) { return r.remove(d, key) })
	if err != nil {
		return err
	}
	h.step(owner.Removed{Disk: d})
	h.close(d)
	return h.release(t, d, e)
}

// release gives up all that a removed disk holds; chunks that move meanwhile become
// held at their new places.
func (h *host) release(t *task, d id.Disk, e id.Epoch) error {
	x, r := h.w.index, h.w.reg
	for seq := uint64(1); ; seq++ {
		held, err := ask(t, x.at, false, func() ([]id.Segment, error) {
			if err := x.fence(d, e); err != nil {
				return nil, err
			}
			return x.segmentsOf(d, e)
		})
		if err != nil {
			return err
		}
		if len(held) == 0 {
			_, err := ask(t, r.at, true, func() (struct{}, error) { return struct{}{}, r.goneFor(d, e) })
			return err
		}
		var lists []listed
		for _, s := range held {
			lists = append(lists, listed{segment: s})
		}
		seq := seq
		if _, err := ask(t, x.at, false, func() (struct{}, error) { return struct{}{}, x.setLists(d, e, seq, lists) }); err != nil {
			return err
		}
	}
}
