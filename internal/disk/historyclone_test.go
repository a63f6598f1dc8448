package disk

import (
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// clone makes a disk of a snapshot as a host does: hold, look, checkpoint if need
// be, record.
func (w *world) clone(s *subject) {
	snap := w.oneOf(s)
	if snap == 0 || len(w.disks) > 6 || s.under != nil {
		return
	}
	s.d.HoldLists()
	w.ok(w.round(s.d))
	value, ok, err := s.d.CloneRecord(w.Context(), snap)
	w.ok(err)
	if !ok {
		w.ok(s.d.Checkpoint(w.Context()))
		value, ok, err = s.d.CloneRecord(w.Context(), snap)
		w.ok(err)
		if !ok {
			w.Fatalf("snapshot %d of disk %d is in no checkpoint after one was made", snap, s.d.ID())
		}
	}
	w.record(w.nextDisk+1, value)
	w.create(s, snap)
}

// cloneAtOnce makes a clone that reads its base's snapshot until grow is called.
func (w *world) cloneAtOnce(s *subject) {
	snap := w.oneOf(s)
	if snap == 0 || len(w.disks) > 6 || s.under != nil {
		return
	}
	s.d.HoldLists()
	w.ok(w.round(s.d))
	under, err := s.d.At(w.Context(), snap)
	w.ok(err)
	w.under = under
	w.create(s, snap)
	w.under = nil
}

// grow ends that.
func (w *world) grow(s *subject) {
	w.Helper()
	if s.under == nil {
		return
	}
	w.recordUnder(s)
	w.ok(s.d.Independent(w.Context()))
	w.ok(s.under.Close())
	s.under = nil
}

// recordUnder records the checkpoint of a clone that has none.
func (w *world) recordUnder(s *subject) {
	w.Helper()
	base := s.base.d
	w.ok(base.Checkpoint(w.Context()))
	value, ok, err := base.CloneRecord(w.Context(), s.baseSnap)
	w.ok(err)
	if !ok {
		w.Fatal("a snapshot is in no checkpoint after one was made")
	}
	w.record(s.d.ID(), value)
}

func (w *world) record(n id.Disk, value []byte) {
	w.Helper()
	_, err := w.node.RegistryCommit(w.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: CheckpointKey(n), Value: value}}})
	w.ok(err)
}

// remove removes a disk; who is cloned from it keeps it for a while.
func (w *world) remove(s *subject) {
	if len(w.disks) < 3 {
		return
	}
	w.growAll(s)
	w.ok(s.d.Close())
	s.removed, s.snaps, s.now = true, nil, nil
	w.finish(s)
}

// finish gives up a removed disk that nobody begins with any more.
func (w *world) finish(s *subject) {
	if !s.removed {
		return
	}
	for _, o := range w.disks {
		if o.base == s {
			return
		}
	}
	n := s.d.ID()
	w.epochs[n]++
	_, err := w.node.Fence(w.Context(), &datanode.FenceRequest{Disk: n, Epoch: w.epochs[n]})
	w.ok(err)
	w.ok(Release(w.Context(), w.node, n, w.epochs[n]))
	delete(w.disks, n)
	if s.base != nil {
		s.base.d.ReleaseLists()
		w.finish(s.base)
	}
}

// takeOver gives a disk to another owner, sometimes after its calls only.
func (w *world) takeOver(s *subject) {
	if s.under != nil && w.rng.IntN(2) == 0 { // its owner dies before it is independent
		w.recordUnder(s)
		s.under = nil
	}
	w.growAll(s)
	old := s.d
	s.d = w.openDisk(old.ID(), s.born)
	w.ok(old.Close())
	w.holdAgain(s)
}

// growAll ends it for a disk and all that read it.
func (w *world) growAll(s *subject) {
	w.grow(s)
	for _, o := range w.disks {
		if o.base == s {
			w.grow(o)
		}
	}
}

// holdAgain holds a new owner's lists as the last one's were.
func (w *world) holdAgain(s *subject) {
	for _, o := range w.disks {
		if o.base == s {
			s.d.HoldLists()
		}
	}
}

// restart ends the session: all disks are opened by the next one.
func (w *world) restart() {
	w.pool, w.mover = w.session(), nil
	for _, n := range slices.Sorted(maps.Keys(w.disks)) {
		if s := w.disks[n]; !s.removed {
			w.takeOver(s)
		}
	}
}

// checkCheckpoint reads a snapshot as the newest checkpoint has it, if that has
// it: as a clone would.
func (w *world) checkCheckpoint(s *subject) {
	w.Helper()
	snap := w.oneOf(s)
	if snap == 0 || s.under != nil {
		return
	}
	value, ok, err := s.d.CloneRecord(w.Context(), snap)
	w.ok(err)
	if !ok {
		return
	}
	w.count["checkpoints read"]++
	const n = moverDisk + 1
	w.record(n, value)
	d := w.openDisk(n, 1)
	w.same(d, &content{data: s.snaps[snap]})
	w.ok(d.Close())
	w.ok(w.node.DropLog(w.Context(), &datanode.DropLogRequest{Disk: n, Epoch: d.Epoch()}))
}
