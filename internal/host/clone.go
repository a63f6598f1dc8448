package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

// cloneState is a clone whose base still holds what it needs.
type cloneState struct {
	base CloneBase
	held *disk.Disk // whose lists are held for it; nil: that disk is not open
	made time.Time  // zero: in an earlier life
	// revision is its record's, as it was learned; 0: nobody knows.
	revision uint64
	// grown is closed when the clone reads its base no more; nil: it never did.
	grown chan struct{}
}

// Clone makes a new disk whose content is the snapshot's. Its first map is the
// parent's newest checkpoint, seen as the snapshot; as long as no checkpoint has
// the snapshot, it reads the parent's. It is independent from its first write on;
// the parent and its snapshots may be removed at once. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInvalid, ErrExists.
//
// What the clone needs, the parent's lists hold until the clone's first pass has
// stated it. So they are held before the parent's checkpoint is read: a pass
// clears a bit only after a checkpoint was recorded that does not need it, so
// that what is read needs nothing that was cleared before. A disk with a base
// in the catalog has its base's lists held before any pass of a later life.
func (h *Host) Clone(ctx context.Context, parent, snapshot, name string) (*DiskInfo, error) {
	if err := validateName(name); err != nil {
		return nil, err
	}
	began := time.Now()
	e, used, err := h.use(parent, snapshot)
	if err != nil {
		return nil, err
	}
	defer h.unuse(used)
	s := used[0]
	// A round may take a while: nobody else's change waits for it.
	if err := e.disk.Await(ctx, s.rec.ID); err != nil {
		return nil, fmt.Errorf("disk %q, snapshot %q: %w", parent, snapshot, err)
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx)
	e.disk.HoldLists()
	rec, lease, ok, err := h.addClone(ctx, e, s, name, began)
	if err != nil {
		return nil, fmt.Errorf("clone snapshot %q of disk %q: %w", snapshot, parent, err)
	}
	c, err := h.openClone(ctx, e, *rec, lease, ok)
	if err != nil {
		return nil, err
	}
	return h.info(c), nil
}

// openClone opens a new clone, and has it grow if it has no checkpoint.
func (h *Host) openClone(ctx context.Context, parent *export, rec DiskRecord, lease datanode.LeaseID, checkpoint bool) (*export, error) {
	var image *disk.Image
	if !checkpoint {
		var err error
		if image, err = parent.disk.At(ctx, rec.Base.Snapshot); err != nil {
			h.log.Warn("a clone waits for its parent's checkpoint", "disk", rec.Name, "err", err)
		}
	}
	c, err := h.born(ctx, rec, lease, image)
	if image == nil {
		return c, err
	}
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	grown := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clones[rec.ID].grown = grown
	h.work.Add(1)
	go h.growLoop(parent, c, image, grown)
	return c, nil
}

