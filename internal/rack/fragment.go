package rack

import (
	"context"

	"plinth/datanode"
	"plinth/internal/id"
)

// share is what of a call concerns one member: which of its parts.
type share struct {
	m     *member
	parts []int
	bytes int    // of a read
	into  []byte // for that
}

// shares deals n parts to members. Parts of no member are left out.
func (r *Rack) shares(n int, of func(i int) *member) []share {
	var all []share
	for i := range n {
		m := of(i)
		if m == nil {
			continue
		}
		at := -1
		for j := range all {
			if all[j].m == m {
				at = j
			}
		}
		if at < 0 {
			at = len(all)
			all = append(all, share{m: m})
		}
		all[at].parts = append(all[at].parts, i)
	}
	return all
}

// eachShare makes a call for all of the shares at once.
func eachShare(shares []share, do func(s *share) error) []error {
	members := make([]*member, len(shares))
	for i := range shares {
		members[i] = shares[i].m
	}
	return each(members, func(i int, _ *member) error { return do(&shares[i]) })
}

func noSpindle(s id.Spindle) *datanode.Error {
	return datanode.Errorf(datanode.ErrSpindle, "spindle %d is no node's", s)
}

// spindlesFail is what a walk of a spindle gets of a member that does not answer.
func (m *member) spindlesFail(err error) *datanode.Error {
	return datanode.Errorf(datanode.ErrSpindle, "node %d: %v", m.Number, err)
}

// WriteFragments implements datanode.FragmentNode.
func (r *Rack) WriteFragments(ctx context.Context, q *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	if r.ended.Load() {
		return nil, datanode.Errorf(datanode.ErrClosed, "the rack")
	}
	if !q.Replace {
		r.begins(q.Header.Segment)
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(q.Fragments))}
	for i := range reply.Errors {
		reply.Errors[i] = noSpindle(q.Fragments[i].Spindle)
	}
	shares := r.shares(len(q.Fragments), func(i int) *member { return r.of(q.Fragments[i].Spindle) })
	errs := eachShare(shares, func(s *share) error {
		own := *q
		own.Fragments = make([]datanode.Fragment, len(s.parts))
		for j, i := range s.parts {
			own.Fragments[j] = q.Fragments[i]
			own.Fragments[j].Spindle = s.m.local(own.Fragments[j].Spindle)
		}
		var got *datanode.WriteFragmentsReply
		err := s.m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) (err error) {
			got, err = s.m.Node.WriteFragments(ctx, &own)
			return err
		})
		if err != nil && (ctx.Err() != nil || !isAway(err)) {
			return err
		}
		for j, i := range s.parts {
			if reply.Errors[i] = nil; err != nil {
				reply.Errors[i] = s.m.unreachable(err)
			} else if j < len(got.Errors) {
				reply.Errors[i] = got.Errors[j]
			}
		}
		return nil
	})
	if err := first(errs); err != nil {
		return nil, err
	}
	return reply, nil
}

// ReadFragments implements datanode.FragmentNode.
func (r *Rack) ReadFragments(ctx context.Context, q *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	if r.ended.Load() {
		return nil, datanode.Errorf(datanode.ErrClosed, "the rack")
	}
	reply := &datanode.ReadFragmentsReply{Results: make([]datanode.FragmentData, len(q.Ranges))}
	for i := range reply.Results {
		reply.Results[i].Err = noSpindle(q.Ranges[i].Spindle)
	}
	shares := r.shares(len(q.Ranges), func(i int) *member { return r.of(q.Ranges[i].Spindle) })
	into := q.Into
	for i := range shares {
		for _, part := range shares[i].parts {
			shares[i].bytes += int(q.Ranges[part].Length)
		}
		if !q.Verify && shares[i].bytes <= len(into) {
			shares[i].into, into = into[:shares[i].bytes:shares[i].bytes], into[shares[i].bytes:]
		}
	}
	errs := eachShare(shares, func(s *share) error {
		own := *q
		own.Into = s.into
		own.Ranges = make([]datanode.FragmentRange, len(s.parts))
		for j, i := range s.parts {
			own.Ranges[j] = q.Ranges[i]
			own.Ranges[j].Spindle = s.m.local(own.Ranges[j].Spindle)
		}
		var got *datanode.ReadFragmentsReply
		err := s.m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) (err error) {
			got, err = s.m.Node.ReadFragments(ctx, &own)
			return err
		})
		if err != nil && (ctx.Err() != nil || !isAway(err)) {
			return err
		}
		for j, i := range s.parts {
			if err != nil {
				reply.Results[i].Err = s.m.unreachable(err)
			} else if j < len(got.Results) {
				reply.Results[i] = got.Results[j]
			}
		}
		return nil
	})
	if err := first(errs); err != nil {
		return nil, err
	}
	return reply, nil
}

