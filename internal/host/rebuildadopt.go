package host

import (
	"context"
	"errors"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// adoptRanges bounds the headers that are asked for at once.
const adoptRanges = 64

// adopt makes the segments of the layout known again to the index of a node that was
// made anew, from the headers of the fragments that other spindles have. It is called
// while that index is not complete: births hold the segments until their disks have
// stated what they need, and nothing is deleted. One that is being written may become known
// before its writer publishes it, which takes in its slots then.
func (w *layoutRebuild) adopt(ctx context.Context) error {
	list := w.h.layouts().Lists[w.layout]
	if w.targets[list[0]] == 0 { // its node is the keeper
		return nil
	}
	st, err := w.h.node.Status(ctx)
	if err != nil || st.Index.Complete {
		return err
	}
	known, err := w.known(ctx)
	if err != nil {
		return err
	}
	for i, s := range list {
		if w.targets[s] != 0 {
			continue
		}
		has, err := w.list(ctx, []id.Spindle{s})
		if err != nil {
			return err
		}
		var lacking []id.Segment
		for segment := range has[s] {
			if !known[segment] {
				lacking = append(lacking, segment)
			}
		}
		slices.Sort(lacking)
		for part := range slices.Chunk(lacking, adoptRanges) {
			if err := w.adoptPart(ctx, s, uint8(i), part, known); err != nil {
				return err
			}
		}
	}
	return nil
}

// known returns the segments of the layout that the index knows.
func (w *layoutRebuild) known(ctx context.Context) (map[id.Segment]bool, error) {
	out := make(map[id.Segment]bool)
	for after, more := id.MakeSegment(w.layout, 0), true; more; {
		reply, err := w.describe(ctx, after)
		if err != nil {
			return nil, err
		}
		w.steps.Add(1)
		more = reply.More && len(reply.Segments) > 0
		for _, d := range reply.Segments {
			if after = d.Segment; after.Layout() != w.layout {
				return out, nil
			}
			out[d.Segment] = true
		}
	}
	return out, nil
}

// adoptPart reads headers from one spindle and publishes those that are sound.
func (w *layoutRebuild) adoptPart(ctx context.Context, s id.Spindle, index uint8, part []id.Segment, known map[id.Segment]bool) error {
	r := &datanode.ReadFragmentsRequest{Verify: true, Discard: true}
	for _, segment := range part {
		r.Ranges = append(r.Ranges, datanode.FragmentRange{Spindle: s, Segment: segment, Index: index, Length: datanode.BlockBytes})
	}
	reply, err := w.h.node.ReadFragments(ctx, r)
	if err != nil {
		return err
	}
	w.steps.Add(1)
	for i := range min(len(reply.Results), len(part)) {
		got := &reply.Results[i]
		if got.Err != nil || got.BadHeader || got.Header.Segment != part[i] {
			continue // another spindle may tell
		}
		err := w.h.node.Publish(ctx, &datanode.PublishRequest{
			Segments: []datanode.SegmentEntry{{Header: got.Header, FragmentBytes: got.Bytes}},
		})
		if err != nil && !errors.Is(err, datanode.ErrGone) && !errors.Is(err, datanode.ErrInvalid) {
			return err
		}
		known[part[i]] = err == nil
	}
	return nil
}
