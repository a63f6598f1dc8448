package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/internal/disk"
	"plinth/internal/id"
)

const (
	// snapshotDisksMax bounds the disks of one CreateSnapshots, so that their rows
	// fit one transaction of the registry: two compares each.
	snapshotDisksMax = 60
	// labelsMax bounds a snapshot's labels, the other two their keys and values.
	labelsMax          = 16
	labelKeyBytesMax   = 64
	labelValueBytesMax = 256
)

// SnapshotSpec is a snapshot to be made of one disk, or of several at one
// instant.
type SnapshotSpec struct {
	Disks []string
	// Name is the snapshot's on each disk; empty: the time, UTC.
	Name   string
	Labels map[string]string
	// Expires is when it may be removed by itself; zero: never.
	Expires time.Time
}

// SnapshotInfo describes a snapshot to people and programs.
type SnapshotInfo struct {
	Name    string            `json:"name"`
	Disk    string            `json:"disk"`
	ID      id.Snapshot       `json:"id"`
	Bytes   int64             `json:"bytes"` // size of the disk at its instant
	Created time.Time         `json:"created"`
	Expires *time.Time        `json:"expires,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Group is the same number for snapshots of several disks at one instant; 0: alone.
	Group id.Snapshot `json:"group,omitempty"`
	// State is "ok", or "lost": the disk's log was lost with the snapshot's mark.
	State string `json:"state"`
	// Clients counts NBD connections, also those that compare it with another.
	Clients int `json:"clients"`
	// LogicalBytes is what it maps, ExclusiveBytes what only it maps: at most what
	// removing it gives back. Both as of SpaceAt, the disk's last pass; nil: none yet.
	LogicalBytes   int64      `json:"logical_bytes"`
	ExclusiveBytes int64      `json:"exclusive_bytes"`
	SharedBytes    int64      `json:"shared_bytes"`
	SpaceAt        *time.Time `json:"space_at,omitempty"`
}

// DiffExtent is a run of changed bytes. Zero: it reads as zeros now.
type DiffExtent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Zero   bool  `json:"zero,omitempty"`
}

// DiffReport lists what differs between two snapshots of a disk, in order.
type DiffReport struct {
	Disk string `json:"disk"`
	From string `json:"from"`
	To   string `json:"to"`
	// Bytes is the size of To.
	Bytes   int64        `json:"bytes"`
	Extents []DiffExtent `json:"extents"`
	// Next is where to go on; 0 at the end.
	Next int64 `json:"next,omitempty"`
}

// snapshot is a snapshot of an open disk, as the registry has it.
type snapshot struct {
	snapshotRow
	lost bool // the log was lost with its mark

	// Guarded by Host.mu, and so is the row's name:
	users   int           // clients, and others that need it to stay
	clients int           // NBD connections
	left    chan struct{} // not nil: closed when users falls to 0
	gone    bool          // removed, or being removed
	use     disk.SnapshotUse
	usedAt  time.Time // of use; zero: no pass yet
}

// info describes a snapshot; Host.mu is held.
func (s *snapshot) info(e *export) SnapshotInfo {
	out := SnapshotInfo{
		Name: s.name, Disk: e.now.Name, ID: s.rec.ID, Bytes: s.rec.Bytes, Created: s.rec.Created,
		Expires: s.rec.Expires, Labels: s.rec.Labels, Group: s.rec.Group, State: "ok", Clients: s.clients,
	}
	if s.lost {
		out.State = "lost"
	}
	if at := s.usedAt; !at.IsZero() {
		chunk := int64(e.rec.Chunk)
		out.SpaceAt, out.LogicalBytes = &at, s.use.MappedChunks*chunk
		out.ExclusiveBytes = s.use.OnlyBytes
		out.SharedBytes = (s.use.MappedChunks - s.use.OnlyChunks) * chunk
	}
	return out
}

// Snapshots describes a disk's snapshots in the order in which they were made.
// Errors: ErrUnknownDisk.
func (h *Host) Snapshots(disk string) ([]SnapshotInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byName[disk]
	if e == nil {
		return nil, fmt.Errorf("disk %q: %w", disk, ErrUnknownDisk)
	}
	if errors.Is(e.err, ErrElsewhere) {
		return nil, e.err
	}
	out := make([]SnapshotInfo, 0, len(e.snaps))
	for _, s := range e.snaps {
		out = append(out, s.info(e))
	}
	slices.SortFunc(out, func(a, b SnapshotInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// snapshotOf returns a snapshot that exists; Host.mu is held. Errors: ErrClosed,
// ErrUnknownDisk, ErrUnknownSnapshot.
func (h *Host) snapshotOf(disk, name string) (*export, *snapshot, error) {
	e := h.byName[disk]
	switch {
	case h.closing:
		return nil, nil, ErrClosed
	case e == nil:
		return nil, nil, fmt.Errorf("disk %q: %w", disk, ErrUnknownDisk)
	}
	if errors.Is(e.err, ErrElsewhere) {
		return nil, nil, e.err
	}
	s := e.snaps[name]
	if s == nil || s.gone {
		return nil, nil, fmt.Errorf("disk %q, snapshot %q: %w", disk, name, ErrUnknownSnapshot)
	}
	return e, s, nil
}

// use keeps snapshots of a disk that serves from being removed, until unuse.
func (h *Host) use(disk string, names ...string) (*export, []*snapshot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var e *export
	var all []*snapshot
	for _, name := range names {
		var s *snapshot
		var err error
		if e, s, err = h.snapshotOf(disk, name); err != nil {
			return nil, nil, err
		}
		all = append(all, s)
	}
	if e.err != nil {
		return nil, nil, e.err
	}
	for _, s := range all {
		s.users++
	}
	return e, all, nil
}

func (h *Host) unuse(all []*snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range all {
		s.users--
		if s.users == 0 && s.left != nil {
			close(s.left)
			s.left = nil
		}
	}
}

// nameOf returns a disk's name, which may change.
func (h *Host) nameOf(e *export) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.now.Name
}

// existing returns the snapshots of a disk that exist: those which the registry
// names, as such or as the base of a clone. A pass forgets all others. The rows
// come first: a clone is recorded while its snapshot exists, so that whoever
// misses the row finds the clone.
func (h *Host) existing(ctx context.Context, d id.Disk) (map[id.Snapshot]bool, error) {
	h.renameMu.RLock()
	defer h.renameMu.RUnlock()
	h.mu.Lock()
	if e := h.byID[d]; e != nil {
		e.listed = e.removals
	}
	h.mu.Unlock()
	rows, err := h.catalog.snapshots(ctx, d)
	if err != nil {
		return nil, err
	}
	out := make(map[id.Snapshot]bool, len(rows))
	for _, row := range rows {
		out[row.rec.ID] = true
	}
	recs, err := h.catalog.disks(ctx)
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Base != nil && rec.Base.Disk == d {
			out[rec.Base.Snapshot] = true
		}
	}
	return out, nil
}

// existingOf is existing for passes and views of a disk.
func (h *Host) existingOf(e *export) disk.Existing {
	return func(ctx context.Context) (map[id.Snapshot]bool, error) { return h.existing(ctx, e.rec.ID) }
}
