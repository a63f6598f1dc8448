package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

const (
	// snapIDsPerTake is how many numbers of snapshots a session takes at a time,
	// so that few snapshots need two changes of the registry.
	snapIDsPerTake = 64
	// snapshotRowsBytesMax bounds the rows of all snapshots: half of what the
	// registry may hold, so that the rest of the pool always finds room.
	snapshotRowsBytesMax = 8 << 20
	// snapshotNameTime is the form of names that are not given.
	snapshotNameTime = "20060102-150405"
)

// making is a snapshot of one disk being made.
type making struct {
	e     *export
	s     *snapshot
	value []byte // of its row
}

// CreateSnapshots makes a snapshot of every disk of the spec, of one instant: a
// write that was acknowledged before the call is in it. Durable at return.
// Errors: ErrInvalid, ErrUnknownDisk, ErrExists, ErrBusy, ErrTooMany; then there
// is none.
//
// The marks are stable before the rows are, which come in one transaction: a
// crash between leaves marks that the next pass forgets, and never a row without
// its mark, or part of a group.
func (h *Host) CreateSnapshots(ctx context.Context, spec SnapshotSpec) ([]SnapshotInfo, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if err := spec.validate(now); err != nil {
		return nil, err
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	all, err := h.prepare(ctx, &spec, now)
	if err != nil {
		return nil, err
	}
	if err := h.mark(ctx, all); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := h.recordSnapshots(context.WithoutCancel(ctx), all); err != nil {
		return nil, fmt.Errorf("record the snapshot: %w", err)
	}
	out := make([]SnapshotInfo, len(all))
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, m := range all {
		m.e.snaps[m.s.name] = m.s
		h.snapBytes += m.s.bytes
		out[i] = m.s.info(m.e)
	}
	return out, nil
}

// prepare finds the disks, a name that is free on all of them, and numbers.
func (h *Host) prepare(ctx context.Context, spec *SnapshotSpec, now time.Time) ([]*making, error) {
	var all []*making
	for _, name := range spec.Disks {
		e, err := h.open(name)
		if err != nil {
			return nil, err
		}
		if err := e.disk.Err(); err != nil {
			return nil, err
		}
		all = append(all, &making{e: e})
	}
	name, err := h.freeName(spec.Name, now, all)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		n, err := h.snapIDs.take(ctx, h.catalog, nextSnap, snapIDsPerTake)
		if err != nil {
			return nil, err
		}
		rec := SnapshotRecord{Version: snapshotRecordVersion, ID: id.Snapshot(n), Created: now, Labels: spec.Labels}
		if !spec.Expires.IsZero() {
			at := spec.Expires.UTC()
			rec.Expires = &at
		}
		if len(all) > 1 {
			rec.Group = rec.ID
			if all[0] != m {
				rec.Group = all[0].s.rec.ID
			}
		}
		m.s = &snapshot{snapshotRow: snapshotRow{name: name, rec: rec}}
	}
	return all, nil
}

// freeName returns the name, or one of the time, if it is free on all disks.
func (h *Host) freeName(name string, now time.Time, all []*making) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.snapBytes > snapshotRowsBytesMax {
		return "", fmt.Errorf("%w: the pool's take %d bytes of the registry, at most %d", ErrTooMany, h.snapBytes, snapshotRowsBytesMax)
	}
	taken := func(name string) *export {
		for _, m := range all {
			if m.e.snaps[name] != nil {
				return m.e
			}
		}
		return nil
	}
	if name != "" {
		if e := taken(name); e != nil {
			return "", fmt.Errorf("disk %q, snapshot %q: %w", e.now.Name, name, ErrExists)
		}
		return name, nil
	}
	name = now.Format(snapshotNameTime)
	for n := 2; taken(name) != nil; n++ {
		name = fmt.Sprintf("%s-%d", now.Format(snapshotNameTime), n)
	}
	return name, nil
}

// mark has all disks mark their logs at one instant.
func (h *Host) mark(ctx context.Context, all []*making) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.life, cancel)()
	var requests []disk.MarkRequest
	for _, m := range all {
		requests = append(requests, disk.MarkRequest{Disk: m.e.disk, Snapshot: m.s.rec.ID})
	}
	sizes, err := disk.MarkAll(ctx, requests)
	if errors.Is(err, disk.ErrBusy) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return err
	}
	for i, m := range all {
		m.s.rec.Bytes = sizes[i]
		if m.value, err = m.s.rec.marshal(); err != nil {
			return err
		}
		m.s.bytes = rowBytes(snapKey(m.e.rec.ID, m.s.name), m.value)
	}
	return nil
}

// recordSnapshots makes the marks snapshots, all or none. If that is not known,
// no pass of this life forgets them.
func (h *Host) recordSnapshots(ctx context.Context, all []*making) error {
	txn := &datanode.RegistryTxn{}
	h.mu.Lock()
	for _, m := range all {
		key := snapKey(m.e.rec.ID, m.s.name)
		txn.Guards = append(txn.Guards, datanode.Guard{Disk: m.e.rec.ID, Epoch: m.e.disk.Epoch()})
		txn.Compares = append(txn.Compares, datanode.Compare{Key: key})
		txn.Puts = append(txn.Puts, datanode.Put{Key: key, Value: m.value})
	}
	h.mu.Unlock()
	first := all[0]
	revision, err := h.catalog.decide(ctx, txn, snapKey(first.e.rec.ID, first.s.name), first.value)
	if errors.Is(err, errDoubt) {
		return err
	}
	for _, m := range all {
		m.s.revision = revision
		m.e.disk.Settled(m.s.rec.ID)
	}
	switch {
	case errors.Is(err, datanode.ErrConflict):
		return fmt.Errorf("snapshot %q: %w", first.s.name, ErrExists)
	case errors.Is(err, datanode.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrTooMany, err)
	}
	return err
}