// addClone records a clone, with a checkpoint if one of the parent's has the
// snapshot. The parent's lists are held; they stay so for the clone.
func (h *Host) addClone(ctx context.Context, e *export, s *snapshot, name string, began time.Time) (rec *DiskRecord, lease datanode.LeaseID, ok bool, err error) {
	h.mu.Lock()
	snapName, revision := s.name, s.revision
	h.mu.Unlock()
	rec = &DiskRecord{
		Name: name, Bytes: s.rec.Bytes, Chunk: e.rec.Chunk, Cipher: e.rec.Cipher, Stable: e.rec.Stable,
		Created: time.Now().UTC().Truncate(time.Second), Base: &CloneBase{e.rec.ID, s.rec.ID},
	}
	value, ok, err := e.disk.CloneRecord(ctx, s.rec.ID)
	if err != nil {
		e.disk.ReleaseLists()
		return nil, 0, false, err
	}
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	err = h.catalog.addDisk(ctx, rec, func(clone id.Disk) (*datanode.RegistryTxn, error) {
		owned, err := h.owning.putOwner(clone, firstEpoch)
		lease = owned.Lease
		txn := &datanode.RegistryTxn{
			Puts: []datanode.Put{owned},
			// The parent is still ours, and so what was read is its newest checkpoint.
			Guards:   []datanode.Guard{{Disk: e.rec.ID, Epoch: e.disk.Epoch()}},
			Compares: []datanode.Compare{{Key: snapKey(e.rec.ID, snapName), Revision: revision}, {Key: disk.CheckpointKey(clone)}},
		}
		if ok {
			txn.Puts = append(txn.Puts, datanode.Put{Key: disk.CheckpointKey(clone), Value: value})
		}
		return txn, err
	})
	if err != nil && !errors.Is(err, errDoubt) {
		e.disk.ReleaseLists()
		return nil, 0, false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropClone(rec.ID)
	// One that may be there counts as one that is: its parent, if it is removed in
	// this life, is not given up.
	h.clones[rec.ID] = &cloneState{base: *rec.Base, held: e.disk, made: began, revision: rec.revision}
	return rec, lease, ok, err
}

// undoubted notes that a number is a new disk's, and so not that of a clone of
// which it was not known whether it is there.
func (h *Host) undoubted(d id.Disk) {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropClone(d)
}

// dependents counts the clones that rely on what a disk's lists hold.
func (h *Host) dependents(d id.Disk) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.clones {
		if c.base.Disk == d {
			n++
		}
	}
	return n
}

// holders returns the disks whose lists hold what a disk needs: itself, and while
// it relies on its base, that one's.
func (h *Host) holders(d id.Disk) []id.Disk {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []id.Disk{d}
	for c := h.clones[d]; c != nil; c = h.clones[d] {
		d = c.base.Disk
		out = append(out, d)
	}
	return out
}

// passOrder returns the disks that are to pass, with the clones that they wait
// for, in an order in which none waits for a later one: clones have higher
// numbers than their bases.
func (h *Host) passOrder(due []*export) []*export {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make(map[id.Disk]*export, len(due))
	for _, e := range due {
		all[e.rec.ID] = e
	}
	clones := make([]id.Disk, 0, len(h.clones))
	for d := range h.clones {
		clones = append(clones, d)
	}
	slices.Sort(clones)
	for _, d := range clones {
		e := h.byID[d]
		if _, ok := all[h.clones[d].base.Disk]; ok && e != nil && e.disk != nil && e.disk.Err() == nil {
			all[d] = e
		}
	}
	out := make([]*export, 0, len(all))
	for _, e := range all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *export) int { return cmp.Compare(b.rec.ID, a.rec.ID) })
	return out
}

// owes reports whether a disk should pass although it has not changed: it is a
// clone that relies on its base, snapshots of it were removed, or a checkpoint of it that lay
// where it should not stay was replaced.
func (h *Host) owes(e *export) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.clones[e.rec.ID] != nil || e.removals != e.forgotten || e.disk != nil && e.disk.OwesPass()
}

// rested reports whether the disk's last pass, if there was one, is IdleTime ago.
func (h *Host) rested(e *export) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(e.passedAt) >= h.opts.IdleTime
}

// passed notes what a disk's whole pass found. A clone has then stated all that it
// needs, the tables of its parent's checkpoint too: its base may go.
func (h *Host) passed(ctx context.Context, e *export, report *disk.PassReport) error {
	now := time.Now()
	h.mu.Lock()
	e.logical, e.passedAt, e.forgotten = report.MappedChunks*int64(e.rec.Chunk), now, e.listed
	for _, s := range e.snaps {
		if use, ok := report.Snapshots[s.rec.ID]; ok {
			s.use, s.usedAt = use, now
		}
	}
	clone := h.clones[e.rec.ID] != nil
	h.mu.Unlock()
	if !clone {
		return nil
	}
	if err := h.clearBase(ctx, e); err != nil {
		return fmt.Errorf("clone %q: %w", h.nameOf(e), err)
	}
	return h.releaseLeftover(ctx)
}

