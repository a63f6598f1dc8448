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
	// Objects are those of the newest checkpoint, the manifest last.
	Objects []blockmap.Object
}

// Need is one thing that a disk needs of a segment.
type Need struct {
	Disk   id.Disk
	Name   string // the disk's
	Chunk  uint32 // the disk's chunk size
	LBA    id.LBA
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
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil {
		return nil, err
	}
	snap, err := d.m.Snapshot()
	if err != nil {
		return nil, err
	}
	return &View{d, snap, d.checkpoint.objects}, nil
}

// Close ends the view.
func (v *View) Close() { v.snap.Close() }

// Each calls f for all that the disk needs of segments from first to last.
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
	n.Object = false
	return v.snap.Scan(ctx, func(lba id.LBA, e blockmap.Entry) error {
		if s := e.Ref.Segment; s < first || s > last {
			return nil
		}
		n.LBA, n.Entry = lba, e
		return f(&n)
	})
}

// Name returns the disk's name.
func (v *View) Name() string { return v.d.cfg.Name }
