package disk

import (
	"bytes"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

const moverDisk = 1 << 20

// move empties some segments; who holds them follows in later passes.
func (w *world) move() {
	ctx := w.Context()
	defer func(in int) { w.hindrance.in = in }(w.hindrance.in) // it is the pass that is hindered
	w.hindrance.in = 0
	if w.mover == nil {
		w.epochs[moverDisk]++
		_, err := w.node.Fence(ctx, &datanode.FenceRequest{Disk: moverDisk, Epoch: w.epochs[moverDisk]})
		w.ok(err)
		w.mover = &reclaim.Mover{
			Index: w.node, Stripes: w.pool.Stripes, Opener: w.pool.Opener, Geometry: w.pool.Geometry, Number: w.pool.Number,
			Disk: moverDisk, Epoch: w.epochs[moverDisk],
		}
		w.ok(w.mover.Release(ctx))
	}
	use, err := w.node.Usage(ctx, &datanode.UsageRequest{})
	w.ok(err)
	var some []id.Segment
	for _, u := range use.Segments {
		if u.Kind == datanode.KindChunks && w.rng.IntN(3) == 0 {
			some = append(some, u.Segment)
		}
	}
	moved, err := w.mover.Move(ctx, some)
	w.ok(err)
	w.count["chunks moved"] += int(moved.Chunks)
	if len(moved.Damaged) > 0 {
		w.Fatalf("damaged: %v", moved.Damaged)
	}
}

// quiet lets everything that can be given up be given up, and tests that it was.
func (w *world) quiet() {
	w.Helper()
	ctx := w.Context()
	w.calm = true
	for range 3 { // clones, then their parents; then what those have moved
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(w.disks))) {
			s := w.disks[n]
			if s == nil || s.removed {
				continue
			}
			w.grow(s)
			w.ok(w.round(s.d))
			w.ok(s.d.Checkpoint(ctx))
			w.pass(s)
		}
	}
	w.ok(w.reclaim(ctx))
	if w.mover != nil {
		w.ok(w.mover.Release(ctx))
	}
	w.ok(w.reclaim(ctx))
	needed := map[id.Segment]bool{}
	for n, s := range w.disks {
		if s.base != nil || s.removed {
			w.Fatalf("disk %d: removed %v, still a clone of %v", n, s.removed, s.baseSnap)
		}
		w.exact(s, needed)
	}
	use, err := w.node.Usage(ctx, &datanode.UsageRequest{})
	w.ok(err)
	for _, u := range use.Segments {
		if !needed[u.Segment] || u.State != datanode.StateLive {
			w.Fatalf("after a quiet cycle segment %s, state %d, is left, held by %v", u.Segment, u.State, u.Disks)
		}
	}
}

// exact tests that a disk holds just what it needs, and notes that.
func (w *world) exact(s *subject, needed map[id.Segment]bool) {
	w.Helper()
	view, err := s.d.View(w.Context(), w.exists(s))
	w.ok(err)
	defer view.Close()
	want := map[id.Segment]bitmap{}
	w.ok(view.Each(w.Context(), 0, ^id.Segment(0), func(n *Need) error {
		want[n.Entry.Ref.Segment] = want[n.Entry.Ref.Segment].set(n.Entry.Ref.Slot)
		needed[n.Entry.Ref.Segment] = true
		return nil
	}))
	held, err := s.d.heldSegments(w.Context())
	w.ok(err)
	for _, h := range held {
		what, err := w.node.DescribeSegments(w.Context(), &datanode.DescribeSegmentsRequest{Segments: []id.Segment{h}, Slots: true})
		w.ok(err)
		i := slices.IndexFunc(what.Segments[0].Lists, func(l datanode.DiskList) bool { return l.Disk == s.d.ID() })
		// Pebble merges tables when it likes: objects may have gone since the pass.
		if got := bitmap(what.Segments[0].Lists[i].Bits); what.Segments[0].Kind == datanode.KindChunks && !bytes.Equal(got, want[h]) {
			w.Fatalf("disk %d holds %x of segment %s and needs %x", s.d.ID(), got, h, want[h])
		}
		needed[h] = true
		delete(want, h)
	}
	if len(want) > 0 {
		w.Fatalf("disk %d does not hold %d segments that it needs", s.d.ID(), len(want))
	}
}

// check reads all that exists.
func (w *world) check() {
	w.Helper()
	for _, n := range slices.Sorted(maps.Keys(w.disks)) {
		s := w.disks[n]
		if s.removed {
			continue
		}
		w.same(s.d, &content{data: s.now})
		for _, snap := range slices.Sorted(maps.Keys(s.snaps)) {
			if !s.d.Marked(snap) {
				w.Fatalf("disk %d has lost snapshot %d", n, snap)
			}
			if s.under != nil {
				continue
			}
			if _, err := s.d.m.At(snap); err != nil { // only in the log
				w.ok(w.round(s.d))
			}
			w.shows(s.d, snap, s.snaps[snap])
		}
		w.checkCheckpoint(s)
	}
}
