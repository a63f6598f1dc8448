package disk

import (
	"context"

	"plinth/internal/id"
)

// HoldLists keeps the disk from giving anything up until ReleaseLists was called
// as often: other disks rely on what its lists hold. A pass that finds lists held
// changes none of them.
func (d *Disk) HoldLists() {}

// ReleaseLists ends one HoldLists.
func (d *Disk) ReleaseLists() {}

// CloneRecord returns the checkpoint record of a new disk that begins as a
// snapshot of this one, false if the snapshot is in no checkpoint yet. The
// caller has called HoldLists before, and ReleaseLists when the new disk has
// stated what it needs.
func (d *Disk) CloneRecord(ctx context.Context, s id.Snapshot) (value []byte, ok bool, err error) {
	return nil, false, errNotYet
}
