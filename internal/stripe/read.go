package stripe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// gapBytesMax is the largest hole between two ranges that are still read as
	// one: its bytes cost less than another request or seek.
	gapBytesMax = 16 << 10
	// callRangesMax and callBytesMax bound what one call to the node asks for,
	// unless a single range or reconstruction takes more bytes: a node refuses
	// calls without bound, and both sides hold the data in memory.
	callRangesMax = 1024
	callBytesMax  = 64 << 20
	// awayTimeMax bounds the wait for a node that does not answer, and awayPauseMin and
	// awayPauseMax the pauses between attempts.
	awayTimeMax  = 2 * time.Minute
	awayPauseMin = 20 * time.Millisecond
	awayPauseMax = 500 * time.Millisecond
)

// Data answers one range. Bytes shares memory with that of neighbours: who keeps
// it for long copies it.
type Data struct {
	Bytes []byte
	Err   error
}

// Memory is what a read works in. Its owner uses it for one read after the other;
// the zero value is right.
type Memory struct {
	out     []Data
	order   []int
	reads   []read
	around  []read // of slow spindles
	request datanode.ReadFragmentsRequest
	bytes   []byte
	beside  sync.WaitGroup
}

// memoryBytesMax bounds the data that a Memory keeps room for: larger reads are
// rare, and many are in flight.
const memoryBytesMax = 2 << 20

// Read reads ranges with one call to the node (more beyond 1,024 ranges or 64
// MiB), neighbours in one fragment together. Ranges that the node cannot give, or only slowly, are computed
// from k other fragments, read under their checksums. What comes from the fragment itself is
// not tested: the caller authenticates it and calls Reconstruct if that fails.
// Answers are in the order of ranges. It blocks for the node.
//
// It waits for a node that does not answer where the others have too few fragments: for
// two minutes, about, which is how long a client waits for its reply, or until
// Options.Closing.
//
// Errors, per range: ErrNotFound if no fragment of the segment is left,
// ErrUnreachable, ErrSpindle or ErrCorrupt if fewer than k are readable, ErrInvalid,
// ErrStaleLayout for a layout that is not known, and those of a whole call.
func (s *Store) Read(ctx context.Context, ranges []Range) []Data {
	return s.ReadIn(ctx, &Memory{}, ranges)
}

// ReadIn is Read in the caller's memory: the answers are valid until it is used
// again.
func (s *Store) ReadIn(ctx context.Context, m *Memory, ranges []Range) []Data {
	began := time.Now()
	for pause := awayPauseMin; ; pause = min(2*pause, awayPauseMax) {
		out := s.readIn(ctx, m, ranges)
		away := slices.ContainsFunc(out, func(d Data) bool { return errors.Is(d.Err, datanode.ErrUnreachable) })
		if !away || time.Since(began) > awayTimeMax {
			return out
		}
		select {
		case <-ctx.Done():
			return out
		case <-s.opts.Closing:
			return out
		case <-time.After(pause):
		}
	}
}

func (s *Store) readIn(ctx context.Context, m *Memory, ranges []Range) []Data {
	m.out = slices.Grow(m.out[:0], len(ranges))[:len(ranges)]
	clear(m.out)
	s.plan(m, ranges)
	defer m.beside.Wait()
	if len(m.around) > 0 {
		avoid := make([]*recovery, len(m.around))
		for i := range m.around {
			avoid[i] = newRecovery(s.geometry, &m.around[i], avoided)
		}
		m.beside.Go(func() { s.recover(ctx, avoid, ranges, m.out) })
	}
	for reads := m.reads; len(reads) > 0; {
		n, bytes := 0, 0
		for n < len(reads) && n < callRangesMax && (n == 0 || bytes+int(reads[n].Length) <= callBytesMax) {
			bytes += int(reads[n].Length)
			n++
		}
		s.recover(ctx, s.readDirectly(ctx, m, reads[:n], bytes, ranges), ranges, m.out)
		reads = reads[n:]
	}
	return m.out
}

