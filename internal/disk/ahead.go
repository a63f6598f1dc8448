package disk

import (
	"context"
	"sync"
)

// Reading ahead puts what a sequential reader will want into RAM while it works on
// what it has. It is for those that wait for each read before the next; for others
// it would cost and gain nothing (docs/design/read.md).
const (
	// streamsMax is how many readers are told apart. Random reads pass through
	// the places of those that have ended.
	streamsMax = 8
	// streamSlackBytes is how far reads of one stream may be out of order, since
	// several are in flight.
	streamSlackBytes = 1 << 20
	// streamBytesMin is what must have been read in order before more is fetched.
	streamBytesMin = 128 << 10
	// aheadReadMax is the largest read that more is fetched for: larger ones are
	// as good as pieces.
	aheadReadMax = 256 << 10
	// fetchBytes is a piece; up to two are ahead of the reader.
	fetchBytes = 1 << 20
	// fetchesMax bounds the pieces under way on a disk or image.
	fetchesMax = 4
	// aheadRAMShare is the least by which RAM must exceed a piece: or else what is
	// fetched leaves before it is read.
	aheadRAMShare = 64
)

// ahead finds streams of reads, and what to fetch for them.
type ahead struct {
	off     bool // RAM is too small
	mu      sync.Mutex
	streams [streamsMax]stream
	turn    int // the next stream to give up
	fetches []*fetch
}

// stream is a sequential reader.
type stream struct {
	next    int64 // behind the furthest byte read; 0: there is no stream
	run     int64 // bytes read in order
	fetched int64 // up to here it was read, fetched, or is being fetched
	missed  bool  // what it read last, and was not fetched for it, was not in RAM
	deep    bool  // several of its reads are in flight: it reads ahead itself
	fetch   *fetch
}

// fetch is a piece being read.
type fetch struct {
	first, end int64
	over       bool // guarded by ahead.mu
	done       chan struct{}
}

// newAhead returns one for a disk or image of a pool.
func newAhead(p *Pool) *ahead {
	return &ahead{off: p.RAM.Stats().BytesMax < aheadRAMShare*fetchBytes}
}

// note tells of a read, and whether it was answered from RAM. It returns what is to
// be fetched now, if anything, below end; finish is then due.
func (a *ahead) note(off, n int64, hit bool, end int64) *fetch {
	if a.off {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.find(off)
	if s == nil {
		a.streams[a.turn] = stream{next: off + n, fetched: off + n}
		a.turn = (a.turn + 1) % streamsMax
		return nil
	}
	if off > s.next {
		s.deep = true
	}
	if off+n > s.next {
		s.run += n
		s.next = off + n
	}
	if !hit {
		s.missed = true
	} else if off >= s.fetched {
		s.missed = false
	}
	s.fetched = max(s.fetched, s.next)
	switch {
	case !s.missed || s.deep || s.run < streamBytesMin || n > aheadReadMax,
		s.fetched-s.next > fetchBytes || s.fetched >= end,
		s.fetch != nil && !s.fetch.over || len(a.fetches) == fetchesMax:
		return nil
	}
	s.fetch = &fetch{first: s.fetched, end: min(s.fetched+fetchBytes, end), done: make(chan struct{})}
	s.fetched = s.fetch.end
	a.fetches = append(a.fetches, s.fetch)
	return s.fetch
}

// find returns the stream that a read belongs to. One that begins behind where the
// stream's last one ended came while that was in flight.
func (a *ahead) find(off int64) *stream {
	for i := range a.streams {
		if s := &a.streams[i]; s.next != 0 && off >= s.next-streamSlackBytes && off <= s.next+streamSlackBytes {
			return s
		}
	}
	return nil
}

// finish ends a fetch, and the waiting for it.
func (a *ahead) finish(f *fetch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f.over = true
	for i := range a.fetches {
		if a.fetches[i] == f {
			last := len(a.fetches) - 1
			a.fetches[i], a.fetches[last] = a.fetches[last], nil
			a.fetches = a.fetches[:last]
			break
		}
	}
	close(f.done)
}

// begin tells of a read that is not answered from RAM at once, and waits for what
// is being fetched of its range.
func (a *ahead) begin(ctx context.Context, off, n int64) {
	for {
		f := a.fetching(off, n)
		if f == nil {
			return
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

func (a *ahead) fetching(off, n int64) *fetch {
	if a.off {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.find(off); s != nil && off > s.next {
		s.deep = true
	}
	for _, f := range a.fetches {
		if off < f.end && f.first < off+n {
			return f
		}
	}
	return nil
}

var fetchBuffers = sync.Pool{New: func() any { return new([fetchBytes]byte) }}

// start fetches in the background; the caller has entered for it, and leave is
// called at the end. What fails is read again by who wants it.
func (a *ahead) start(f *fetch, leave func(), read func(r *reader, p []byte, off int64) error) {
	go func() {
		defer leave()
		defer a.finish(f)
		p := fetchBuffers.Get().(*[fetchBytes]byte)
		defer fetchBuffers.Put(p)
		r := readers.Get().(*reader)
		defer readers.Put(r)
		_ = read(r, p[:f.end-f.first], f.first)
	}()
}

// readAhead notes a read of the disk, and fetches what it asks for.
func (d *Disk) readAhead(off, n int64, hit bool) {
	f := d.ahead.note(off, n, hit, d.Size())
	switch {
	case f == nil:
	case d.enter(f.first, f.end-f.first) != nil:
		d.ahead.finish(f)
	default:
		d.ahead.start(f, d.leave, func(r *reader, p []byte, off int64) error { return d.read(d.ctx, r, p, off) })
	}
}

// readAhead is Disk.readAhead of the snapshot.
func (i *Image) readAhead(off, n int64, hit bool) {
	f := i.ahead.note(off, n, hit, i.Size())
	switch {
	case f == nil:
	case i.enter(f.first, f.end-f.first) != nil:
		i.ahead.finish(f)
	default:
		i.ahead.start(f, i.d.reads.Done, func(r *reader, p []byte, off int64) error { return i.read(i.d.ctx, r, p, off) })
	}
}
