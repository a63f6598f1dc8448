package disk

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"plinth/blockmap"
	"plinth/internal/id"
	"plinth/internal/ramcache"
)

// Image is a snapshot of an open disk, to be read. Its methods may be called at
// once. It pins nothing: the snapshot must exist as long as it is used.
type Image struct {
	d        *Disk
	snapshot id.Snapshot
	view     *blockmap.View
	memo     *ramcache.Memo // of view, which never changes
	ahead    *ahead
	closed   atomic.Bool
}

// At opens a snapshot. One that is not in the map yet is waited for, so that no
// image ever looks at the write buffer. Errors: Await's.
func (d *Disk) At(ctx context.Context, s id.Snapshot) (*Image, error) {
	view, err := d.await(ctx, s)
	if err != nil {
		return nil, err
	}
	return &Image{d: d, snapshot: s, view: view, memo: d.pool.RAM.NewMemo(), ahead: newAhead(d.pool)}, nil
}

func (i *Image) source() source { return source{i.view, i.memo} }

// Snapshot returns the snapshot's number.
func (i *Image) Snapshot() id.Snapshot { return i.snapshot }

// Size returns the snapshot's size in bytes: the disk's at its instant.
func (i *Image) Size() int64 { return i.view.Bytes() }

// Close ends the image; later calls get ErrClosed. It may be called again.
func (i *Image) Close() error {
	i.closed.Store(true)
	return nil
}

// enter admits a call for a range of bytes; d.reads.Done ends it.
func (i *Image) enter(off, n int64) error {
	if i.closed.Load() {
		return ErrClosed
	}
	if size := i.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d of disk %s, snapshot %d: %w", n, off, i.d.cfg.Name, i.snapshot, ErrOutOfRange)
	}
	return i.d.enterRead()
}

// ReadAt fills p from byte off. Errors: Disk.ReadAt's.
func (i *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := i.enter(off, int64(len(p))); err != nil {
		return err
	}
	defer i.d.reads.Done()
	r := readers.Get().(*reader)
	defer readers.Put(r)
	i.ahead.begin(ctx, off, int64(len(p)))
	first := off
	r.stored = false
	for len(p) > 0 {
		n := min(len(p), portionBytesMax-int(off%int64(i.d.size)))
		if err := i.read(ctx, r, p[:n], off); err != nil {
			return fmt.Errorf("snapshot %d: %w", i.snapshot, err)
		}
		p, off = p[n:], off+int64(n)
	}
	i.readAhead(first, off-first, !r.stored)
	return i.d.mayReply()
}

func (i *Image) read(ctx context.Context, r *reader, p []byte, off int64) error {
	r.mapped = r.mapped[:0]
	defer func() { clear(r.mapped) }()
	for pc := range i.d.size.Split(off, int64(len(p))) {
		r.mapped = append(r.mapped, fill{lba: pc.LBA, dst: p[:pc.Len:pc.Len], off: pc.Off})
		p = p[pc.Len:]
	}
	return i.d.fillMapped(ctx, i.source(), r, r.mapped)
}

// TryReadAt is Disk.TryReadAt of the snapshot.
func (i *Image) TryReadAt(p []byte, off int64) bool {
	if i.enter(off, int64(len(p))) != nil {
		return false
	}
	defer i.d.reads.Done()
	rest := p
	for pc := range i.d.size.Split(off, int64(len(p))) {
		f := fill{lba: pc.LBA, dst: rest[:pc.Len:pc.Len], off: pc.Off}
		rest = rest[pc.Len:]
		if !i.d.fillRAM(i.memo, &f) {
			return false
		}
	}
	i.readAhead(off, int64(len(p)), true)
	return i.d.mayReply() == nil
}

// Extents is Disk.Extents of the snapshot.
func (i *Image) Extents(ctx context.Context, off, n int64, each func(n int64, data bool) bool) error {
	if err := i.enter(off, n); err != nil {
		return err
	}
	defer i.d.reads.Done()
	return i.d.tellRuns(ctx, i.view.MappedRuns, nil, off, n, each)
}

// Changes calls each for consecutive runs of bytes from off on, until they cover
// n bytes or each returns false: dirty says that the run differs from what since,
// an older snapshot of the same disk, has there; what is beyond its end differs
// where it is not zeros. Runs change at chunks' borders. It may end early, after the
// first run, when the map has much to say. Errors: Disk.ReadAt's.
func (i *Image) Changes(ctx context.Context, since *Image, off, n int64, each func(n int64, dirty bool) bool) error {
	if since.d != i.d {
		return errors.New("snapshots of two disks are not compared")
	}
	if err := i.enter(off, n); err != nil {
		return err
	}
	defer i.d.reads.Done()
	walk := func(first, end id.LBA, rowsMax int, each func(blockmap.Extent)) (id.LBA, error) {
		return i.view.Changes(since.view, first, end, rowsMax, each)
	}
	return i.d.tellRuns(ctx, walk, nil, off, n, each)
}
