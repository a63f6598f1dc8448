package host

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/owner"
)

const (
	// nameBytesMax bounds a disk's name.
	nameBytesMax = 128
	// sizeAlign is the unit of a disk's size.
	sizeAlign = 4096
	// diskBytesMax bounds a disk: the map's LBAs at the smallest chunk allow more.
	diskBytesMax = 1 << 50
)

// DiskSpec is a disk to be created.
type DiskSpec struct {
	Name  string
	Bytes int64
	// Chunk is the unit of deduplication; 0 means 4 KiB.
	Chunk chunk.Size
	// Cipher names the suite; empty means aes-256-gcm.
	Cipher string
	// Stable makes every write wait for stable media.
	Stable bool
}

// validate fills in defaults and returns ErrInvalid with the reason.
func (s *DiskSpec) validate() error {
	if s.Chunk == 0 {
		s.Chunk = chunk.SizeDefault
	}
	if s.Cipher == "" {
		s.Cipher = chunk.AES256GCM.String()
	}
	if err := validateName(s.Name); err != nil {
		return err
	}
	if err := validateSize(s.Bytes); err != nil {
		return err
	}
	if err := s.Chunk.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := chunk.ParseSuite(s.Cipher); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// validateName accepts what is an NBD export name, a path segment of the API and
// a word in a shell.
func validateName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	if name == "" || len(name) > nameBytesMax || strings.Trim(name, letters+"-_.") != "" ||
		!strings.Contains(letters, name[:1]) {
		return fmt.Errorf("%w name %q: use 1 to %d letters, digits, '-', '_' and '.', a letter or digit first", ErrInvalid, name, nameBytesMax)
	}
	return nil
}

func validateSize(bytes int64) error {
	if bytes <= 0 || bytes > diskBytesMax || bytes%sizeAlign != 0 {
		return fmt.Errorf("%w size of %d bytes: use a multiple of 4 KiB, at most 1 PiB", ErrInvalid, bytes)
	}
	return nil
}

// beginChange takes the turn of a change of the catalog, which endChange ends.
// Close waits for it.
func (h *Host) beginChange(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		select {
		case h.changing <- struct{}{}:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		h.endChange()
		return ErrClosed
	}
	return nil
}

func (h *Host) endChange() { <-h.changing }

// CreateDisk makes a new, empty disk and serves it. Errors: ErrInvalid, ErrExists.
func (h *Host) CreateDisk(ctx context.Context, spec DiskSpec) (*DiskInfo, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx) // a caller who leaves does not leave half a disk
	rec := DiskRecord{
		Version: diskRecordVersion, Name: spec.Name, Bytes: spec.Bytes, Chunk: uint32(spec.Chunk),
		Cipher: spec.Cipher, Stable: spec.Stable, Created: time.Now().UTC().Truncate(time.Second),
	}
	var owned datanode.Put
	err := h.catalog.addDisk(ctx, &rec, func(d id.Disk) (_ *datanode.RegistryTxn, err error) {
		owned, err = h.owning.putOwner(d, firstEpoch)
		return &datanode.RegistryTxn{Puts: []datanode.Put{owned}}, err
	})
	if err != nil {
		return nil, err
	}
	h.undoubted(rec.ID)
	e, err := h.born(ctx, rec, owned.Lease, nil)
	if err != nil {
		return nil, err
	}
	return h.info(e), nil
}

// NeverHadDisk reports whether no disk was ever made in the pool.
func (h *Host) NeverHadDisk(ctx context.Context) (bool, error) {
	_, revision, err := h.catalog.get(ctx, nextDisk)
	return revision == 0, err
}

