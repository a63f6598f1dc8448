package host

import (
	"context"
	"fmt"
	"time"

	"plinth/internal/id"
)

const (
	// snapshotDisksMax bounds the disks of one CreateSnapshots, so that their rows
	// fit one transaction of the registry: two compares each.
	snapshotDisksMax = 64
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

var errLater = fmt.Errorf("%w: not in this version", ErrInvalid)

// CreateSnapshots makes a snapshot of every disk of the spec, of one instant: a
// write that was acknowledged before the call is in it. Durable at return.
// Errors: ErrInvalid, ErrUnknownDisk, ErrExists, ErrBusy, ErrTooMany; then there
// is none.
func (h *Host) CreateSnapshots(ctx context.Context, spec SnapshotSpec) ([]SnapshotInfo, error) {
	return nil, errLater
}

// Snapshots describes a disk's snapshots in the order in which they were made.
// Errors: ErrUnknownDisk.
func (h *Host) Snapshots(disk string) ([]SnapshotInfo, error) {
	return nil, errLater
}

// RemoveSnapshot removes a snapshot; with wait it waits for its clients to leave,
// as long as ctx lives. Errors: ErrUnknownDisk, ErrUnknownSnapshot, ErrInUse.
func (h *Host) RemoveSnapshot(ctx context.Context, disk, snapshot string, wait bool) error {
	return errLater
}

// RenameSnapshot gives a snapshot another name. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInvalid, ErrExists, ErrInUse.
func (h *Host) RenameSnapshot(ctx context.Context, disk, snapshot, to string) error {
	return errLater
}

// Rollback makes a disk what it was at a snapshot, its size too. Later snapshots
// stay. Errors: ErrUnknownDisk, ErrUnknownSnapshot, ErrInUse while clients are
// connected to the disk.
func (h *Host) Rollback(ctx context.Context, disk, snapshot string) (*DiskInfo, error) {
	return nil, errLater
}

// Clone makes a new disk whose content is the snapshot's. It is independent of
// its parent, which may be removed at once. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInvalid, ErrExists.
func (h *Host) Clone(ctx context.Context, disk, snapshot, name string) (*DiskInfo, error) {
	return nil, errLater
}

// RenameDisk gives a disk another name. Errors: ErrUnknownDisk, ErrInvalid,
// ErrExists, ErrInUse.
func (h *Host) RenameDisk(ctx context.Context, name, to string) (*DiskInfo, error) {
	return nil, errLater
}

// RemoveDiskWithSnapshots is RemoveDisk for a disk that may have snapshots: they
// go too.
func (h *Host) RemoveDiskWithSnapshots(ctx context.Context, name string) error {
	return errLater
}

// Diff lists the bytes from off on in which snapshot to differs from the older
// snapshot from, at most limit extents; 0: some thousand. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInvalid.
func (h *Host) Diff(ctx context.Context, disk, from, to string, off, limit int64) (*DiffReport, error) {
	return nil, errLater
}
