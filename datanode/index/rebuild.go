package index

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

// Rebuild makes a new incarnation of an index in dir, whatever is there now,
// from a walk over the spindles: walk calls its argument with each segment, known
// by its fragments' headers only. It is incomplete: it holds every segment by its
// births, finds no fingerprints until owners state their lists with slots, and
// deletes nothing before CompleteIndex. Interrupted, it leaves what Open refuses
// with ErrInterrupted.
func Rebuild(ctx context.Context, fs vfs.FS, dir string, deps Deps, opts Options, walk func(func(datanode.SegmentEntry) error) error) (*Index, error) {
	if err := kv.Remove(fs, dir); err != nil {
		return nil, fmt.Errorf("rebuild index in %s: remove the old one: %w", dir, err)
	}
	opts.Create = true
	x, err := open(fs, dir, deps, opts)
	if err != nil {
		return nil, err
	}
	if err := x.rebuild(ctx, walk); err != nil {
		return nil, errors.Join(fmt.Errorf("rebuild index in %s: %w", dir, err), x.store.Close())
	}
	x.startFilter()
	return x, nil
}

func (x *Index) rebuild(ctx context.Context, walk func(func(datanode.SegmentEntry) error) error) error {
	s := super{incarnation: newIncarnation(), building: true}
	if err := x.putSuper(s); err != nil {
		return err
	}
	var entries []datanode.SegmentEntry
	err := walk(func(e datanode.SegmentEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := checkEntry(&e); err != nil {
			// Not known, it is not deleted either.
			x.log.Warn("segment with an impossible header", "segment", e.Header.Segment.String(), "error", err)
			return nil
		}
		if entries = append(entries, e); len(entries) < datanode.SegmentsMax {
			return nil
		}
		err := x.adopt(entries)
		entries = entries[:0]
		return err
	})
	if err != nil {
		return err
	}
	if err := x.adopt(entries); err != nil {
		return err
	}
	s.building = false
	return x.putSuper(s)
}
