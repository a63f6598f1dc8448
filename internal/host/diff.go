package host

import (
	"context"
	"fmt"
)

const (
	// diffExtentsDefault and diffExtentsMax bound the extents of a DiffReport.
	diffExtentsDefault = 4096
	diffExtentsMax     = 65536
)

// Diff lists the bytes from off on in which snapshot to differs from the older
// snapshot from, at most limit extents; 0: some thousand. A report may end early:
// Next is where to go on. Errors: ErrUnknownDisk, ErrUnknownSnapshot, ErrInvalid.
func (h *Host) Diff(ctx context.Context, disk, from, to string, off, limit int64) (*DiffReport, error) {
	if limit == 0 {
		limit = diffExtentsDefault
	}
	if limit < 0 || limit > diffExtentsMax {
		return nil, fmt.Errorf("%w: a difference of %d extents: use 1 to %d", ErrInvalid, limit, diffExtentsMax)
	}
	e, used, err := h.use(disk, to, from)
	if err != nil {
		return nil, err
	}
	defer h.unuse(used)
	bytes := used[0].rec.Bytes
	if used[1].rec.ID >= used[0].rec.ID {
		return nil, fmt.Errorf("%w difference: snapshot %q is not older than %q", ErrInvalid, from, to)
	}
	if off < 0 || off > bytes {
		return nil, fmt.Errorf("%w offset %d: snapshot %q has %d bytes", ErrInvalid, off, to, bytes)
	}
	d := &snapshotDevice{disk: e.disk, door: e.door, bytes: bytes}
	defer d.close()
	if err := d.open(ctx, used); err != nil {
		return nil, fmt.Errorf("disk %q: %w", disk, err)
	}
	r := &DiffReport{Disk: disk, From: from, To: to, Bytes: bytes, Extents: []DiffExtent{}}
	if r.Next, err = d.diff(ctx, off, int(limit), &r.Extents); err != nil {
		return nil, fmt.Errorf("disk %q: %w", disk, err)
	}
	if r.Next == bytes {
		r.Next = 0
	}
	return r, nil
}

// diffWalksMax bounds the walks of one report: where nothing has changed there is
// no extent to end it.
const diffWalksMax = 64

// diff appends what has changed from off on and returns where it stopped.
func (d *snapshotDevice) diff(ctx context.Context, off int64, limit int, out *[]DiffExtent) (int64, error) {
	for walks := 0; off < d.bytes && walks < diffWalksMax && len(*out) < limit; walks++ {
		dirty := []DiffExtent(nil)
		at := off
		err := d.Changes(ctx, off, d.bytes-off, func(n int64, changed bool) bool {
			n = min(n, d.bytes-at)
			if changed {
				dirty = append(dirty, DiffExtent{Offset: at, Length: n})
			}
			at += n
			return len(*out)+len(dirty) < limit
		})
		if err != nil {
			return 0, err
		}
		for _, x := range dirty {
			if stop, err := d.cut(ctx, x, limit, out); err != nil || stop < x.Offset+x.Length {
				return stop, err
			}
		}
		off = at
	}
	return off, nil
}

// cut appends the parts of a changed extent, data or zeros, and returns where it
// stopped.
func (d *snapshotDevice) cut(ctx context.Context, x DiffExtent, limit int, out *[]DiffExtent) (int64, error) {
	off, end := x.Offset, x.Offset+x.Length
	for off < end && len(*out) < limit {
		err := d.image.Extents(ctx, off, end-off, func(n int64, data bool) bool {
			n = min(n, end-off)
			if last := len(*out) - 1; last >= 0 && (*out)[last].Offset+(*out)[last].Length == off && (*out)[last].Zero == !data {
				(*out)[last].Length += n
			} else if len(*out) == limit {
				return false
			} else {
				*out = append(*out, DiffExtent{off, n, !data})
			}
			off += n
			return off < end
		})
		if err != nil {
			return 0, err
		}
	}
	return off, nil
}