// ResizeDisk makes a disk larger; clients see it when they connect again.
// Errors: ErrUnknownDisk, ErrInvalid for a smaller size.
func (h *Host) ResizeDisk(ctx context.Context, name string, bytes int64) (*DiskInfo, error) {
	if err := validateSize(bytes); err != nil {
		return nil, err
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	e, err := h.open(name)
	if err != nil {
		return nil, err
	}
	if now := e.disk.Size(); bytes < now {
		return nil, fmt.Errorf("%w size of %d bytes: disk %q has %d, and disks only grow", ErrInvalid, bytes, name, now)
	}
	if err := e.disk.Resize(ctx, bytes); err != nil {
		return nil, err
	}
	return h.info(e), nil
}

// RenameDisk gives a disk another name. Errors: ErrUnknownDisk, ErrInvalid,
// ErrExists, ErrInUse.
func (h *Host) RenameDisk(ctx context.Context, name, to string) (*DiskInfo, error) {
	if err := validateName(to); err != nil {
		return nil, err
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx)
	e, free, err := h.reserve(name, (*export).unused)
	if err != nil {
		return nil, err
	}
	defer free()
	if err := h.renameRecord(ctx, e, name, to); errors.Is(err, datanode.ErrConflict) {
		return nil, fmt.Errorf("disk %q: %w", to, ErrExists)
	} else if err != nil {
		return nil, fmt.Errorf("rename disk %q: %w", name, err)
	}
	return h.info(e), nil
}

func (h *Host) renameRecord(ctx context.Context, e *export, name, to string) error {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	rec := h.record(e)
	rec.Name = to
	err := h.catalog.changeDisk(ctx, &rec, &datanode.RegistryTxn{
		Guards:   e.guards(),
		Compares: []datanode.Compare{{Key: nameKey(to)}},
		Puts:     []datanode.Put{{Key: nameKey(to), Value: strconv.AppendUint(nil, uint64(rec.ID), 10)}},
		Deletes:  []string{nameKey(name)},
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byName, name)
	e.now, h.byName[to] = rec, e
	return nil
}

// reserve keeps clients from a disk, until free. unused says why it cannot, with
// Host.mu held.
func (h *Host) reserve(name string, unused func(*export) error) (e *export, free func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e = h.byName[name]; e == nil {
		return nil, nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	if errors.Is(e.err, ErrElsewhere) {
		return nil, nil, e.err
	}
	if err := unused(e); err != nil {
		return nil, nil, fmt.Errorf("disk %q: %w", name, err)
	}
	busy := make(chan struct{})
	e.busy = busy
	return e, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		e.busy = nil
		close(busy)
	}, nil
}

// RemoveDisk removes a disk for ever and starts giving its space back. Errors:
// ErrUnknownDisk, ErrInUse: also while it has snapshots.
func (h *Host) RemoveDisk(ctx context.Context, name string) error {
	return h.removeDisk(ctx, name, false)
}

// RemoveDiskWithSnapshots is RemoveDisk for a disk that may have snapshots: they
// go too.
func (h *Host) RemoveDiskWithSnapshots(ctx context.Context, name string) error {
	return h.removeDisk(ctx, name, true)
}

func (h *Host) removeDisk(ctx context.Context, name string, snapshots bool) error {
	if err := h.awaitGrown(ctx, name); err != nil {
		return fmt.Errorf("disk %q: %w", name, err)
	}
	if err := h.beginChange(ctx); err != nil {
		return err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx) // what is begun is ended
	if err := h.settleClones(ctx, h.named(name)); err != nil {
		return fmt.Errorf("disk %q: %w", name, err)
	}
	e, err := h.hide(name, snapshots)
	if err != nil {
		return fmt.Errorf("disk %q: %w", name, err)
	}
	rec, err := h.forget(ctx, e, name)
	if err != nil && !errors.Is(err, errDoubt) { // else it may be removed at the next start
		h.mu.Lock()
		h.byName[name] = e
		h.mu.Unlock()
		return fmt.Errorf("remove disk %q: %w", name, err)
	}
	h.owning.send(owner.Removed{Disk: rec.ID})
	e.door.Close()
	if e.disk != nil {
		if err := e.disk.Close(); err != nil {
			h.log.Warn("closing a removed disk's map failed", "disk", name, "err", err)
		}
	}
	if err != nil {
		return fmt.Errorf("remove disk %q: %w", name, err)
	}
	h.mu.Lock()
	h.leftover[rec.ID] = &leftover{rec: rec}
	h.mu.Unlock()
	if err := h.releaseLeftover(ctx); err != nil {
		h.log.Warn("a disk is removed, but its space is not given back yet, will retry", "disk", name, "err", err)
	}
	wake(h.sweep)
	return nil
}

// detached returns ErrInUse if clients are connected to the disk. Host.mu is held.
func (e *export) detached() error {
	if e.clients > 0 {
		return fmt.Errorf("%w: disconnect its clients first", ErrInUse)
	}
	return nil
}

// forget marks a disk as being removed in the catalog, and forgets it and its
// snapshots.
func (h *Host) forget(ctx context.Context, e *export, name string) (DiskRecord, error) {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	rec := h.record(e)
	rec.Removing = true
	err := h.catalog.changeDisk(ctx, &rec, &datanode.RegistryTxn{Guards: e.guards(), Deletes: []string{nameKey(name)}})
	if err != nil && !errors.Is(err, errDoubt) {
		return rec, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byID, rec.ID)
	delete(h.owners, rec.ID)
	h.stir(rec.ID)
	for _, s := range e.snaps {
		h.snapBytes -= s.bytes
	}
	return rec, err
}

// guards are those of a change that only the disk's owner may make. One that does
// not open has none: its record alone must be as it was.
func (e *export) guards() []datanode.Guard {
	if e.disk == nil {
		return nil
	}
	return []datanode.Guard{{Disk: e.rec.ID, Epoch: e.disk.Epoch()}}
}

// named returns the disk of that name, nil if there is none.
func (h *Host) named(name string) *export {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byName[name]
}

// record returns a disk's record as the catalog has it.
func (h *Host) record(e *export) DiskRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.now
}

// hide takes a disk that nobody uses from the names.
func (h *Host) hide(name string, snapshots bool) (*export, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byName[name]
	if e == nil {
		return nil, ErrUnknownDisk
	}
	if errors.Is(e.err, ErrElsewhere) {
		return nil, e.err
	}
	if err := e.unused(); err != nil {
		return nil, err
	}
	if len(e.snaps) > 0 && !snapshots {
		return nil, fmt.Errorf("%w: it has %d snapshots, remove them first", ErrInUse, len(e.snaps))
	}
	if h.growing(e) != nil {
		return nil, fmt.Errorf("%w: a clone was just made that reads it", ErrInUse)
	}
	delete(h.byName, name)
	return e, nil
}

// unused returns ErrInUse if clients are connected to the disk or a snapshot of
// it. Host.mu is held.
func (e *export) unused() error {
	if err := e.detached(); err != nil {
		return err
	}
	for name, s := range e.snaps {
		if s.users > 0 {
			return fmt.Errorf("%w: disconnect the clients of snapshot %q first", ErrInUse, name)
		}
	}
	return nil
}

// open returns a disk that serves. Errors: ErrUnknownDisk, and why it does not.
func (h *Host) open(name string) (*export, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byName[name]
	switch {
	case h.closing:
		return nil, ErrClosed
	case e == nil:
		return nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	case e.err != nil:
		return nil, e.err
	}
	return e, nil
}
