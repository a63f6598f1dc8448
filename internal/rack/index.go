package rack

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// ask makes a call to a member under a disk's epoch.
func (r *Rack) ask(ctx context.Context, m *member, d id.Disk, e id.Epoch, do func(context.Context) error) error {
	return m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
		if err := r.under(ctx, m, d, e); err != nil {
			return err
		}
		return do(ctx)
	})
}

// Lookup implements datanode.IndexNode. Hits are stable. A member that does not answer
// has none: a chunk is then stored twice. Nor is there one where a node leaves: its
// chunks are stored anew.
func (r *Rack) Lookup(ctx context.Context, q *datanode.LookupRequest) (*datanode.LookupReply, error) {
	hits := make([]datanode.Hit, len(q.Fingerprints))
	var mu sync.Mutex
	answered, layouts := false, r.now.Load().layouts
	var away error
	errs := each(r.indexed(), func(_ int, m *member) error {
		var reply *datanode.LookupReply
		err := r.ask(ctx, m, q.Disk, q.Epoch, func(ctx context.Context) (err error) {
			if reply, err = m.Node.Lookup(ctx, q); err != nil {
				return err
			}
			if slices.ContainsFunc(reply.Hits, func(h datanode.Hit) bool { return h.Found }) {
				err = m.Node.Publish(ctx, &datanode.PublishRequest{})
			}
			return err
		})
		mu.Lock()
		defer mu.Unlock()
		if err != nil && ctx.Err() == nil && isAway(err) {
			away = err
			return nil
		}
		if err != nil {
			return err
		}
		answered = true
		for i, h := range reply.Hits {
			leaves := h.Found && layouts.Kind(h.Ref.Segment.Layout()) == stripe.Leaving
			if i < len(hits) && h.Found && !leaves && (!hits[i].Found || h.Ref.Segment.Number() < hits[i].Ref.Segment.Number()) {
				hits[i] = h
			}
		}
		return nil
	})
	err := first(errs)
	if err == nil && !answered {
		err = away
	}
	if err != nil {
		return nil, err
	}
	return &datanode.LookupReply{Hits: hits}, nil
}

// keepers deals segments to their keepers.
func (r *Rack) keepers(n int, of func(i int) id.Segment) ([]share, error) {
	var stale error
	shares := r.shares(n, func(i int) *member {
		m, err := r.keeper(of(i))
		if err != nil {
			stale = err
		}
		return m
	})
	return shares, stale
}

// pick returns those of all that a share has.
func pick[T any](s *share, all []T) []T {
	some := make([]T, len(s.parts))
	for j, i := range s.parts {
		some[j] = all[i]
	}
	return some
}

// Publish implements datanode.IndexNode. An empty one has nothing to do: look-ups are
// stable.
func (r *Rack) Publish(ctx context.Context, q *datanode.PublishRequest) error {
	defer func() {
		for i := range q.Segments {
			r.published(q.Segments[i].Header.Segment)
		}
	}()
	shares, err := r.keepers(len(q.Segments), func(i int) id.Segment { return q.Segments[i].Header.Segment })
	if err != nil {
		return err
	}
	return first(eachShare(shares, func(s *share) error {
		return s.m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			return s.m.Node.Publish(ctx, &datanode.PublishRequest{Segments: pick(s, q.Segments)})
		})
	}))
}

// SetLists implements datanode.IndexNode.
func (r *Rack) SetLists(ctx context.Context, q *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	shares, err := r.keepers(len(q.Lists), func(i int) id.Segment { return q.Lists[i].Segment })
	if err != nil {
		return nil, err
	}
	reply := &datanode.SetListsReply{}
	var mu sync.Mutex
	err = first(eachShare(shares, func(s *share) error {
		return r.ask(ctx, s.m, q.Disk, q.Epoch, func(ctx context.Context) error {
			own := *q
			own.Lists = pick(s, q.Lists)
			got, err := s.m.Node.SetLists(ctx, &own)
			if err == nil {
				mu.Lock()
				reply.Refused = append(reply.Refused, got.Refused...)
				mu.Unlock()
			}
			return err
		})
	}))
	if err != nil {
		return nil, err
	}
	slices.Sort(reply.Refused)
	return reply, nil
}

