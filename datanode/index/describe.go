package index

import (
	"context"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	describePage = 256
	// describeMax bounds a page without slots, and the segments that may be
	// named; describeSlotsMax one with slots: some 20 MB.
	describeMax      = 4096
	describeSlotsMax = 256
)

// DescribeSegments says what the index holds about segments. Unknown ones that
// are named have Known false. A description is of one instant only where nobody
// changes the segment meanwhile. Errors: ErrInvalid.
func (x *Index) DescribeSegments(ctx context.Context, r *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	largest := describeMax
	if r.Slots {
		largest = describeSlotsMax
	}
	max, err := page(r.Max, describePage, largest)
	if err != nil {
		return nil, err
	}
	if len(r.Segments) > describeMax {
		return nil, invalid("%d segments", len(r.Segments))
	}
	if err := x.store.Enter(); err != nil {
		return nil, err
	}
	defer x.store.Leave()
	named, more := r.Segments, false
	if len(named) == 0 {
		_, upper := span([]byte{keySegment})
		err := x.scan(append(segmentKey(keySegment, r.After), 0), upper, func(key, _ []byte) (bool, error) {
			more = len(named) == max
			if !more {
				named = append(named, id.Segment(lastNumber(key)))
			}
			return !more, nil
		})
		if err != nil {
			return nil, err
		}
	}
	reply := &datanode.DescribeSegmentsReply{More: more}
	for _, s := range named {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d, err := x.describe(s, r.Slots)
		if err != nil {
			return nil, err
		}
		reply.Segments = append(reply.Segments, *d)
	}
	return reply, nil
}

func (x *Index) describe(s id.Segment, slots bool) (*datanode.SegmentDescription, error) {
	d := &datanode.SegmentDescription{Segment: s}
	row, err := x.segment(s)
	if err != nil || row == nil {
		return d, err
	}
	d.Known, d.State, d.Kind = true, row.state, row.kind
	d.FragmentBytes, d.K, d.M = row.fragmentBytes, row.k, row.m
	d.SlotCount, d.Births = row.slotCount(), row.births
	d.SealedBytes, d.PlainBytes = row.sealedBytes, row.plainBytes
	if !slots {
		return d, nil
	}
	if d.Slots, err = x.slots(s); err != nil {
		return nil, err
	}
	for i := range d.Slots {
		e := &d.Slots[i]
		// In memory first: what is in no table now may be in one a moment later.
		if p := printedSlot(s, e); slices.Contains(x.recent.places(&p.print), p.ref) {
			continue
		}
		found, err := x.store.View(printKey(e.Fingerprint, s, e.Slot), nil)
		if err != nil {
			return nil, err
		}
		if !found {
			d.Dangling = append(d.Dangling, e.Slot)
		}
	}
	d.Lists, err = x.holders(s, row, nil)
	return d, err
}

// holders returns what each disk holds of a segment, births that no list has
// replaced included, by disk. Lists in changed stand for those of the index.
func (x *Index) holders(s id.Segment, row *segmentRow, changed map[holder]*listRow) ([]datanode.DiskList, error) {
	lists := map[id.Disk]*listRow{}
	err := x.lists(s, func(d id.Disk, l *listRow) bool {
		lists[d] = l
		return true
	})
	if err != nil {
		return nil, err
	}
	for h, l := range changed {
		if h.segment == s {
			lists[h.disk] = l
		}
	}
	for _, b := range row.births {
		if _, listed := lists[b.Disk]; !listed {
			lists[b.Disk] = nil // it may hold by birth alone
		}
	}
	var out []datanode.DiskList
	for _, d := range slices.Sorted(maps.Keys(lists)) {
		l, listed := lists[d], lists[d] != nil
		if !listed {
			l = &listRow{}
		}
		held := datanode.DiskList{
			Disk: d, Epoch: l.last.epoch, Seq: l.last.seq, Bits: row.birthBits(d, l.set.epoch, slices.Clone(l.bits)),
		}
		if !listed && len(held.Bits) > 0 {
			held.Epoch = row.birthEpoch(d)
		}
		if len(held.Bits) > 0 {
			out = append(out, held)
		}
	}
	return out, nil
}
