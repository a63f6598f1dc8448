package shelf

import (
	"context"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// sighting is a fragment of a segment.
type sighting struct {
	spindle id.Spindle
	index   uint8
}

// adopt makes known to the index what lies on the spindles and is unknown to it:
// segments whose writer died before it published them, and what a spindle that
// was absent brings back of segments deleted meanwhile. Their owners' passes, or
// Reclaim, then decide. It runs before the node serves, so that no writer is at
// work. What it cannot read stays where it is: a leak, and it is logged.
func (s *Shelf) adopt(ctx context.Context) error {
	unknown, err := s.unknown(ctx)
	if err != nil || len(unknown) == 0 {
		return err
	}
	var entries []datanode.SegmentEntry
	for _, segment := range slices.Sorted(maps.Keys(unknown)) {
		entry, ok, err := s.describe(ctx, segment, unknown[segment])
		if err != nil {
			return err
		}
		if !ok {
			s.logger.Warn("segment is not in the index and has no readable header", "segment", segment.String(),
				"fragments", len(unknown[segment]))
			continue
		}
		entries = append(entries, entry)
	}
	s.logger.Info("segments were on the spindles and not in the index", "segments", len(entries))
	return s.index.Adopt(ctx, entries)
}

// unknown returns the segments with fragments and without a row in the index.
func (s *Shelf) unknown(ctx context.Context) (map[id.Segment][]sighting, error) {
	found := map[id.Segment][]sighting{}
	for _, status := range s.spindles.Status() {
		if status.State != datanode.SpindleOK {
			continue
		}
		r := &datanode.ListFragmentsRequest{Spindle: status.Spindle}
		for more := true; more; {
			page, err := s.spindles.ListFragments(ctx, r)
			if err != nil {
				return nil, err
			}
			for _, f := range page.Fragments {
				if s.opts.keeps(f.Segment, f.Index, status.Spindle) {
					found[f.Segment] = append(found[f.Segment], sighting{status.Spindle, f.Index})
				}
				r.Started, r.Segment, r.Index = true, f.Segment, f.Index
			}
			more = page.More
		}
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(found)), datanode.SegmentsMax) {
		reply, err := s.index.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: part})
		if err != nil {
			return nil, err
		}
		for _, d := range reply.Segments {
			if d.Known {
				delete(found, d.Segment)
			}
		}
	}
	return found, nil
}

// describe reads a segment's header from the first of its fragments that has a
// sound one.
func (s *Shelf) describe(ctx context.Context, segment id.Segment, fragments []sighting) (datanode.SegmentEntry, bool, error) {
	for _, f := range fragments {
		reply, err := s.spindles.ReadFragments(ctx, &datanode.ReadFragmentsRequest{
			Ranges: []datanode.FragmentRange{{Spindle: f.spindle, Segment: segment, Index: f.index, Length: datanode.BlockBytes}},
			Verify: true, Discard: true,
		})
		if err != nil {
			return datanode.SegmentEntry{}, false, err
		}
		if got := reply.Results[0]; got.Err == nil && !got.BadHeader {
			return datanode.SegmentEntry{Header: got.Header, FragmentBytes: got.Bytes}, true, nil
		}
	}
	return datanode.SegmentEntry{}, false, nil
}
