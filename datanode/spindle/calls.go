package spindle

import (
	"context"
	"sync"
	"sync/atomic"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// RangesMax bounds one ReadFragments, and ReadBytesMax what it returns: the
	// longest fragments of the widest stripe. A range to the end counts as the
	// longest fragment.
	RangesMax    = 4096
	ReadBytesMax = datanode.WidthMax * datanode.FragmentBytesMax

	listDefault = 4096
	listMax     = 1 << 16
)

// WriteFragments implements datanode.FragmentNode.
func (s *Set) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	if err := s.checkWrite(r); err != nil {
		return nil, err
	}
	if v := s.layout.Load(); r.LayoutVersion < v {
		return nil, datanode.Errorf(datanode.ErrStaleLayout, "write segment %s under version %d, not %d", r.Header.Segment, r.LayoutVersion, v)
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(r.Fragments))}
	var cut atomic.Bool
	var wg sync.WaitGroup
	all := s.all()
	for i := range r.Fragments {
		f := &r.Fragments[i]
		sp := all[f.Spindle]
		wg.Go(func() {
			if !turn(ctx, sp.writing) {
				cut.Store(true)
				return
			}
			defer func() { <-sp.writing }()
			reply.Errors[i] = sp.write(&r.Header, f, r.Replace)
		})
	}
	wg.Wait()
	if cut.Load() {
		return nil, ctx.Err()
	}
	return reply, nil
}

// turn waits for a place among those at work, and gives up with the context.
func turn(ctx context.Context, places chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Set) checkWrite(r *datanode.WriteFragmentsRequest) error {
	if err := checkSegmentHeader(&r.Header); err != nil {
		return datanode.Errorf(datanode.ErrInvalid, "write %s", err)
	}
	if n := len(r.Fragments); n == 0 || n > datanode.WidthMax {
		return datanode.Errorf(datanode.ErrInvalid, "write %d fragments of segment %s", n, r.Header.Segment)
	}
	seen := map[id.Spindle]bool{}
	for _, f := range r.Fragments {
		switch err := checkFragmentBytes(uint64(len(f.Data))); {
		case err != nil:
			return datanode.Errorf(datanode.ErrInvalid, "write segment %s: %s", r.Header.Segment, err)
		case int(f.Spindle) >= len(s.all()) || seen[f.Spindle]:
			return datanode.Errorf(datanode.ErrInvalid, "write segment %s: spindle %d does not exist or is named twice", r.Header.Segment, f.Spindle)
		case f.Index >= r.Header.K+r.Header.M:
			return datanode.Errorf(datanode.ErrInvalid, "write segment %s: fragment %d of %d+%d", r.Header.Segment, f.Index, r.Header.K, r.Header.M)
		}
		seen[f.Spindle] = true
	}
	return nil
}

// ReadFragments implements datanode.FragmentNode. Ranges of one spindle are
// read by up to readersMax at once.
func (s *Set) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	if err := checkRead(r); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	reply := &datanode.ReadFragmentsReply{Results: make([]datanode.FragmentData, len(r.Ranges))}
	lend(reply.Results, r)
	w := reading{ctx: ctx, request: r, results: reply.Results}
	if all := s.all(); len(r.Ranges) == 1 && int(r.Ranges[0].Spindle) < len(all) {
		w.one(all[r.Ranges[0].Spindle], 0)
	} else {
		w.all(all)
	}
	if w.cut.Load() {
		return nil, ctx.Err()
	}
	return reply, nil
}

// lend gives the answers the caller's memory, where it has some.
func lend(results []datanode.FragmentData, r *datanode.ReadFragmentsRequest) {
	sum := 0
	for i := range r.Ranges {
		sum += int(r.Ranges[i].Length)
	}
	if r.Verify || sum > len(r.Into) {
		return
	}
	into := r.Into
	for i := range r.Ranges {
		n := r.Ranges[i].Length
		results[i].Data, into = into[:n:n], into[n:]
	}
}

// reading is one ReadFragments at work.
type reading struct {
	ctx     context.Context
	request *datanode.ReadFragmentsRequest
	results []datanode.FragmentData
	cut     atomic.Bool // by the context
}

// one answers range i and reports whether to go on.
func (w *reading) one(sp *spindle, i int) bool {
	if !turn(w.ctx, sp.reading) {
		w.cut.Store(true)
		return false
	}
	defer func() { <-sp.reading }()
	w.results[i] = sp.read(&w.request.Ranges[i], w.results[i].Data, w.request.Verify, w.request.Discard)
	return true
}

// all answers all ranges, spindle by spindle at once.
func (w *reading) all(spindles []*spindle) {
	queues := map[*spindle][]int{}
	for i, fr := range w.request.Ranges {
		if int(fr.Spindle) >= len(spindles) {
			w.results[i].Err = datanode.Errorf(datanode.ErrInvalid, "spindle %d does not exist", fr.Spindle)
			continue
		}
		sp := spindles[fr.Spindle]
		queues[sp] = append(queues[sp], i)
	}
	var wg sync.WaitGroup
	for sp, queue := range queues {
		next := new(atomic.Int64)
		for range min(len(queue), readersMax) {
			wg.Go(func() {
				for n := int(next.Add(1)) - 1; n < len(queue) && w.one(sp, queue[n]); n = int(next.Add(1)) - 1 {
				}
			})
		}
	}
	wg.Wait()
}

func checkRead(r *datanode.ReadFragmentsRequest) error {
	if len(r.Ranges) > RangesMax {
		return datanode.Errorf(datanode.ErrInvalid, "read %d ranges: at most %d", len(r.Ranges), RangesMax)
	}
	sum := int64(0)
	for _, fr := range r.Ranges {
		if r.Verify && (fr.Offset%blockBytes != 0 || fr.Length%blockBytes != 0) {
			return datanode.Errorf(datanode.ErrInvalid, "verify %d bytes at %d: not whole blocks", fr.Length, fr.Offset)
		}
		if fr.Length > datanode.FragmentBytesMax {
			return datanode.Errorf(datanode.ErrInvalid, "read %d bytes: a fragment has at most %d", fr.Length, datanode.FragmentBytesMax)
		}
		length := int64(fr.Length)
		if length == 0 && r.Verify {
			length = datanode.FragmentBytesMax
		}
		if !r.Discard {
			sum += length
		}
	}
	if sum > ReadBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "read up to %d bytes: at most %d", sum, ReadBytesMax)
	}
	return nil
}

// ListFragments implements datanode.FragmentNode.
func (s *Set) ListFragments(ctx context.Context, r *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all := s.all()
	if int(r.Spindle) >= len(all) || r.Max < 0 {
		return nil, datanode.Errorf(datanode.ErrInvalid, "list %d fragments of spindle %d", r.Max, r.Spindle)
	}
	limit := min(r.Max, listMax)
	if limit == 0 {
		limit = listDefault
	}
	start, more := name{}, true
	if r.Started {
		start, more = name{r.Segment, r.Index}.next()
	}
	if !more {
		return &datanode.ListFragmentsReply{}, nil
	}
	rows, err := all[r.Spindle].list(start, limit+1)
	if err != nil {
		return nil, err
	}
	if more = len(rows) > limit; more {
		rows = rows[:limit]
	}
	return &datanode.ListFragmentsReply{Fragments: rows, More: more}, nil
}