// readDirectly answers reads of so many bytes in one call, and returns those to
// reconstruct.
func (s *Store) readDirectly(ctx context.Context, m *Memory, reads []read, bytes int, ranges []Range) (failed []*recovery) {
	out, request := m.out, &m.request
	request.Ranges = request.Ranges[:0]
	for _, r := range reads {
		request.Ranges = append(request.Ranges, datanode.FragmentRange{
			Spindle: r.list[r.Index], Segment: r.Segment, Index: r.Index, Offset: r.Offset, Length: r.Length,
		})
	}
	if request.Into = nil; len(reads) == len(m.reads) && bytes <= memoryBytesMax { // or else calls share it
		m.bytes = slices.Grow(m.bytes[:0], bytes)[:bytes]
		request.Into = m.bytes
	}
	reply, err := s.ask(ctx, request, bytes)
	if err == nil {
		err = answers("read", len(reply.Results), len(reads))
	}
	for i := range reads {
		r := &reads[i]
		switch {
		case err != nil:
			r.fail(out, fmt.Errorf("read %s: %w", r.Range, err))
		case reply.Results[i].Err != nil:
			if e := reply.Results[i].Err; e.Code == datanode.CodeClosed {
				r.fail(out, fmt.Errorf("read %s: %w", r.Range, e))
			} else {
				v := newRecovery(s.geometry, r, unread)
				own := &v.parts[r.Index]
				own.state, own.away = stateOf(e)
				failed = append(failed, v)
			}
		case len(reply.Results[i].Data) != int(r.Length):
			failed = append(failed, newRecovery(s.geometry, r, unreadable))
		default:
			r.give(ranges, out, reply.Results[i].Data)
		}
	}
	return failed
}

// read is a run of ranges in one fragment, read as one.
type read struct {
	Range
	list    []id.Spindle
	members []int // of the caller's ranges
}

func (r *read) give(ranges []Range, out []Data, data []byte) {
	for _, m := range r.members {
		from := ranges[m].Offset - r.Offset
		to := from + ranges[m].Length
		out[m].Bytes = data[from:to:to]
	}
}

func (r *read) fail(out []Data, err error) {
	for _, m := range r.members {
		out[m].Err = err
	}
}

// plan joins neighbours. Ranges that cannot be read get their error in m.out.
func (s *Store) plan(m *Memory, ranges []Range) {
	out, order, layouts := m.out, m.order[:0], s.now.Load()
	for i, r := range ranges {
		if _, err := layouts.list(r.Segment); err != nil {
			out[i].Err = err
		} else if int(r.Index) >= s.geometry.Width() || r.Length == 0 || r.end() > uint64(s.geometry.NominalBytes()) {
			out[i].Err = datanode.Errorf(datanode.ErrInvalid, "read %s", r)
		} else {
			order = append(order, i)
		}
	}
	if len(order) > 1 {
		slices.SortFunc(order, func(a, b int) int { return compare(ranges[a], ranges[b]) })
	}
	reads := m.reads[:0]
	for at, i := range order {
		r := ranges[i]
		if n := len(reads) - 1; n >= 0 {
			last := &reads[n]
			if last.Segment == r.Segment && last.Index == r.Index && uint64(r.Offset) <= last.end()+gapBytesMax {
				last.Length = uint32(max(last.end(), r.end()) - uint64(last.Offset))
				last.members = order[at-len(last.members) : at+1]
				continue
			}
		}
		reads = append(reads, read{Range: r, list: layouts.Lists[r.Segment.Layout()], members: order[at : at+1]})
	}
	m.around = m.around[:0]
	reads = slices.DeleteFunc(reads, func(r read) bool {
		slow := s.around(&r)
		if slow {
			m.around = append(m.around, r)
		}
		return slow
	})
	m.order, m.reads = order, reads
}

func compare(a, b Range) int {
	switch {
	case a.Segment != b.Segment:
		if a.Segment < b.Segment {
			return -1
		}
		return 1
	case a.Index != b.Index:
		return int(a.Index) - int(b.Index)
	}
	return int(int64(a.Offset) - int64(b.Offset))
}

