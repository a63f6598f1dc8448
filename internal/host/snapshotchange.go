package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// RemoveSnapshot removes a snapshot; with wait it waits for its clients to leave,
// as long as ctx lives: others may connect until the last one has left. What only
// the snapshot needed is given back by the next passes. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInUse, ctx's.
func (h *Host) RemoveSnapshot(ctx context.Context, disk, name string, wait bool) error {
	for {
		left, err := h.removeSnapshot(ctx, disk, name)
		if left == nil || !wait {
			return err
		}
		select {
		case <-left:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-h.life.Done():
			return ErrClosed
		}
	}
}

// removeSnapshot is RemoveSnapshot without a wait. If the snapshot is in use, left
// is closed when it is not.
func (h *Host) removeSnapshot(ctx context.Context, disk, name string) (left <-chan struct{}, err error) {
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	h.mu.Lock()
	e, s, err := h.snapshotOf(disk, name)
	if err == nil && s.users > 0 {
		if s.left == nil {
			s.left = make(chan struct{})
		}
		left, err = s.left, fmt.Errorf("disk %q, snapshot %q: %w: disconnect its clients first", disk, name, ErrInUse)
	}
	if err != nil {
		h.mu.Unlock()
		return left, err
	}
	s.gone = true
	h.mu.Unlock()
	return nil, h.removeRows(context.WithoutCancel(ctx), e, []*snapshot{s})
}

// removeRows removes snapshots of a disk, marked gone, from the registry: after
// that they do not exist. At most RegistryOpsMax.
func (h *Host) removeRows(ctx context.Context, e *export, all []*snapshot) error {
	txn := &datanode.RegistryTxn{}
	h.mu.Lock()
	for _, s := range all {
		key := snapKey(e.rec.ID, s.name)
		txn.Compares = append(txn.Compares, datanode.Compare{Key: key, Revision: s.revision})
		txn.Deletes = append(txn.Deletes, key)
	}
	h.mu.Unlock()
	_, err := h.catalog.decide(ctx, txn, txn.Deletes[0], nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range all {
		if err == nil {
			h.snapBytes -= s.bytes
			delete(e.snaps, s.name)
		} else {
			s.gone = false
		}
	}
	if err != nil {
		return fmt.Errorf("disk %q: remove %d snapshots: %w", e.now.Name, len(all), err)
	}
	e.removals += int64(len(all))
	return nil
}

// RenameSnapshot gives a snapshot another name. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInvalid, ErrExists, ErrInUse.
func (h *Host) RenameSnapshot(ctx context.Context, disk, name, to string) error {
	if err := validateName(to); err != nil {
		return err
	}
	if err := h.beginChange(ctx); err != nil {
		return err
	}
	defer h.endChange()
	ctx = context.WithoutCancel(ctx)
	h.mu.Lock()
	e, s, err := h.snapshotOf(disk, name)
	switch {
	case err != nil:
	case e.snaps[to] != nil:
		err = fmt.Errorf("disk %q, snapshot %q: %w", disk, to, ErrExists)
	case s.users > 0:
		err = fmt.Errorf("disk %q, snapshot %q: %w: disconnect its clients first", disk, name, ErrInUse)
	default:
		s.gone = true // nobody connects meanwhile
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	revision, err := h.moveRow(ctx, e.rec.ID, s, to)
	h.mu.Lock()
	defer h.mu.Unlock()
	s.gone = false
	if errors.Is(err, datanode.ErrConflict) {
		return fmt.Errorf("disk %q, snapshot %q: %w", disk, to, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("disk %q: rename snapshot %q: %w", disk, name, err)
	}
	delete(e.snaps, name)
	s.name, s.revision, e.snaps[to] = to, revision, s
	h.snapBytes += int64(len(to) - len(name))
	s.bytes += int64(len(to) - len(name))
	return nil
}

// moveRow moves a snapshot's row to another name.
func (h *Host) moveRow(ctx context.Context, d id.Disk, s *snapshot, to string) (revision uint64, err error) {
	value, err := s.rec.marshal()
	if err != nil {
		return 0, err
	}
	from, key := snapKey(d, s.name), snapKey(d, to)
	h.renameMu.Lock()
	defer h.renameMu.Unlock()
	return h.catalog.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: from, Revision: s.revision}, {Key: key}},
		Puts:     []datanode.Put{{Key: key, Value: value}},
		Deletes:  []string{from},
	}, key, value)
}

// expire removes the snapshots whose time has come and that nobody uses.
func (h *Host) expire(ctx context.Context, now time.Time) error {
	due := func(s *snapshot) bool {
		return s.rec.Expires != nil && !s.rec.Expires.After(now) && s.users == 0 && !s.gone
	}
	if len(h.expired(due)) == 0 {
		return nil
	}
	if err := h.beginChange(ctx); err != nil {
		return err
	}
	defer h.endChange()
	var errs []error
	for e, all := range h.expired(due) {
		for some := range slices.Chunk(all, datanode.RegistryOpsMax) {
			h.mu.Lock()
			some = slices.DeleteFunc(some, func(s *snapshot) bool { return !due(s) })
			for _, s := range some {
				s.gone = true
			}
			h.mu.Unlock()
			if len(some) == 0 {
				continue
			}
			if err := h.removeRows(ctx, e, some); err != nil {
				errs = append(errs, err)
				continue
			}
			h.log.Info("removed expired snapshots", "disk", h.nameOf(e), "count", len(some))
		}
	}
	return errors.Join(errs...)
}

// expired returns the snapshots that are due, of disks that are not being removed.
func (h *Host) expired(due func(*snapshot) bool) map[*export][]*snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[*export][]*snapshot)
	for _, e := range h.byName {
		for _, s := range e.snaps {
			if due(s) {
				out[e] = append(out[e], s)
			}
		}
	}
	return out
}

// dropRows removes all rows of a disk that is being removed.
func (c catalog) dropRows(ctx context.Context, d id.Disk) error {
	rows, err := c.snapshots(ctx, d)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(rows, datanode.RegistryOpsMax) {
		txn := &datanode.RegistryTxn{}
		for _, row := range some {
			txn.Deletes = append(txn.Deletes, snapKey(d, row.name))
		}
		if _, err := c.decide(ctx, txn, txn.Deletes[0], nil); err != nil {
			return err
		}
	}
	return nil
}
