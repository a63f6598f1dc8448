package sim

import (
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// sameSnapshot compares a snapshot with what its disk said at its mark.
func (w *world) sameSnapshot(d id.Disk, s id.Snapshot, at *[blocks]entry) {
	want, known := w.truth[d].snaps[s]
	for b, e := range at {
		if !known || e.tag != want[b] {
			w.fail("snapshot %d of disk %d has %d in block %d, want %d", s, d, e.tag, b, want[b])
			return
		}
	}
}

// missing tells whether the index has no such chunk.
func (w *world) missing(e entry) bool {
	if e.fp == 0 {
		return false
	}
	s := w.index.find(e.segment)
	return s == nil || e.slot >= len(s.fps) || s.fps[e.slot] != e.fp
}

// whole tests that the chunks of a map are there: those of the disk, and of the
// snapshots that exist.
func (w *world) whole(d id.Disk, m *mapState) {
	if w.truth[d].removed {
		return
	}
	for b, e := range m.head {
		if w.missing(e) {
			w.fail("block %d of disk %d is in segment %d, slot %d, which has not got it", b, d, e.segment, e.slot)
		}
	}
	exists := w.reg.exists(d)
	for i := range m.snaps {
		s := &m.snaps[i]
		if !exists[s.snap] {
			continue
		}
		w.sameSnapshot(d, s.snap, &s.at)
		for b, e := range s.at {
			if w.missing(e) {
				w.fail("block %d of snapshot %d of disk %d is in segment %d, slot %d, which has not got it", b, s.snap, d, e.segment, e.slot)
			}
		}
	}
}

// freed is told what was deleted: no durable root may reach it, and no map that is
// served. A root is the checkpoint that the registry names, with the results after it.
func (w *world) freed([]id.Segment) {
	for n := range w.reg.disks {
		d := id.Disk(n)
		if !w.reg.disks[d].there || w.reg.disks[d].removed {
			continue
		}
		if m := w.durable(d); m != nil {
			w.whole(d, m)
		}
	}
	for _, h := range w.hosts {
		for _, k := range h.disks {
			if k != nil && !k.closed && k.serves && h.machine.MayReply(k.d, k.epoch, h.clock()) {
				w.whole(k.d, k.m)
			}
		}
	}
}

// durable returns a disk's map as its durable roots say it.
func (w *world) durable(d id.Disk) *mapState {
	m, c := &mapState{}, w.reg.ckpts[d]
	if c.at != 0 {
		s := w.index.find(c.object)
		if s == nil {
			w.fail("the checkpoint of disk %d, segment %d, is deleted", d, c.object)
			return nil
		}
		if m = s.ckpt.clone(); c.cloneOf != 0 {
			at := m.snap(c.cloneOf)
			if at == nil {
				w.fail("disk %d is a clone of snapshot %d, which its checkpoint has not", d, c.cloneOf)
				return nil
			}
			m = &mapState{head: *at}
		}
	}
	for _, r := range w.truth[d].acked[datanode.Results] {
		if r.pos > m.result {
			m.apply(r)
		}
	}
	return m
}

const settleMax = 2 * time.Minute

// settle brings the pool to rest and looks at all of it: every disk is served and says
// what was written, and lists are what is needed.
func (w *world) settle() {
	for _, h := range w.hosts {
		h.crash() // what nobody knows any more is found out
	}
	h, done := w.hosts[0], false
	h.spawn(nil, func(t *task) {
		for d := range w.reg.disks {
			if w.reg.disks[d].there && !w.reg.disks[d].removed {
				h.step(owner.Want{Disk: id.Disk(d)})
			}
		}
		// What moved is followed, then saved, then given up, then deleted.
		for calm := 0; calm < 3; {
			condemned := w.count.Condemned
			left := slices.ContainsFunc(w.reg.disks[:], func(r diskRow) bool { return r.removed || r.base != 0 })
			w.quiet(t, h)
			if calm++; w.count.Condemned > condemned || left {
				calm = 0
				t.sleep(leaseTTL / 4)
			}
		}
		done = true
	})
	w.run(w.Now+settleMax, func() bool { return done })
	if w.wrong != nil {
		return
	}
	if !done {
		w.fail("the pool does not come to rest")
		return
	}
	w.atRest(h)
}

// quiet waits until all disks are served, has all done that is left to do, and reclaims.
func (w *world) quiet(t *task, h *host) {
	_ = h.inherit(t)
	for d := id.Disk(1); d <= disksMax; d++ {
		if !w.reg.disks[d].there || w.reg.disks[d].removed {
			continue
		}
		for {
			k := h.disks[d]
			if k == nil || !k.mayReply() {
				t.sleep(100 * time.Millisecond)
				continue
			}
			var err error
			for err == nil && k.layers[0].through > k.m.through {
				err = k.destage(t)
			}
			if err == nil {
				err = k.checkpoint(t)
			}
			if err == nil {
				err = k.pass(t)
			}
			if err == nil || len(k.holds) > 0 {
				break
			}
			t.sleep(100 * time.Millisecond)
		}
	}
	_ = h.reclaim(t)
	_ = h.cycle(t)
}

// atRest looks at a pool in which nothing happens.
func (w *world) atRest(h *host) {
	needed := make(map[id.Segment]*[disksMax + 2]uint32)
	need := func(d id.Disk, s id.Segment, slot int) {
		if needed[s] == nil {
			needed[s] = new([disksMax + 2]uint32)
		}
		needed[s][d] |= 1 << slot
	}
	for d := id.Disk(1); d <= disksMax; d++ {
		if !w.reg.disks[d].there {
			continue
		}
		k := h.disks[d]
		if k == nil || !k.mayReply() {
			w.fail("nobody serves disk %d", d)
			return
		}
		for b := range blocks {
			if got := k.read(b).tag; got != w.truth[d].now[b] {
				w.fail("block %d of disk %d reads as %d, and %d was written", b, d, got, w.truth[d].now[b])
			}
		}
		for s, of := range w.reg.snaps {
			if of == d && k.m.snap(s) == nil {
				w.fail("snapshot %d of disk %d is not in the map", s, d)
			}
		}
		w.whole(d, k.m)
		need(d, k.ckpt.object, 0)
		versions := [][blocks]entry{k.m.head}
		for i := range k.m.snaps {
			versions = append(versions, k.m.snaps[i].at)
		}
		for _, v := range versions {
			for _, e := range v {
				if e.fp != 0 {
					need(d, e.segment, e.slot)
				}
			}
		}
	}
	for _, s := range w.index.segs {
		n := needed[s.number]
		if n == nil {
			n = new([disksMax + 2]uint32)
		}
		for d := range s.lists {
			if held := s.heldBy(id.Disk(d)); held != n[d] && !w.truthRemoved(id.Disk(d)) {
				w.fail("disk %d holds slots %b of segment %d (%d), and needs %b", d, held, s.number, s.state, n[d])
			}
		}
	}
}

// truthRemoved: what a former owner publishes late for a disk that is removed stays until
// the index is rebuilt.
func (w *world) truthRemoved(d id.Disk) bool { return d < moverDisk && w.truth[d].removed }