// walk reads a page of every member and joins them, in order, as far as all of them
// have told.
func walk[T any](r *Rack, page func(m *member) ([]T, bool, error), key func(T) id.Segment) ([]T, bool, error) {
	members := r.indexed()
	pages := make([][]T, len(members))
	mores := make([]bool, len(members))
	err := first(each(members, func(i int, m *member) (err error) {
		pages[i], mores[i], err = page(m)
		return err
	}))
	if err != nil {
		return nil, false, err
	}
	through, more := id.Segment(1<<64-1), false
	for i, p := range pages {
		if mores[i] && len(p) > 0 {
			through, more = min(through, key(p[len(p)-1])), true
		}
	}
	all := slices.Concat(pages...)
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	n := 0
	for n < len(all) && key(all[n]) <= through {
		n++
	}
	return all[:n:n], more || n < len(all), nil
}

// ListSegments implements datanode.IndexNode.
func (r *Rack) ListSegments(ctx context.Context, q *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	all, more, err := walk(r, func(m *member) (segments []id.Segment, more bool, err error) {
		err = r.ask(ctx, m, q.Disk, q.Epoch, func(ctx context.Context) error {
			reply, err := m.Node.ListSegments(ctx, q)
			if err == nil {
				segments, more = reply.Segments, reply.More
			}
			return err
		})
		return segments, more, err
	}, func(s id.Segment) id.Segment { return s })
	if err != nil {
		return nil, err
	}
	return &datanode.ListSegmentsReply{Segments: all, More: more}, nil
}

// Usage implements datanode.IndexNode.
func (r *Rack) Usage(ctx context.Context, q *datanode.UsageRequest) (*datanode.UsageReply, error) {
	all, more, err := walk(r, func(m *member) (uses []datanode.SegmentUse, more bool, err error) {
		err = m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			reply, err := m.Node.Usage(ctx, q)
			if err == nil {
				uses, more = reply.Segments, reply.More
			}
			return err
		})
		return uses, more, err
	}, func(u datanode.SegmentUse) id.Segment { return u.Segment })
	if err != nil {
		return nil, err
	}
	return &datanode.UsageReply{Segments: all, More: more}, nil
}

// Forwards implements datanode.IndexNode.
func (r *Rack) Forwards(ctx context.Context, q *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	all, more, err := walk(r, func(m *member) (forwards []datanode.Forward, more bool, err error) {
		err = m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			reply, err := m.Node.Forwards(ctx, q)
			if err == nil {
				forwards, more = reply.Forwards, reply.More
			}
			return err
		})
		return forwards, more, err
	}, func(f datanode.Forward) id.Segment { return f.From })
	if err != nil {
		return nil, err
	}
	return &datanode.ForwardsReply{Forwards: all, More: more}, nil
}

// DescribeSegments implements datanode.IndexNode.
func (r *Rack) DescribeSegments(ctx context.Context, q *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	if len(q.Segments) > 0 {
		return r.describe(ctx, q)
	}
	all, more, err := walk(r, func(m *member) (found []datanode.SegmentDescription, more bool, err error) {
		err = m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			reply, err := m.Node.DescribeSegments(ctx, q)
			if err == nil {
				found, more = reply.Segments, reply.More
			}
			return err
		})
		return found, more, err
	}, func(d datanode.SegmentDescription) id.Segment { return d.Segment })
	if err != nil {
		return nil, err
	}
	return &datanode.DescribeSegmentsReply{Segments: all, More: more}, nil
}

// DescribeLayout implements datanode.Several.
func (r *Rack) DescribeLayout(ctx context.Context, after id.Segment) (reply *datanode.DescribeSegmentsReply, err error) {
	m, err := r.keeper(after)
	if err != nil {
		return nil, err
	}
	err = m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) (err error) {
		reply, err = m.Node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
		return err
	})
	return reply, err
}

