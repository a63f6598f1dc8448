package host

import (
	"context"

	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/nbd"
)

// device is a disk as NBD sees it, an nbd.TryReader too: every request enters at its
// door.
type device struct {
	*disk.Disk
	door    *gate.Door
	changes changer // Disk, or it for one change
}

// changer changes a disk.
type changer interface {
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	Trim(ctx context.Context, off, n int64, fua bool) error
	Zero(ctx context.Context, off, n int64, fua bool) error
}

func (d device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Read, Bytes: int64(len(p))}); err != nil {
		return err
	}
	return d.Disk.ReadAt(ctx, p, off)
}

// TryReadAt implements nbd.TryReader.
func (d device) TryReadAt(p []byte, off int64) bool {
	return tryRead(d.door, p, off, d.Disk.TryReadAt)
}

// tryRead is a try that counts only where it succeeds.
func tryRead(door *gate.Door, p []byte, off int64, try func([]byte, int64) bool) bool {
	op := gate.Op{Kind: gate.Read, Bytes: int64(len(p))}
	if !door.TryEnter(op) {
		return false
	}
	if !try(p, off) {
		door.GiveBack(op)
		return false
	}
	return true
}

func (d device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Write, Bytes: int64(len(p))}); err != nil {
		return err
	}
	return d.changes.WriteAt(ctx, p, off, fua)
}

func (d device) Trim(ctx context.Context, off, n int64, fua bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Clear}); err != nil {
		return err
	}
	return d.changes.Trim(ctx, off, n, fua)
}

func (d device) Zero(ctx context.Context, off, n int64, _, fua bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Clear}); err != nil {
		return err
	}
	return d.changes.Zero(ctx, off, n, fua)
}

func (d device) Flush(ctx context.Context) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Other}); err != nil {
		return err
	}
	return d.Disk.Flush(ctx)
}

// Once implements forward.Once.
func (d device) Once(tag id.Tag) nbd.Device {
	d.changes = d.Disk.Once(tag)
	return d
}

// Extents implements nbd.Extenter.
func (d device) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Other}); err != nil {
		return err
	}
	return d.Disk.Extents(ctx, off, n, func(n int64, data bool) bool {
		return each(nbd.Extent{N: n, Hole: !data, Zero: !data})
	})
}

// ZeroIsFast implements nbd.FastZeroer: a range of any length is one record.
func (d device) ZeroIsFast(int64, int64, bool) bool { return true }

// prefetchBytesMax bounds what one Prefetch reads, prefetchPieceBytes what it
// holds.
const (
	prefetchBytesMax   = 32 << 20
	prefetchPieceBytes = 1 << 20
)

// Prefetch implements nbd.Prefetcher: it reads the range's beginning into the RAM
// cache.
func (d device) Prefetch(ctx context.Context, off, n int64) error {
	return prefetch(ctx, off, n, d.ReadAt)
}

func prefetch(ctx context.Context, off, n int64, read func(context.Context, []byte, int64) error) error {
	n = min(n, prefetchBytesMax)
	buf := make([]byte, min(n, prefetchPieceBytes))
	for n > 0 {
		k := min(n, int64(len(buf)))
		if err := read(ctx, buf[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
