package disk

import (
	"context"
	"errors"

	"plinth/internal/id"
)

var errNotYet = errors.New("disk: snapshots are not implemented yet")

// MarkRequest asks for a snapshot of a disk.
type MarkRequest struct {
	Disk     *Disk
	Snapshot id.Snapshot
}

// MarkAll takes snapshots of disks at one instant: every write that returned
// before the call is in them, and of writes under way those that one instant
// divides. They are stable at return; the sizes of the disks at that instant
// come back in the order of the requests. Whether a snapshot exists is the
// registry's word: until Settled is called no pass forgets them. After an error
// none of them exists, and what was logged of some is forgotten later.
//
// It waits for destaging where many snapshots of a disk are not destaged yet.
// Errors: ErrBusy, ErrClosed, ErrFailed.
func MarkAll(ctx context.Context, rs []MarkRequest) ([]int64, error) { return nil, errNotYet }

// Settled says that it is known whether the registry names these snapshots.
func (d *Disk) Settled(s ...id.Snapshot) {}

// Await returns when a snapshot is in the map; it asks for destaging where it is
// only in the log. Errors: ErrNoSnapshot, ErrClosed, ErrFailed, ctx's.
func (d *Disk) Await(ctx context.Context, s id.Snapshot) error { return errNotYet }

// Rollback makes the disk what a snapshot is, size included. No other call that
// reads or writes may be under way: those that come meanwhile get ErrBusy. It is
// stable at return. Errors: ErrNoSnapshot, ErrBusy, ErrFailed.
func (d *Disk) Rollback(ctx context.Context, s id.Snapshot) error { return errNotYet }
