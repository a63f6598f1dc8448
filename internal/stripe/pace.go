package stripe

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// A spindle is slow, and reads go around it, when the mean of its reads is
// slowTimes that of the median spindle and at least slowMin; soundTimes and less, and
// it serves again. At most m spindles are slow at a time: the others could not make
// up for more.
const (
	slowTimes  = 5
	soundTimes = 2
	slowMin    = 2 * time.Millisecond
	// paceShare of the mean is the newest read, probeShare the newest probe, of which
	// there are few. What a read counts at most is clipTimes the median, so that a
	// single outlier makes no spindle slow.
	paceShare  = 8
	probeShare = 2
	clipTimes  = 16
	// peersMin spindles besides must have been read for a median.
	peersMin = 2
	// stuckTime is how long reads of a spindle may go without an answer before it
	// counts as slow, if the others' are not that slow too.
	stuckTime = 100 * time.Millisecond
	// Of reads of several spindles, those up to suspectBytesMax are judged, and none for
	// suspectTime after one that took long.
	suspectBytesMax = 2 << 20
	suspectTime     = time.Second
)

// pace is how long a spindle takes for a read of one range, as this store sees it,
// and with it what lies between. Its fields are changed without a lock: a lost update
// is one read less in the mean.
type pace struct {
	mean atomic.Int64 // ns; 0: no read yet
	slow atomic.Bool
	// suspect: it was one of several in a read that took long.
	suspect atomic.Bool
	waiting atomic.Int32 // reads without an answer
	since   atomic.Int64 // Unix ns: the last answer, or when the first of waiting began
	// segment and block name what a reader wanted of a slow spindle last: nobody has
	// read it since, so that no cache in between has it.
	segment atomic.Uint64
	block   atomic.Uint32
}

// newPaces returns the paces of all spindles of layouts, by number: those that are known
// already go on.
func newPaces(l *Layouts, known []*pace) *[]*pace {
	out := slices.Clone(known)
	for _, list := range l.Lists {
		for _, sp := range list {
			for int(sp) >= len(out) {
				out = append(out, nil)
			}
			if out[sp] == nil {
				out[sp] = &pace{}
			}
		}
	}
	return &out
}

// begin notes that a spindle is asked.
func (p *pace) begin() time.Time {
	now := time.Now()
	if p.waiting.Add(1) == 1 {
		p.since.Store(now.UnixNano())
	}
	return now
}

// timed asks the node for one range and notes how long that takes.
func (s *Store) timed(ctx context.Context, r *datanode.ReadFragmentsRequest, share int64) (*datanode.ReadFragmentsReply, error) {
	p := s.paces()[r.Ranges[0].Spindle]
	began := p.begin()
	reply, err := s.node.ReadFragments(ctx, r)
	now := time.Now()
	p.since.Store(now.UnixNano())
	p.waiting.Add(-1)
	p.suspect.Store(false) // also where it fails: one that is out of service is no reason to ask each alone
	if err == nil && len(reply.Results) == 1 && reply.Results[0].Err == nil {
		s.note(p, now.Sub(began), share)
	}
	return reply, err
}

// ask asks the node for ranges of so many bytes. Which spindle keeps several of them
// waiting cannot be seen: each is asked alone the next time.
func (s *Store) ask(ctx context.Context, r *datanode.ReadFragmentsRequest, bytes int) (*datanode.ReadFragmentsReply, error) {
	if len(r.Ranges) == 1 {
		return s.timed(ctx, r, paceShare)
	}
	for i := range r.Ranges {
		if s.paces()[r.Ranges[i].Spindle].suspect.Load() {
			return s.askEach(ctx, r)
		}
	}
	began := time.Now()
	reply, err := s.node.ReadFragments(ctx, r)
	now := time.Now()
	took, last := now.Sub(began), s.suspectedAt.Load()
	if took > slowMin && bytes <= suspectBytesMax && now.UnixNano()-last > int64(suspectTime) &&
		took > slowTimes*s.median(nil) && s.suspectedAt.CompareAndSwap(last, now.UnixNano()) {
		for i := range r.Ranges {
			s.paces()[r.Ranges[i].Spindle].suspect.Store(true)
		}
	}
	return reply, err
}

