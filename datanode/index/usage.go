package index

import (
	"context"
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"plinth/datanode"
	"plinth/internal/id"
)

const usagePage = 8192

// usageCheck is how many segments are walked between looks at the context.
const usageCheck = 1024

// Usage walks segments with what is held of them: rows of segments and of lists
// side by side, no slot tables. Errors: ErrInvalid, those of the context.
func (x *Index) Usage(ctx context.Context, r *datanode.UsageRequest) (*datanode.UsageReply, error) {
	max, err := page(r.Max, usagePage, usagePage)
	if err != nil {
		return nil, err
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	snap := x.store.DB.NewSnapshot()
	defer snap.Close()
	lists, err := newListWalk(x, snap, r.After)
	if err != nil {
		return nil, err
	}
	defer lists.it.Close()
	_, upper := span([]byte{keySegment})
	segments, err := snap.NewIter(&pebble.IterOptions{LowerBound: append(segmentKey(keySegment, r.After), 0), UpperBound: upper})
	if err != nil {
		return nil, x.store.Wrap(err)
	}
	defer segments.Close()
	reply := &datanode.UsageReply{}
	for ok := segments.First(); ok; ok = segments.Next() {
		if reply.More = len(reply.Segments) == max; reply.More {
			break
		}
		if len(reply.Segments)%usageCheck == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		v, err := segments.ValueAndErr()
		if err != nil {
			return nil, x.store.Wrap(err)
		}
		row, err := decodeSegment(v)
		if err != nil {
			return nil, err
		}
		use, err := lists.use(id.Segment(lastNumber(segments.Key())), row)
		if err != nil {
			return nil, err
		}
		reply.Segments = append(reply.Segments, use)
	}
	if err := segments.Error(); err != nil {
		return nil, x.store.Wrap(err)
	}
	return reply, nil
}

// listWalk reads lists in the order of segments, and adds up.
type listWalk struct {
	x     *Index
	it    *pebble.Iterator
	tally tally
}

func newListWalk(x *Index, snap *pebble.Snapshot, after id.Segment) (*listWalk, error) {
	_, upper := span([]byte{keyList})
	_, lower := span(segmentKey(keyList, after)) // past all lists of that one
	if lower == nil || after == ^id.Segment(0) {
		lower = upper
	}
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, x.store.Wrap(err)
	}
	it.First()
	return &listWalk{x: x, it: it}, nil
}

// use adds up one segment, which is above all before.
func (w *listWalk) use(s id.Segment, row *segmentRow) (datanode.SegmentUse, error) {
	n := row.slotCount()
	w.tally.reset(n)
	for ; w.it.Valid(); w.it.Next() {
		key := w.it.Key()
		of := id.Segment(binary.BigEndian.Uint64(key[1:]))
		if of > s {
			break
		}
		if of < s {
			continue // of a segment that is not known
		}
		v, err := w.it.ValueAndErr()
		if err != nil {
			return datanode.SegmentUse{}, w.x.store.Wrap(err)
		}
		list, err := decodeList(v)
		if err != nil {
			return datanode.SegmentUse{}, err
		}
		w.tally.list(id.Disk(lastNumber(key)), list)
	}
	if err := w.it.Error(); err != nil {
		return datanode.SegmentUse{}, w.x.store.Wrap(err)
	}
	w.tally.births(row.births)
	u := datanode.SegmentUse{
		Segment: s, State: row.state, Kind: row.kind, Slots: n, SealedBytes: int64(row.dataBytes),
		StoredBytes: int64(row.k+row.m) * int64(w.x.deps.Allocated(int(row.fragmentBytes))),
	}
	u.LiveSlots, u.Disks = w.tally.sum()
	return u, nil
}
