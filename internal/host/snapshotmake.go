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
	epoch id.Epoch // of the disk's owner who has marked it
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
// its mark, or part of a group. Several disks may be several hosts'.
func (h *Host) CreateSnapshots(ctx context.Context, spec SnapshotSpec) ([]SnapshotInfo, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	if err := spec.validate(now); err != nil {
		return nil, err
	}
	made, err := h.createHere(ctx, &spec, now)
	if errors.Is(err, ErrElsewhere) && len(spec.Disks) > 1 && !h.opts.Sole {
		return h.createGroup(ctx, &spec, now)
	}
	return made, err
}

// createHere is CreateSnapshots for disks that this host has.
func (h *Host) createHere(ctx context.Context, spec *SnapshotSpec, now time.Time) ([]SnapshotInfo, error) {
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	all, err := h.prepare(ctx, spec, now)
	if err != nil {
		return nil, err
	}
	if err := h.mark(ctx, all); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := h.recordSnapshots(context.WithoutCancel(ctx), all); err != nil {
		return nil, fmt.Errorf("record the snapshot: %w", err)
	}
	h.mu.Lock()
	for _, m := range all {
		m.e.snaps[m.s.name] = m.s
		h.snapBytes += m.s.bytes
	}
	h.mu.Unlock()
	return h.infos(all), nil
}

// infos describes snapshots that were made.
func (h *Host) infos(all []*making) []SnapshotInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]SnapshotInfo, len(all))
	for i, m := range all {
		out[i] = m.s.info(m.e)
	}
	return out
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
	h.snapIDs.above(h.newestSnapshot(all))
	for _, m := range all {
		n, err := h.snapIDs.take(ctx, h.catalog, nextSnap, snapIDsPerTake)
		if err != nil {
			return nil, err
		}
		m.epoch = m.e.disk.Epoch()
		m.begin(spec, name, id.Snapshot(n), all[0], now)
	}
	return all, nil
}

// begin gives the snapshot its row, of which the size is not known yet. first is the first
// of those that are made together.
func (m *making) begin(spec *SnapshotSpec, name string, n id.Snapshot, first *making, now time.Time) {
	rec := SnapshotRecord{Version: snapshotRecordVersion, ID: n, Created: now, Labels: spec.Labels}
	if !spec.Expires.IsZero() {
		at := spec.Expires.UTC()
		rec.Expires = &at
	}
	if len(spec.Disks) > 1 {
		rec.Group = n
		if first != m {
			rec.Group = first.s.rec.ID
		}
	}
	m.s = &snapshot{snapshotRow: snapshotRow{name: name, rec: rec}}
}

// size completes the row.
func (m *making) size(bytes int64) (err error) {
	m.s.rec.Bytes = bytes
	if m.value, err = m.s.rec.marshal(); err != nil {
		return err
	}
	m.s.bytes = rowBytes(snapKey(m.e.rec.ID, m.s.name), m.value)
	return nil
}

// newestSnapshot returns the highest number of the disks' snapshots, 0 for none: who had a
// disk before may have had higher numbers than this host has left.
func (h *Host) newestSnapshot(all []*making) (n id.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range all {
		for _, s := range m.e.snaps {
			n = max(n, s.rec.ID)
		}
	}
	return n
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
		if err := m.size(sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

// recordSnapshots makes the marks snapshots, all or none. If that is not known,
// no pass of this life forgets them.
func (h *Host) recordSnapshots(ctx context.Context, all []*making) error {
	txn := snapshotsTxn(all)
	first := all[0]
	revision, err := h.catalog.decide(ctx, txn, txn.Puts[0].Key, txn.Puts[0].Value)
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

// snapshotsTxn returns the transaction that makes the rows of snapshots, while each disk
// has the owner who marked it.
func snapshotsTxn(all []*making) *datanode.RegistryTxn {
	txn := &datanode.RegistryTxn{}
	for _, m := range all {
		key := snapKey(m.e.rec.ID, m.s.name)
		txn.Guards = append(txn.Guards, datanode.Guard{Disk: m.e.rec.ID, Epoch: m.epoch})
		txn.Compares = append(txn.Compares, datanode.Compare{Key: key})
		txn.Puts = append(txn.Puts, datanode.Put{Key: key, Value: m.value})
	}
	return txn
}