// recovery computes one read from other fragments.
type recovery struct {
	*read
	*stripe
	from, to int // blocks of the fragment
}

func newRecovery(g Geometry, r *read, s state) *recovery {
	v := &recovery{read: r, stripe: newStripe(g, r.Segment, r.list)}
	v.from, v.to = r.blocks()
	v.stripe.first, v.stripe.blocks = v.from, v.to-v.from
	v.parts[r.Index].state = s
	return v
}

// recover reconstructs what could not be read, in batches of bounded memory.
func (s *Store) recover(ctx context.Context, all []*recovery, ranges []Range, out []Data) {
	for len(all) > 0 {
		width := s.geometry.Width()
		n, bytes := 0, 0
		for n < len(all) && (n+1)*width <= callRangesMax && (n == 0 || bytes < callBytesMax) {
			bytes += all[n].stripe.blocks * blockBytes * width
			n++
		}
		s.recoverBatch(ctx, all[:n], ranges, out)
		all = all[n:]
	}
}

// recoverBatch reads k others of each, and all others where these are not
// enough.
func (s *Store) recoverBatch(ctx context.Context, batch []*recovery, ranges []Range, out []Data) {
	for attempt := range 2 {
		most := s.geometry.K
		if attempt > 0 {
			most = s.geometry.Width()
			for _, v := range batch {
				if own := &v.parts[v.Index]; own.state == avoided {
					own.state = unread // a slow answer is better than none
				}
			}
		}
		err := s.readOthers(ctx, batch, most)
		var rest []*recovery
		for _, v := range batch {
			if err != nil {
				v.fail(out, fmt.Errorf("reconstruct %s: %w", v.Range, err))
			} else if data, ok := v.decode(int(v.Index), 0, v.stripe.blocks, ownLast, v.good); ok {
				skip := v.Offset % blockBytes
				v.give(ranges, out, data[skip:skip+v.Length])
				if own := v.parts[v.Index].state; own == avoided {
					s.readAround.Add(uint64(len(v.members)))
				} else if s.reconstructed.Add(uint64(len(v.members))); s.opts.Suspect != nil && own != unreachable {
					s.opts.Suspect(v.Range.Segment)
				}
			} else {
				rest = append(rest, v)
			}
		}
		batch = rest
	}
	for _, v := range batch {
		v.fail(out, v.failure("reconstruct "+v.Range.String(), true))
	}
}

// readOthers reads, under their checksums, up to most unread fragments of each
// stripe, those on spindles that work first.
func (s *Store) readOthers(ctx context.Context, batch []*recovery, most int) error {
	type answer struct {
		of    *recovery
		index int
	}
	var asked []answer
	request := &datanode.ReadFragmentsRequest{Verify: true}
	for _, v := range batch {
		var order, last []int
		for i := range v.parts {
			if v.parts[i].state != unread {
				continue
			}
			if sp := v.stripe.list[i]; s.isFailed(sp) || s.paces()[sp].slow.Load() {
				last = append(last, i)
			} else {
				order = append(order, i)
			}
		}
		order = append(order, last...)
		for _, i := range order[:min(most, len(order))] {
			asked = append(asked, answer{v, i})
			request.Ranges = append(request.Ranges, datanode.FragmentRange{
				Spindle: v.stripe.list[i], Segment: v.Range.Segment, Index: uint8(i),
				Offset: uint32(v.from * blockBytes), Length: uint32(v.stripe.blocks * blockBytes),
			})
		}
	}
	if len(asked) == 0 {
		return nil
	}
	reply, err := s.node.ReadFragments(ctx, request)
	if err == nil {
		err = answers("read", len(reply.Results), len(asked))
	}
	if err != nil {
		return err
	}
	for i, a := range asked {
		d := &reply.Results[i]
		if d.Err != nil && errors.Is(d.Err, datanode.ErrClosed) {
			return d.Err
		}
		a.of.take(a.index, d)
	}
	return nil
}
