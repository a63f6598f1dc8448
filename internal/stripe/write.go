package stripe

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// writeAttemptsMax bounds the layouts that one Write tries. Each attempt finds
// at least one more bad spindle, and the next Write remembers them.
const writeAttemptsMax = 8

// Write stores all fragments of a segment, which are on stable media when it
// returns nil, and sets seg.Header.Segment. It takes the layouts whose spindles
// all work in turn. number returns a segment number that was never used; when a
// spindle fails or is full, Write goes on with another layout and another
// number, and discards the fragments already written. It blocks for the node and
// for number.
//
// Errors: ErrNoSpace and ErrSpindle when no layout is left, those of number,
// and any other of the node (ErrStaleLayout, ErrClosed) at once.
func (s *Store) Write(ctx context.Context, seg *Segment, number func(context.Context) (uint64, error)) error {
	return s.WriteTo(ctx, seg, number, nil)
}

// WriteTo is Write into usual layouts for which allowed, if not nil, is true.
func (s *Store) WriteTo(ctx context.Context, seg *Segment, number func(context.Context) (uint64, error), allowed func(id.Layout) bool) error {
	g := s.geometry
	if int(seg.Header.K) != g.K || int(seg.Header.M) != g.M || len(seg.Fragments) != g.Width() {
		return datanode.Errorf(datanode.ErrInvalid, "write segment of geometry %d+%d with %d fragments under layouts of %s",
			seg.Header.K, seg.Header.M, len(seg.Fragments), g)
	}
	defer s.begin()()
	full := make(map[id.Spindle]bool)
	var last *datanode.Error
	for range writeAttemptsMax {
		layouts := s.now.Load()
		layout, ok := s.pick(layouts, full, allowed)
		if !ok {
			break
		}
		n, err := number(ctx)
		if err != nil {
			return fmt.Errorf("write segment: take a number: %w", err)
		}
		if n == 0 || n > id.SegmentNumberMax {
			return datanode.Errorf(datanode.ErrInvalid, "write segment: number %d is out of range", n)
		}
		seg.Header.Segment = id.MakeSegment(layout, n)
		failure, err := s.writeOnce(ctx, layouts, seg, full)
		if err != nil || failure != nil {
			s.Discard(ctx, seg.Header.Segment)
		}
		if err != nil {
			return fmt.Errorf("write segment %s: %w", seg.Header.Segment, err)
		}
		if failure == nil {
			return nil
		}
		last = failure
	}
	base := datanode.ErrSpindle
	if len(full) > 0 {
		base = datanode.ErrNoSpace
	}
	if last == nil {
		return datanode.Errorf(base, "write segment: each of %d layouts has a failed spindle", len(s.now.Load().Lists))
	}
	return datanode.Errorf(base, "write segment: no layout is left after %q", last.Text)
}

// Discard gives up a segment that was written, in part or as a whole, and will
// not be published. It also does so when ctx has ended. What cannot be discarded
// now (a spindle does not answer) is left to the node, which finds at its next
// start what no index knows.
func (s *Store) Discard(ctx context.Context, seg id.Segment) {
	_ = s.node.DiscardFragments(context.WithoutCancel(ctx), &datanode.DiscardFragmentsRequest{Segment: seg})
}

// writeOnce writes all fragments under the segment's number. A failure is of a
// spindle, which is then avoided; err is of anything else.
func (s *Store) writeOnce(ctx context.Context, layouts *Layouts, seg *Segment, full map[id.Spindle]bool) (failure *datanode.Error, err error) {
	list := layouts.Lists[seg.Header.Segment.Layout()]
	r := &datanode.WriteFragmentsRequest{Header: seg.Header, LayoutVersion: layouts.Version}
	for i, data := range seg.Fragments {
		r.Fragments = append(r.Fragments, datanode.Fragment{Spindle: list[i], Index: uint8(i), Data: data})
	}
	reply, err := s.node.WriteFragments(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := answers("write", len(reply.Errors), len(list)); err != nil {
		return nil, err
	}
	for i, e := range reply.Errors {
		if e == nil {
			continue
		}
		switch e.Code {
		case datanode.CodeNoSpace:
			full[list[i]] = true
		case datanode.CodeSpindle, datanode.CodeUnreachable, datanode.CodeCorrupt, datanode.CodeUnknown:
			s.markFailed(list[i])
		default:
			return nil, fmt.Errorf("fragment %d on spindle %d: %w", i, list[i], e)
		}
		failure = e
	}
	return failure, nil
}

// pick returns the next usual layout without a failed spindle or one in avoid, and
// without a slow one, or one that is being emptied, if there is such a layout. A spare
// one is taken only if there is no other.
func (s *Store) pick(layouts *Layouts, avoid map[id.Spindle]bool, allowed func(id.Layout) bool) (id.Layout, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := s.next.Add(1) - 1
	slow, draining := s.slow(), s.Draining()
	for _, soft := range [][]id.Spindle{slices.Concat(slow, draining), draining} {
		if len(soft) == 0 {
			continue
		}
		wide := make(map[id.Spindle]bool, len(avoid)+len(soft))
		maps.Copy(wide, avoid)
		for _, sp := range soft {
			wide[sp] = true
		}
		if l, ok := s.pickFrom(layouts, Usual, start, wide, allowed); ok {
			return l, true
		}
	}
	if l, ok := s.pickFrom(layouts, Usual, start, avoid, allowed); ok || allowed != nil {
		return l, ok
	}
	return s.pickFrom(layouts, Spare, start, avoid, nil)
}

// pickFrom goes through the layouts of a kind.
func (s *Store) pickFrom(layouts *Layouts, kind Kind, start uint64, avoid map[id.Spindle]bool, allowed func(id.Layout) bool) (id.Layout, bool) {
	of := layouts.of(kind)
	for i := range of {
		l := of[(start+uint64(i))%uint64(len(of))]
		usable := allowed == nil || allowed(l)
		for _, spindle := range layouts.Lists[l] {
			usable = usable && !s.failed[spindle] && !avoid[spindle]
		}
		if usable {
			return l, true
		}
	}
	return 0, false
}
