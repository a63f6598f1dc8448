package disk

import (
	"context"
	"fmt"

	"plinth/blockmap"
	"plinth/internal/id"
	"plinth/internal/object"
)

// View is a disk at one instant, for verify: all that its map and its newest
// checkpoint refer to. While it is open nothing may be reclaimed.
type View struct {
	d    *Disk
	snap *blockmap.Snapshot
	drop map[id.Snapshot]bool // what does not exist
	// Objects are those of the newest checkpoint, the manifest last.
	Objects []blockmap.Object
	// Kept are objects that the disk holds too: its map may still read them.
	Kept []blockmap.Object
}

// Need is one thing that a disk needs of a segment.
type Need struct {
	Disk   id.Disk
	Name   string // the disk's
	Chunk  uint32 // the disk's chunk size
	LBA    id.LBA
	Gen    id.Gen
	Object bool // of a checkpoint, not a chunk
	Entry  blockmap.Entry
}

func (n *Need) String() string {
	if n.Object {
		return fmt.Sprintf("checkpoint of disk %s", n.Name)
	}
	return fmt.Sprintf("disk %s, chunk %d", n.Name, n.LBA)
}

// View opens a view, which includes the snapshots that exist; nil: all. Errors:
// ErrClosed, ErrFailed.
func (d *Disk) View(ctx context.Context, exists Existing) (*View, error) {
	v, marks, unsettled, err := d.view()
	if err != nil {
		return nil, err
	}
	if v.drop, err = forgotten(ctx, marks, unsettled, exists); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

func (d *Disk) view() (*View, []blockmap.SnapshotRow, map[id.Snapshot]struct{}, error) {
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil {
		return nil, nil, nil, err
	}
	if d.m == nil { // the snapshot that it reads is another disk's
		return &View{d: d}, nil, nil, nil
	}
	snap, marks, unsettled, err := d.snapshotMap()
	if err != nil {
		return nil, nil, nil, err
	}
	return &View{d: d, snap: snap, Objects: d.checkpoint.objects, Kept: d.m.Objects()}, marks, unsettled, nil
}

// Close ends the view.
func (v *View) Close() {
	if v.snap != nil {
		v.snap.Close()
	}
}

// Each calls f for all that the disk and its snapshots need of segments from first
// to last.
func (v *View) Each(ctx context.Context, first, last id.Segment, f func(n *Need) error) error {
	n := Need{Disk: v.d.cfg.ID, Name: v.d.cfg.Name, Chunk: uint32(v.d.size), Object: true}
	for _, o := range v.Objects {
		segments, err := object.Segments(o)
		if err != nil {
			return err
		}
		for _, s := range segments {
			if first <= s && s <= last {
				n.Entry.Ref = id.Ref{Segment: s}
				if err := f(&n); err != nil {
					return err
				}
			}
		}
	}
	if v.snap == nil {
		return nil
	}
	n.Object = false
	_, err := v.snap.ScanKept(ctx, v.drop, func(e *blockmap.Version) error {
		if s := e.Entry.Ref.Segment; s < first || s > last {
			return nil
		}
		n.LBA, n.Gen, n.Entry = e.LBA, e.Gen, e.Entry
		return f(&n)
	})
	return err
}

// Name returns the disk's name.
func (v *View) Name() string { return v.d.cfg.Name }

// ID returns the disk's number.
func (v *View) ID() id.Disk { return v.d.cfg.ID }