// ListFragments implements datanode.FragmentNode.
func (r *Rack) ListFragments(ctx context.Context, q *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	m := r.of(q.Spindle)
	if m == nil {
		return nil, noSpindle(q.Spindle)
	}
	own := *q
	own.Spindle = m.local(q.Spindle)
	var reply *datanode.ListFragmentsReply
	err := m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) (err error) {
		reply, err = m.Node.ListFragments(ctx, &own)
		return err
	})
	if err != nil && ctx.Err() == nil && isAway(err) {
		return nil, m.spindlesFail(err)
	}
	return reply, err
}

// ReplaceSpindle implements datanode.Node.
func (r *Rack) ReplaceSpindle(ctx context.Context, q *datanode.ReplaceSpindleRequest) error {
	m := r.of(q.Spindle)
	if m == nil {
		return noSpindle(q.Spindle)
	}
	return m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
		return m.Node.ReplaceSpindle(ctx, &datanode.ReplaceSpindleRequest{Spindle: m.local(q.Spindle)})
	})
}

// AddSpindle implements datanode.Node: the pool gives the spindle its number when a change of
// the nodes does (Advance).
func (r *Rack) AddSpindle(ctx context.Context, q *datanode.AddSpindleRequest) error {
	m := r.numbered(q.Node)
	if m == nil {
		return datanode.Errorf(datanode.ErrInvalid, "add a spindle to node %d: there is none", q.Node)
	}
	err := m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error { return m.Node.AddSpindle(ctx, q) })
	if err == nil {
		_, err = r.statusOf(ctx, m)
	}
	return err
}

// DiscardFragments implements datanode.FragmentNode. The keeper goes first: it knows
// whether the segment was published.
func (r *Rack) DiscardFragments(ctx context.Context, q *datanode.DiscardFragmentsRequest) error {
	defer r.published(q.Segment)
	keeper, err := r.keeper(q.Segment)
	if err != nil {
		return err
	}
	err = keeper.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error { return keeper.Node.DiscardFragments(ctx, q) })
	if err != nil {
		return err
	}
	r.owe(q.Segment, keeper)
	return r.pay(ctx)
}

// owe notes that members other than the keeper have fragments of a segment that is
// gone.
func (r *Rack) owe(s id.Segment, keeper *member) {
	for _, spindle := range r.now.Load().layouts.Lists[s.Layout()] {
		m := r.of(spindle)
		if m == keeper || m == nil {
			continue
		}
		m.mu.Lock()
		if len(m.owed) < owedMax {
			m.owed[s] = true
		}
		m.mu.Unlock()
	}
}

// pay discards what is owed, at members that answer.
func (r *Rack) pay(ctx context.Context) error {
	return first(each(r.members(), func(_ int, m *member) error {
		m.mu.Lock()
		var all []id.Segment
		for s := range m.owed {
			all = append(all, s)
		}
		m.mu.Unlock()
		for _, s := range all {
			err := m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
				return m.Node.DiscardFragments(ctx, &datanode.DiscardFragmentsRequest{Segment: s})
			})
			if err != nil && ctx.Err() == nil && isAway(err) {
				return nil // later
			}
			if err != nil {
				return err
			}
			m.mu.Lock()
			delete(m.owed, s)
			m.mu.Unlock()
		}
		return nil
	}))
}

// Reserve implements datanode.FragmentNode. Stripes put at most one fragment on a
// spindle, so every member can be asked for all of it: what it allows is bounded by
// its fullest spindle. That wants members that were opened with the width of the
// pool's stripes.
func (r *Rack) Reserve(ctx context.Context, q *datanode.ReserveRequest) error {
	r.reserving.Lock()
	defer r.reserving.Unlock()
	before := r.reserved[q.Host]
	reserve := func(ctx context.Context, m *member, q *datanode.ReserveRequest) error {
		if m.is() == NodeDraining && !q.Force { // little goes there any more, and soon nothing
			forced := *q
			forced.Force = true
			q = &forced
		}
		err := m.call(ctx, r.opts.CallTime, func(ctx context.Context) error { return m.Node.Reserve(ctx, q) })
		if err != nil && ctx.Err() == nil && isAway(err) {
			return nil // what is written does not go there
		}
		return err
	}
	members := r.members()
	errs := each(members, func(_ int, m *member) error { return reserve(ctx, m, q) })
	if err := first(errs); err != nil {
		back := &datanode.ReserveRequest{Host: q.Host, Bytes: before, Force: true}
		for i, m := range members {
			if errs[i] == nil {
				_ = reserve(context.WithoutCancel(ctx), m, back)
			}
		}
		return err
	}
	if r.reserved[q.Host] = q.Bytes; q.Bytes == 0 {
		delete(r.reserved, q.Host)
	}
	return nil
}