func (r *Rack) describe(ctx context.Context, q *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	reply := &datanode.DescribeSegmentsReply{Segments: make([]datanode.SegmentDescription, len(q.Segments))}
	c := r.now.Load()
	for i, s := range q.Segments {
		if !c.layouts.Has(s.Layout()) {
			_, err := r.keeper(s)
			return nil, err
		}
		reply.Segments[i].Segment = s // what lies where a node has left is garbage: nobody knows it
	}
	shares := r.shares(len(q.Segments), func(i int) *member { return c.of(c.layouts.Lists[q.Segments[i].Layout()][0]) })
	err := first(eachShare(shares, func(s *share) error {
		return s.m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			own := *q
			own.Segments = pick(s, q.Segments)
			got, err := s.m.Node.DescribeSegments(ctx, &own)
			if err != nil {
				return err
			}
			if len(got.Segments) != len(own.Segments) {
				return datanode.Errorf(datanode.ErrCorrupt, "node %d describes %d segments of %d", s.m.Number, len(got.Segments), len(own.Segments))
			}
			for j, i := range s.parts {
				reply.Segments[i] = got.Segments[j]
			}
			return nil
		})
	}))
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// Condemn implements datanode.IndexNode: each member its own segments. All are asked,
// so that an older owner learns that it is one.
func (r *Rack) Condemn(ctx context.Context, q *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	if len(q.Segments) > datanode.SegmentsMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "condemn %d segments", len(q.Segments))
	}
	own := make(map[*member][]id.Segment)
	for _, s := range q.Segments {
		m, err := r.keeper(s)
		if err != nil {
			return nil, err
		}
		own[m] = append(own[m], s)
	}
	reply := &datanode.CondemnReply{}
	var mu sync.Mutex
	err := first(each(r.indexed(), func(_ int, m *member) error {
		err := r.ask(ctx, m, q.Disk, q.Epoch, func(ctx context.Context) error {
			got, err := m.Node.Condemn(ctx, &datanode.CondemnRequest{Disk: q.Disk, Epoch: q.Epoch, Segments: own[m]})
			if err == nil {
				mu.Lock()
				reply.Condemned = append(reply.Condemned, got.Condemned...)
				mu.Unlock()
			}
			return err
		})
		if len(own[m]) == 0 && ctx.Err() == nil && isAway(err) {
			return nil
		}
		return err
	}))
	if err != nil {
		return nil, err
	}
	slices.Sort(reply.Condemned)
	return reply, nil
}

// Forward implements datanode.IndexNode, for moves from segments of one keeper into
// another of it: ErrInvalid for others.
func (r *Rack) Forward(ctx context.Context, q *datanode.ForwardRequest) error {
	keeper, err := r.keeper(q.Segment)
	if err != nil {
		return err
	}
	for _, v := range q.Moves {
		from, err := r.keeper(v.From)
		if err != nil {
			return err
		}
		if from != keeper {
			return datanode.Errorf(datanode.ErrInvalid, "a move from segment %s at node %d to %s at node %d", v.From, from.Number, q.Segment, keeper.Number)
		}
	}
	return r.ask(ctx, keeper, q.Disk, q.Epoch, func(ctx context.Context) error { return keeper.Node.Forward(ctx, q) })
}

// Reclaim implements datanode.IndexNode. It does nothing while a member does not
// answer.
func (r *Rack) Reclaim(ctx context.Context, q *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	reply := &datanode.ReclaimReply{}
	err := first(each(r.indexed(), func(_ int, m *member) error {
		return m.call(ctx, r.opts.CallTime, func(ctx context.Context) error {
			_, err := m.Node.Status(ctx)
			return err
		})
	}))
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	err = first(each(r.indexed(), func(_ int, m *member) error {
		return m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			got, err := m.Node.Reclaim(ctx, q)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			reply.Deleted = append(reply.Deleted, got.Deleted...)
			reply.More = reply.More || got.More
			return nil
		})
	}))
	for _, s := range reply.Deleted { // also where another member failed
		if keeper, kerr := r.keeper(s); kerr == nil {
			r.owe(s, keeper)
		}
	}
	if err = errors.Join(err, r.pay(ctx)); err != nil {
		return nil, err
	}
	slices.Sort(reply.Deleted)
	return reply, nil
}

// CompleteIndex implements datanode.IndexNode: the incarnation is that of Status.
func (r *Rack) CompleteIndex(ctx context.Context, q *datanode.CompleteIndexRequest) error {
	st, err := r.Status(ctx)
	if err != nil {
		return err
	}
	if st.Index.Incarnation != q.Incarnation {
		return datanode.Errorf(datanode.ErrInvalid, "incarnation %d is not the index's own", q.Incarnation)
	}
	return first(each(r.indexed(), func(_ int, m *member) error {
		own := m.last()
		if own == nil {
			return m.unreachable(nil)
		}
		return m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			return m.Node.CompleteIndex(ctx, &datanode.CompleteIndexRequest{Incarnation: own.Index.Incarnation})
		})
	}))
}
