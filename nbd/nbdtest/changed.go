package nbdtest

import (
	"context"

	"plinth/nbd"
)

// Changed is a device with a bitmap.
type Changed struct {
	nbd.Device
	Name string // of the bitmap
	// Dirty are offsets and lengths of what it says has changed, ascending.
	Dirty [][2]int64
}

// Bitmap implements nbd.Changer.
func (d *Changed) Bitmap() string { return d.Name }

// Changes implements nbd.Changer.
func (d *Changed) Changes(_ context.Context, off, n int64, each func(n int64, dirty bool) bool) error {
	end := off + n
	for _, r := range d.Dirty {
		from, to := max(r[0], off), min(r[0]+r[1], end)
		if from >= to {
			continue
		}
		if off < from && !each(from-off, false) || !each(to-from, true) {
			return nil
		}
		off = to
	}
	if off < end {
		each(end-off, false)
	}
	return nil
}

// Extents implements nbd.Extenter as the device does, or says that all is data.
func (d *Changed) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if x, ok := d.Device.(nbd.Extenter); ok {
		return x.Extents(ctx, off, n, each)
	}
	each(nbd.Extent{N: n})
	return nil
}