// askEach is ask by a call for each range.
func (s *Store) askEach(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	all := &datanode.ReadFragmentsReply{}
	into := r.Into
	for i := range r.Ranges {
		one := &datanode.ReadFragmentsRequest{Ranges: r.Ranges[i : i+1], Verify: r.Verify}
		if n := int(r.Ranges[i].Length); n <= len(into) {
			one.Into, into = into[:n:n], into[n:]
		}
		reply, err := s.timed(ctx, one, paceShare)
		if err == nil {
			err = answers("read", len(reply.Results), 1)
		}
		if err != nil {
			return nil, err
		}
		all.Results = append(all.Results, reply.Results...)
	}
	return all, nil
}

// note takes account of a read, to a share of 1/share.
func (s *Store) note(p *pace, took time.Duration, share int64) {
	mean, median := p.mean.Load(), time.Duration(0)
	if took > slowMin || mean > int64(slowMin) { // below that none is slow
		if median = s.median(p); median > 0 {
			took = min(took, max(clipTimes*median, 2*slowTimes*slowMin))
		}
	}
	if mean == 0 {
		mean = int64(took)
	} else {
		mean += (int64(took) - mean) / share
	}
	p.mean.Store(max(mean, 1))
	switch m := time.Duration(mean); {
	case m < slowMin || m < soundTimes*median:
		s.setSlow(p, false)
	case median > 0 && m > slowTimes*median:
		s.setSlow(p, true)
	}
}

// median returns the median of the other spindles' means, 0 while too few are known.
func (s *Store) median(but *pace) time.Duration {
	means := make([]int64, 0, 64)
	for _, p := range s.paces() {
		if p != nil && p != but {
			if mean := p.mean.Load(); mean > 0 {
				means = append(means, mean)
			}
		}
	}
	if len(means) < peersMin {
		return 0
	}
	slices.Sort(means)
	return time.Duration(means[(len(means)-1)/2])
}

func (s *Store) setSlow(p *pace, slow bool) {
	if p.slow.Load() == slow {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slow && len(s.slow()) >= s.geometry.M {
		return
	}
	p.slow.Store(slow)
}

func (s *Store) slow() (out []id.Spindle) {
	for sp, p := range s.paces() {
		if p != nil && p.slow.Load() {
			out = append(out, id.Spindle(sp))
		}
	}
	return out
}

// Slow returns the spindles that reads go around, and new segments where others
// suffice, because they take far longer than the others.
func (s *Store) Slow() []id.Spindle {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slow()
}

// around reports whether a read is to be computed from other fragments, because its
// own spindle is slow.
func (s *Store) around(r *read) bool {
	p := s.paces()[r.list[r.Index]]
	if !p.slow.Load() {
		return false
	}
	p.segment.Store(uint64(r.Segment))
	p.block.Store(r.Offset / blockBytes)
	return true
}

// Probe tests the slow spindles by a read of what somebody wanted of each, and looks
// for some that do not answer at all. Its owner calls it about once a second, from a
// goroutine of its own: it blocks for the slowest.
func (s *Store) Probe(ctx context.Context) {
	for sp, p := range s.paces() {
		switch {
		case p == nil || ctx.Err() != nil:
		case p.slow.Load():
			s.probe(ctx, id.Spindle(sp), p)
		case p.waiting.Load() > 0:
			waits := time.Duration(time.Now().UnixNano() - p.since.Load())
			if median := s.median(p); median > 0 && waits > max(stuckTime, 2*slowTimes*median) {
				s.setSlow(p, true)
			}
		}
	}
}

// probe reads from a slow spindle what somebody wanted of it since the last probe, if
// anybody did. After an answer without data its readers try it themselves.
func (s *Store) probe(ctx context.Context, sp id.Spindle, p *pace) {
	if p.waiting.Load() > 0 { // for an answer that is late
		return
	}
	segment, block := id.Segment(p.segment.Swap(0)), p.block.Load()
	if segment == 0 {
		return
	}
	list, err := s.list(segment)
	if err != nil {
		return
	}
	reply, err := s.timed(ctx, &datanode.ReadFragmentsRequest{Ranges: []datanode.FragmentRange{{
		Spindle: sp, Segment: segment, Index: uint8(slices.Index(list, sp)), Offset: block * blockBytes, Length: blockBytes,
	}}}, probeShare)
	if err == nil && len(reply.Results) == 1 && reply.Results[0].Err != nil {
		s.setSlow(p, false)
	}
}
