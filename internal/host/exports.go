package host

import (
	"context"
	"errors"
	"fmt"

	"plinth/internal/disk"
	"plinth/nbd"
)

// Exports serves the host's disks over NBD. Names are
//
//	DISK                 the disk
//	DISK@SNAP            a snapshot of it, read-only
//	DISK@SNAP,since=OLD  the same, and a dirty bitmap OLD: what is not as it was
//	                     in that older snapshot
//
// It implements nbd.Exports.
type Exports struct{ Host *Host }

// List implements nbd.Exports. Snapshots are not shown: there may be thousands.
func (x Exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var out []nbd.ExportInfo
	for _, e := range x.Host.exports() {
		if e.disk != nil && e.disk.Err() == nil {
			out = append(out, x.export(e).Info())
		}
	}
	return out, nil
}

// Describe implements nbd.Exports.
func (x Exports) Describe(_ context.Context, name string) (nbd.ExportInfo, error) {
	if t, ok := parseTarget(name); ok {
		export, used, err := x.snapshot(t)
		if err != nil {
			return nbd.ExportInfo{}, nbdError(err)
		}
		defer x.Host.unuse(used)
		return export.Info(), nil
	}
	e, err := x.Host.find(name)
	if err != nil {
		return nbd.ExportInfo{}, nbdError(err)
	}
	return x.export(e).Info(), nil
}

// Open implements nbd.Exports. A snapshot waits until it is destaged.
func (x Exports) Open(ctx context.Context, name string) (nbd.Export, func(), error) {
	if t, ok := parseTarget(name); ok {
		e, release, err := x.openSnapshot(ctx, t)
		return e, release, nbdError(err)
	}
	h := x.Host
	e, err := h.enter(ctx, func() (*export, error) { return h.find(name) })
	if err != nil {
		return nbd.Export{}, nil, nbdError(err)
	}
	return x.export(e), func() { h.leave(e) }, nil
}

// enter counts a client of the disk that is found, when no change of it is under
// way, until leave.
func (h *Host) enter(ctx context.Context, find func() (*export, error)) (*export, error) {
	for {
		e, err := find()
		if err != nil {
			return nil, err
		}
		h.mu.Lock()
		if h.closing {
			h.mu.Unlock()
			return nil, ErrClosed
		}
		if h.byName[e.now.Name] != e { // it has changed meanwhile
			h.mu.Unlock()
			continue
		}
		busy := e.busy
		if busy == nil {
			e.clients++
			h.mu.Unlock()
			return e, nil
		}
		h.mu.Unlock()
		select {
		case <-busy: // and it may have another name now
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (h *Host) leave(e *export) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.clients--
}

// find is open, and for the empty name the only disk: the default export.
func (h *Host) find(name string) (*export, error) {
	if all := h.exports(); name == "" && len(all) == 1 {
		name = h.nameOf(all[0])
	}
	return h.open(name)
}

func (x Exports) export(e *export) nbd.Export {
	return nbd.Export{
		Name: x.Host.nameOf(e), Description: fmt.Sprintf("plinth disk %d of pool %v", e.rec.ID, x.Host.keys.ID()), Device: device{e.disk, e.door, e.disk},
		MultiConn: true, PreferredBlockSize: e.rec.Chunk,
	}
}

func nbdError(err error) error {
	switch {
	case errors.Is(err, ErrUnknownDisk), errors.Is(err, ErrUnknownSnapshot), errors.Is(err, ErrElsewhere):
		return fmt.Errorf("%w: %w", nbd.ErrUnknownExport, err)
	case errors.Is(err, ErrClosed):
		return fmt.Errorf("%w: %w", nbd.ErrShutdown, err)
	}
	return err
}

// Errno translates what disks return: for nbd.Options.
func Errno(err error) nbd.Errno {
	switch {
	case errors.Is(err, disk.ErrNoSpace):
		return nbd.ENOSPC
	case errors.Is(err, disk.ErrClosed), errors.Is(err, ErrClosed):
		return nbd.ESHUTDOWN
	case errors.Is(err, disk.ErrOutOfRange):
		return nbd.EINVAL
	}
	return 0
}
