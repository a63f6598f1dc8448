package host

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/nbd"
)

// target is what the name of a snapshot's export means.
type target struct{ disk, snapshot, since string }

const sinceMark = ",since="

// parseTarget takes the name of a snapshot's export apart; false: it is a disk's,
// which has no '@'. Neither '@' nor ',' is in any name.
func parseTarget(name string) (target, bool) {
	disk, snapshot, ok := strings.Cut(name, "@")
	if !ok {
		return target{}, false
	}
	snapshot, since, pair := strings.Cut(snapshot, sinceMark)
	if pair && since == "" {
		since = sinceMark // no snapshot has that name
	}
	return target{disk, snapshot, since}, true
}

func (t target) String() string {
	name := t.disk + "@" + t.snapshot
	if t.since != "" {
		name += sinceMark + t.since
	}
	return name
}

// snapshot returns a snapshot's export, whose device cannot be read yet, and the
// snapshots in use for it, until unuse. Of a pair the first is the newer one.
func (x Exports) snapshot(t target) (nbd.Export, []*snapshot, error) {
	names := []string{t.snapshot}
	if t.since != "" {
		names = append(names, t.since)
	}
	e, used, err := x.Host.use(t.disk, names...)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	s := used[0]
	if len(used) == 2 && used[1].rec.ID >= s.rec.ID {
		x.Host.unuse(used)
		return nbd.Export{}, nil, fmt.Errorf("disk %q: snapshot %q is not older than %q: %w", t.disk, t.since, t.snapshot, ErrUnknownSnapshot)
	}
	return nbd.Export{
		Name: t.String(), Description: fmt.Sprintf("plinth snapshot %d of disk %d of pool %v", s.rec.ID, e.rec.ID, x.Host.keys.ID()),
		Device: &snapshotDevice{disk: e.disk, door: e.door, bytes: s.rec.Bytes, bitmap: t.since}, ReadOnly: true, MultiConn: true,
		PreferredBlockSize: e.rec.Chunk,
	}, used, nil
}

// openSnapshot is Open for a snapshot.
func (x Exports) openSnapshot(ctx context.Context, t target) (nbd.Export, func(), error) {
	h := x.Host
	export, used, err := x.snapshot(t)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	d := export.Device.(*snapshotDevice)
	if err := d.open(ctx, used); err != nil {
		d.close()
		h.unuse(used)
		return nbd.Export{}, nil, err
	}
	h.connect(used, 1)
	return export, func() {
		d.close()
		h.connect(used, -1)
		h.unuse(used)
	}, nil
}

// connect counts clients of snapshots.
func (h *Host) connect(all []*snapshot, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range all {
		s.clients += n
	}
}

// snapshotDevice is a snapshot as NBD sees it.
type snapshotDevice struct {
	disk   *disk.Disk
	door   *gate.Door // the disk's
	bytes  int64
	bitmap string

	image *disk.Image
	since *disk.Image // nil: no bitmap
}

// open opens the images of one or two snapshots; close is due also when it fails.
func (d *snapshotDevice) open(ctx context.Context, used []*snapshot) (err error) {
	if d.image, err = d.disk.At(ctx, used[0].rec.ID); err != nil || len(used) == 1 {
		return err
	}
	d.since, err = d.disk.At(ctx, used[1].rec.ID)
	return err
}

func (d *snapshotDevice) close() {
	for _, i := range []*disk.Image{d.image, d.since} {
		if i != nil {
			_ = i.Close() // it was only read
		}
	}
}

func (d *snapshotDevice) Size() int64 { return d.bytes }

func (d *snapshotDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Read, Bytes: int64(len(p))}); err != nil {
		return err
	}
	return d.image.ReadAt(ctx, p, off)
}

// TryReadAt implements nbd.TryReader.
func (d *snapshotDevice) TryReadAt(p []byte, off int64) bool {
	return tryRead(d.door, p, off, d.image.TryReadAt)
}

func (d *snapshotDevice) WriteAt(context.Context, []byte, int64, bool) error { return nbd.ErrReadOnly }
func (d *snapshotDevice) Trim(context.Context, int64, int64, bool) error     { return nbd.ErrReadOnly }
func (d *snapshotDevice) Zero(context.Context, int64, int64, bool, bool) error {
	return nbd.ErrReadOnly
}
func (d *snapshotDevice) Flush(context.Context) error { return nil }

// Extents implements nbd.Extenter.
func (d *snapshotDevice) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Other}); err != nil {
		return err
	}
	return d.image.Extents(ctx, off, n, func(n int64, data bool) bool {
		return each(nbd.Extent{N: n, Hole: !data, Zero: !data})
	})
}

// Prefetch implements nbd.Prefetcher.
func (d *snapshotDevice) Prefetch(ctx context.Context, off, n int64) error {
	return prefetch(ctx, off, n, d.ReadAt)
}

// Bitmap implements nbd.Changer.
func (d *snapshotDevice) Bitmap() string { return d.bitmap }

// Changes implements nbd.Changer.
func (d *snapshotDevice) Changes(ctx context.Context, off, n int64, each func(int64, bool) bool) error {
	if err := d.door.Enter(ctx, gate.Op{Kind: gate.Other}); err != nil {
		return err
	}
	return d.image.Changes(ctx, d.since, off, n, each)
}

// Rollback makes a disk what it was at a snapshot, its size too. Later snapshots
// stay. Clients that come meanwhile wait. Errors: ErrUnknownDisk,
// ErrUnknownSnapshot, ErrInUse while clients are connected to the disk.
func (h *Host) Rollback(ctx context.Context, name, snapshot string) (*DiskInfo, error) {
	e, used, err := h.use(name, snapshot)
	if err != nil {
		return nil, err
	}
	defer h.unuse(used)
	if err := e.disk.Await(ctx, used[0].rec.ID); err != nil {
		return nil, fmt.Errorf("disk %q, snapshot %q: %w", name, snapshot, err)
	}
	if err := h.beginChange(ctx); err != nil {
		return nil, err
	}
	defer h.endChange()
	now, free, err := h.reserve(name, (*export).detached)
	if err != nil {
		return nil, err
	}
	defer free()
	if now != e {
		return nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	if err := h.stillThere(ctx, e, used[0]); err != nil {
		return nil, err
	}
	// Once it is in the log it must be finished, or the disk fails.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(h.life, cancel)()
	err = e.disk.Rollback(lasting, used[0].rec.ID)
	if errors.Is(err, disk.ErrBusy) {
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return nil, fmt.Errorf("roll disk %q back to snapshot %q: %w", name, snapshot, err)
	}
	return h.info(e), nil
}

// stillThere returns ErrUnknownSnapshot if the registry does not name a snapshot
// any more, because its removal only seemed to fail: passes forget it, and a
// rollback to it that is in the log could never be done.
func (h *Host) stillThere(ctx context.Context, e *export, s *snapshot) error {
	h.mu.Lock()
	name, want := s.name, s.revision
	h.mu.Unlock()
	_, revision, err := h.catalog.get(ctx, snapKey(e.rec.ID, name))
	if err == nil && revision != want {
		err = fmt.Errorf("disk %q, snapshot %q: %w", h.nameOf(e), name, ErrUnknownSnapshot)
	}
	return err
}