// clearBase makes a clone a disk like any other.
func (h *Host) clearBase(ctx context.Context, e *export) error {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	h.mu.Lock()
	rec, here := e.now, h.byID[e.rec.ID] == e && h.byName[e.now.Name] == e
	h.mu.Unlock()
	if !here || rec.Base == nil {
		return nil // it is being removed
	}
	rec.Base = nil
	err := h.catalog.changeDisk(ctx, &rec, &datanode.RegistryTxn{
		Guards: []datanode.Guard{{Disk: rec.ID, Epoch: e.disk.Epoch()}},
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	e.now = rec
	if c := h.clones[rec.ID]; !c.made.IsZero() {
		e.independent = time.Since(c.made)
	}
	h.dropClone(rec.ID)
	return nil
}

// dropClone forgets that a disk relies on its base; Host.mu and recordMu are held.
func (h *Host) dropClone(d id.Disk) {
	if c := h.clones[d]; c != nil && c.held != nil {
		c.held.ReleaseLists()
	}
	delete(h.clones, d)
}

// leftover is a removed disk whose space is not given back yet.
type leftover struct {
	rec DiskRecord
	// bare: its snapshots' rows and its log are gone; only its lists are left.
	bare bool
}

// releaseLeftover gives up what removed disks hold and no clone relies on. A
// clone that is removed before it was independent keeps its base in turn until
// it goes itself.
func (h *Host) releaseLeftover(ctx context.Context) error {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.leftover))
	h.mu.Unlock()
	slices.SortFunc(all, func(a, b *leftover) int { return cmp.Compare(b.rec.ID, a.rec.ID) }) // clones first
	var errs []error
	for _, l := range all {
		if err := h.releaseOne(ctx, l); err != nil {
			errs = append(errs, fmt.Errorf("give up what disk %d had, which is removed: %w", l.rec.ID, err))
		}
	}
	return errors.Join(errs...)
}

// releaseOne is releaseLeftover for one disk.
func (h *Host) releaseOne(ctx context.Context, l *leftover) error {
	d := l.rec.ID
	if !l.bare {
		if err := h.catalog.dropRows(ctx, d); err != nil {
			return err
		}
	}
	if h.dependents(d) > 0 {
		if l.bare {
			return nil
		}
		err := h.retire(ctx, d)
		l.bare = err == nil
		return err
	}
	if err := h.release(ctx, l.rec); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.leftover, d)
	h.dropClone(d)
	return nil
}

// retire gives up all records of a removed disk on whose lists clones still rely,
// or else they would pin the physical log for as long. It stays fenced: nobody who
// had it may change its lists now.
func (h *Host) retire(ctx context.Context, d id.Disk) error {
	epoch, err := h.catalog.claimEpoch(ctx, d)
	if err != nil {
		return err
	}
	fence, err := h.node.Fence(ctx, &datanode.FenceRequest{Disk: d, Epoch: epoch})
	if err != nil {
		return err
	}
	for stream, end := range fence.End {
		if fence.First[stream] == end {
			continue
		}
		if err := h.node.TrimLog(ctx, &datanode.TrimLogRequest{
			Disk: d, Epoch: epoch, Stream: datanode.Stream(stream), Through: end - 1,
		}); err != nil {
			return err
		}
	}
	return h.node.Sync(ctx, &datanode.SyncRequest{Disk: d, Epoch: epoch})
}

// release gives up what a removed disk holds, and then the disk itself.
func (h *Host) release(ctx context.Context, rec DiskRecord) error {
	if err := h.giveUp(ctx, rec.ID); err != nil {
		return err
	}
	if err := h.opts.FS.RemoveAll(h.mapDir(rec.ID)); err != nil {
		h.log.Warn("removing a map's files failed", "disk", rec.Name, "err", err)
	}
	return h.catalog.forgetDisk(ctx, rec.ID)
}
