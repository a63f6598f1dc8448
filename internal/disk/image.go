package disk

import (
	"context"

	"plinth/internal/id"
)

// Image is a snapshot of an open disk, to be read.
type Image struct{}

// At opens a snapshot, after Await. The snapshot must exist as long as the image
// is open. Errors: Await's.
func (d *Disk) At(ctx context.Context, s id.Snapshot) (*Image, error) { return nil, errNotYet }

// Size returns the snapshot's size in bytes.
func (i *Image) Size() int64 { return 0 }

// ReadAt fills p from byte off. Errors: Disk.ReadAt's.
func (i *Image) ReadAt(ctx context.Context, p []byte, off int64) error { return errNotYet }

// Extents is Disk.Extents of the snapshot.
func (i *Image) Extents(ctx context.Context, off, n int64, each func(n int64, data bool) bool) error {
	return errNotYet
}

// Changes calls each for consecutive runs of bytes from off on, until they cover
// n bytes or each returns false: dirty says that the run may differ from what
// since, an older snapshot of the same disk, has there. It may end early, after
// the first run. Errors: Disk.ReadAt's.
func (i *Image) Changes(ctx context.Context, since *Image, off, n int64, each func(n int64, dirty bool) bool) error {
	return errNotYet
}

// Close ends the image. It may be called again.
func (i *Image) Close() error { return nil }
