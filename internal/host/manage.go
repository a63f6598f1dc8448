package host

import (
	"context"
	"fmt"
	"strings"
	"time"

	"plinth/internal/chunk"
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

// beginChange takes the turn of a change of the catalog, which changeMu.Unlock
// ends. Close waits for it.
func (h *Host) beginChange(ctx context.Context) error {
	h.changeMu.Lock()
	err := ctx.Err()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		err = ErrClosed
	}
	if err != nil {
		h.changeMu.Unlock()
	}
	return err
}

// CreateDisk makes a new, empty disk and serves it. Errors: ErrInvalid, ErrExists.
func (h *Host) CreateDisk(ctx context.Context, spec DiskSpec) (*DiskInfo, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.changeMu.Unlock()
	ctx = context.WithoutCancel(ctx) // a caller who leaves does not leave half a disk
	rec := DiskRecord{
		Version: diskRecordVersion, Name: spec.Name, Bytes: spec.Bytes, Chunk: uint32(spec.Chunk),
		Cipher: spec.Cipher, Stable: spec.Stable, Created: time.Now().UTC().Truncate(time.Second),
	}
	if err := h.catalog.addDisk(ctx, &rec); err != nil {
		return nil, err
	}
	e := h.add(ctx, rec)
	if e.err != nil {
		return nil, e.err
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
	defer h.changeMu.Unlock()
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

// RemoveDisk removes a disk for ever and starts giving its space back. Errors:
// ErrUnknownDisk, ErrInUse.
func (h *Host) RemoveDisk(ctx context.Context, name string) error {
	if err := h.beginChange(ctx); err != nil {
		return err
	}
	defer h.changeMu.Unlock()
	ctx = context.WithoutCancel(ctx) // what is begun is ended
	h.mu.Lock()
	e := h.byName[name]
	if e == nil || e.clients > 0 {
		h.mu.Unlock()
		if e == nil {
			return fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
		}
		return fmt.Errorf("disk %q: %w: disconnect its clients first", name, ErrInUse)
	}
	delete(h.byName, name)
	h.mu.Unlock()
	if err := h.catalog.markRemoving(ctx, e.rec); err != nil {
		h.mu.Lock()
		h.byName[name] = e
		h.mu.Unlock()
		return fmt.Errorf("remove disk %q: %w", name, err)
	}
	h.mu.Lock()
	delete(h.byID, e.rec.ID)
	h.mu.Unlock()
	if e.disk != nil {
		if err := e.disk.Close(); err != nil {
			h.log.Warn("closing a removed disk's map failed", "disk", name, "err", err)
		}
	}
	if err := h.release(ctx, e.rec); err != nil {
		return fmt.Errorf("disk %q is removed, but its space is given back only after a restart: %w", name, err)
	}
	wake(h.sweep)
	return nil
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
