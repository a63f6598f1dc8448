package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

// A clone of a snapshot that is in no checkpoint yet serves at once: it reads the
// snapshot in its parent's map and keeps what is written in its log, until the
// parent has made a checkpoint and the clone has grown a map from it.

// growLoop grows a clone. It ends with the agent's life, or the clone's.
func (h *Host) growLoop(parent, clone *export, image *disk.Image, grown chan<- struct{}) {
	defer h.work.Done()
	defer close(grown)
	defer func() {
		if err := image.Close(); err != nil {
			h.log.Warn("closing a clone's snapshot failed", "id", clone.rec.ID, "err", err)
		}
	}()
	for h.life.Err() == nil && h.current(parent) && h.current(clone) {
		err := h.grow(h.life, parent.disk, clone)
		if err == nil || errors.Is(err, disk.ErrClosed) { // removed meanwhile
			return
		}
		if h.life.Err() == nil {
			h.log.Error("a clone that reads its parent got no checkpoint, will retry", "disk", h.nameOf(clone), "err", err)
		}
		select {
		case <-h.life.Done():
		case <-time.After(retryTime):
		}
	}
}

// grow gives a clone that reads its parent a checkpoint record, and with it a map.
func (h *Host) grow(ctx context.Context, parent *disk.Disk, clone *export) error {
	if err := parent.Checkpoint(ctx); err != nil {
		return err
	}
	guard := datanode.Guard{Disk: clone.rec.ID, Epoch: clone.disk.Epoch()}
	if err := h.catalog.putCheckpoint(ctx, parent, &clone.rec, guard); err != nil {
		return err
	}
	return clone.disk.Independent(ctx)
}

// putCheckpoint records the parent's newest checkpoint as the first one of a
// clone that has none, and does nothing for one that has.
func (c catalog) putCheckpoint(ctx context.Context, parent *disk.Disk, rec *DiskRecord, guards ...datanode.Guard) error {
	key := disk.CheckpointKey(rec.ID)
	if _, revision, err := c.get(ctx, key); err != nil || revision != 0 {
		return err
	}
	value, ok, err := parent.CloneRecord(ctx, rec.Base.Snapshot)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: snapshot %d of disk %d is in no checkpoint", ErrBusy, rec.Base.Snapshot, rec.Base.Disk)
	}
	_, revision, err := c.get(ctx, diskKey(rec.ID))
	if err != nil {
		return err
	}
	if revision == 0 {
		return fmt.Errorf("disk %d is removed: %w", rec.ID, disk.ErrClosed)
	}
	// The clone is still there, and the parent is still ours, and so what was read
	// is its newest checkpoint.
	_, err = c.decide(ctx, &datanode.RegistryTxn{
		Guards:   append(guards, datanode.Guard{Disk: parent.ID(), Epoch: parent.Epoch()}),
		Compares: []datanode.Compare{{Key: key}, {Key: diskKey(rec.ID), Revision: revision}},
		Puts:     []datanode.Put{{Key: key, Value: value}},
	}, key, value)
	return err
}

// regrow gives a clone that was left without a checkpoint one before it is opened:
// without, it would be taken for a new disk.
func (h *Host) regrow(ctx context.Context, rec *DiskRecord) error {
	if rec.Base == nil {
		return nil
	}
	if _, revision, err := h.catalog.get(ctx, disk.CheckpointKey(rec.ID)); err != nil || revision != 0 {
		return err
	}
	h.mu.Lock()
	parent := h.byID[rec.Base.Disk]
	h.mu.Unlock()
	if parent != nil && errors.Is(parent.err, ErrElsewhere) {
		return fmt.Errorf("it began as snapshot %d of disk %d: %w", rec.Base.Snapshot, rec.Base.Disk, parent.err)
	}
	if parent == nil || parent.disk == nil {
		return fmt.Errorf("it began as snapshot %d of disk %d, which is not open: %w", rec.Base.Snapshot, rec.Base.Disk, ErrUnknownDisk)
	}
	if err := parent.disk.Await(ctx, rec.Base.Snapshot); err != nil {
		return err
	}
	if err := parent.disk.Checkpoint(ctx); err != nil {
		return err
	}
	return h.catalog.putCheckpoint(ctx, parent.disk, rec)
}

// current reports whether an export is in the catalog as it is.
func (h *Host) current(e *export) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[e.rec.ID] == e
}

// grown returns a channel that is closed when some clone that reads the disk does
// not any more; nil: none reads it.
func (h *Host) grown(e *export) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.growing(e)
}

// awaitGrown returns when no clone reads the disk any more. Errors: ErrInUse.
func (h *Host) awaitGrown(ctx context.Context, name string) error {
	for {
		h.mu.Lock()
		grown := h.growing(h.byName[name])
		h.mu.Unlock()
		if grown == nil {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return fmt.Errorf("%w: a clone still reads it: %w", ErrInUse, ctx.Err())
		case <-h.life.Done():
			return ErrClosed
		}
	}
}

// growing returns a channel that is closed when some clone that reads the disk has
// grown; nil: none reads it. Host.mu is held.
func (h *Host) growing(e *export) <-chan struct{} {
	if e == nil {
		return nil
	}
	for _, c := range h.clones {
		if c.base.Disk != e.rec.ID || c.grown == nil {
			continue
		}
		select {
		case <-c.grown:
		default:
			return c.grown
		}
	}
	return nil
}

// settleClones gives the clones of a disk that is to be removed a checkpoint where
// they lack one: those that could not be opened, and those of which it was not
// known whether they are there. Nobody could give them one later. Errors: ErrInUse
// where the disk itself cannot.
func (h *Host) settleClones(ctx context.Context, e *export) error {
	if e == nil {
		return nil
	}
	h.mu.Lock()
	var closed []id.Disk
	for d, c := range h.clones {
		open := h.byID[d] != nil && h.byID[d].disk != nil
		if c.base.Disk == e.rec.ID && !open && h.leftover[d] == nil {
			closed = append(closed, d)
		}
	}
	h.mu.Unlock()
	for _, d := range closed {
		if err := h.settleClone(ctx, e, d); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) settleClone(ctx context.Context, e *export, d id.Disk) error {
	value, revision, err := h.catalog.get(ctx, diskKey(d))
	if err != nil {
		return err
	}
	if revision == 0 {
		h.undoubted(d)
		return nil
	}
	if _, revision, err = h.catalog.get(ctx, disk.CheckpointKey(d)); err != nil || revision != 0 {
		return err
	}
	rec, err := parseDiskRecord(value)
	switch {
	case err != nil:
		return err
	case rec.Base == nil:
		return fmt.Errorf("disk %d is no clone: %w", d, datanode.ErrConflict)
	case e.disk == nil:
		return fmt.Errorf("%w: its clone %q needs it, and it is not open", ErrInUse, rec.Name)
	}
	if err := e.disk.Checkpoint(ctx); err != nil {
		return err
	}
	return h.catalog.putCheckpoint(ctx, e.disk, rec)
}

// closeDisks closes all disks, clones before those that they may read.
func (h *Host) closeDisks() error {
	all := h.exports()
	slices.SortFunc(all, func(a, b *export) int { return cmp.Compare[id.Disk](b.rec.ID, a.rec.ID) })
	var errs []error
	for _, e := range all {
		e.door.Close()
		if e.disk != nil {
			errs = append(errs, e.disk.Close())
		}
	}
	return errors.Join(errs...)
}
