package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// errGone: the disk was removed.
var errGone = errors.New("the disk is gone")

// openClaimed opens a disk that this host has claimed under an epoch. The error is
// ErrFenced, errGone, or a transient one; others are the export's. What the registry says of
// the disk is read when it is fenced: no earlier owner changes that any more.
func (h *Host) openClaimed(ctx context.Context, d id.Disk, epoch id.Epoch, t *term) (*export, error) {
	h.mu.Lock()
	now, birth := h.byID[d], h.births[d]
	h.mu.Unlock()
	if now == nil { // asked for before it was heard of
		rec, err := h.catalog.diskRecord(ctx, d)
		if err == nil && (rec == nil || rec.Removing) {
			err = errGone
		}
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", d, err)
		}
		h.know(*rec)
		return nil, fmt.Errorf("disk %d was not known yet: %w", d, ErrElsewhere)
	}
	rec := h.record(now)
	e := newExport(h.budget, rec)
	e.claimed, e.term = epoch, t
	e.disk, e.err = h.openDisk(ctx, rec, epoch, t, birth)
	if e.err == nil {
		e.err = h.openedRows(ctx, e)
	}
	if e.err == nil {
		return e, nil
	}
	if e.disk != nil {
		e.err = errors.Join(e.err, e.disk.Close())
		e.disk = nil
	}
	if errors.Is(e.err, datanode.ErrFenced) || errors.Is(e.err, errGone) || transient(e.err) {
		e.door.Close()
		return nil, e.err
	}
	h.log.Error("disk does not open", "disk", rec.Name, "id", rec.ID, "err", e.err)
	return e, nil
}

// openedRows reads what the registry says of a disk beside its record.
func (h *Host) openedRows(ctx context.Context, e *export) error {
	rows, err := h.catalog.snapshots(ctx, e.rec.ID)
	if err != nil {
		return err
	}
	for _, row := range rows {
		s := &snapshot{snapshotRow: row}
		if !e.disk.Marked(row.rec.ID) {
			s.lost = true
			h.log.Error("snapshot is lost: the log was, with its mark", "disk", e.rec.Name, "snapshot", row.name, "id", row.rec.ID)
		}
		e.snaps[row.name] = s
	}
	rec, err := h.catalog.diskRecord(ctx, e.rec.ID)
	if err == nil && (rec == nil || rec.Removing) {
		err = fmt.Errorf("disk %d: %w", e.rec.ID, errGone)
	}
	if err != nil {
		return err
	}
	e.rec, e.now = *rec, *rec
	e.door.SetLimits(rec.limits())
	if rec.Base != nil {
		h.learnBase(rec)
	} else {
		h.forgetBase(rec.ID)
	}
	if h.opts.Sole {
		return nil // nobody else makes clones
	}
	recs, err := h.catalog.disks(ctx)
	if err != nil {
		return err
	}
	for i := range recs {
		b := recs[i].Base
		if b == nil || b.Disk != e.rec.ID {
			continue
		}
		h.learnBase(&recs[i])
		_, revision, err := h.catalog.get(ctx, disk.CheckpointKey(recs[i].ID))
		if err != nil {
			return err
		}
		if revision == 0 {
			e.bare = append(e.bare, recs[i])
		}
	}
	return nil
}

// newExport makes the export of a disk that is not open.
func newExport(b *gate.Budget, rec DiskRecord) *export {
	return &export{
		rec: rec, now: rec, door: gate.NewDoor(b, rec.limits()), quietFrom: time.Now(), snaps: make(map[string]*snapshot),
	}
}

// know makes a disk of the catalog known, without opening it.
func (h *Host) know(rec DiskRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID[rec.ID] != nil {
		return
	}
	e := newExport(h.budget, rec)
	e.err = h.absence(e)
	h.byName[rec.Name], h.byID[rec.ID] = e, e
}

// absence says why a disk is not served here; mu is held.
func (h *Host) absence(e *export) error {
	return &ElsewhereError{Disk: e.now.Name, Host: h.owners[e.rec.ID].host}
}

// replace puts an export in the place of one, without a disk: exports do not change,
// but for what mu guards. mu is held.
func (h *Host) replace(e *export) {
	n := newExport(h.budget, e.now)
	n.err = h.absence(n)
	n.stored = e.stored
	h.put(e, n)
}

// put has n take the place of e; mu is held.
func (h *Host) put(e, n *export) {
	if h.byName[e.now.Name] == e {
		delete(h.byName, e.now.Name)
		h.byName[n.now.Name] = n
	}
	h.byID[e.rec.ID] = n
}

// install serves a disk that was opened, if it is still in the catalog.
func (h *Host) install(e *export) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.byID[e.rec.ID]
	if old == nil {
		return
	}
	old.door.Close()
	e.installed = time.Now()
	if e.disk != nil {
		e.cold = true
		wake(h.colder)
	}
	delete(h.free, e.rec.ID)
	h.owners[e.rec.ID] = ownerNote{revision: h.owners[e.rec.ID].revision}
	h.stir(e.rec.ID)
	delete(h.births, e.rec.ID)
	for _, s := range e.snaps {
		h.snapBytes += s.bytes
	}
	h.put(old, e)
	h.holdBases(e)
}

// uninstall takes a disk out of service if it is open under that epoch, and returns
// it to be closed.
func (h *Host) uninstall(d id.Disk, epoch id.Epoch) *export {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[d]
	if e == nil || e.claimed != epoch {
		return nil
	}
	for _, s := range e.snaps {
		h.snapBytes -= s.bytes
	}
	for _, c := range h.clones {
		if c.held != nil && c.held == e.disk {
			c.held = nil
		}
	}
	h.stir(d)
	h.replace(e)
	return e
}

// holdBases holds an open disk's lists for the clones that rely on it, before any
// pass or update of them, or who calls awaits those; mu is held.
func (h *Host) holdBases(e *export) {
	for _, c := range h.clones {
		if c.base.Disk == e.rec.ID && c.held == nil && e.disk != nil {
			c.held = e.disk
			c.held.KeepLists()
		}
	}
}

// learnBase notes a clone that the registry's record is of.
func (h *Host) learnBase(rec *DiskRecord) {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	h.mu.Lock()
	var held *disk.Disk
	if h.clones[rec.ID] == nil {
		h.clones[rec.ID] = &cloneState{base: *rec.Base, revision: rec.revision}
		if e := h.byID[rec.Base.Disk]; e != nil {
			h.holdBases(e)
			held = h.clones[rec.ID].held
		}
	}
	h.mu.Unlock()
	if held != nil {
		held.AwaitLists()
	}
}

// birth is what a clone reads that has no checkpoint yet.
type birth struct{ under *disk.Image }

// born has a new disk, whose record was made with its owner row, served.
func (h *Host) born(ctx context.Context, rec DiskRecord, lease datanode.LeaseID, under *disk.Image) (*export, error) {
	h.know(rec)
	if under != nil {
		h.mu.Lock()
		h.births[rec.ID] = &birth{under}
		h.mu.Unlock()
	}
	err := h.owning.acquire(ctx, rec.ID, owner.Born{Disk: rec.ID, Lease: lease, Epoch: rec.epoch})
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[rec.ID]
	if e == nil {
		return nil, fmt.Errorf("disk %q: %w", rec.Name, ErrUnknownDisk)
	}
	if err == nil {
		err = e.err
	}
	return e, err
}
