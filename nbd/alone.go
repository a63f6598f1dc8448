package nbd

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"plinth/nbd/internal/wire"
)

// A client that waits for each answer before it asks again gains nothing from a
// worker, and waking one takes longer than many a request: the reader calls the device
// itself. If that takes long, another goroutine reads on, and the one that called is a
// worker until it returns, so that the client may have asked for more after all.
const (
	// aloneMin is how many requests in a row must have been alone before one is served
	// so: among those of a client that has more in flight, some are. One in so many of
	// those is looked at again: something may have been sent before its answer.
	aloneMin = 16
	// aloneBytesMax bounds what is read or written so: several long ones are better done
	// beside each other, were the client to send them so.
	aloneBytesMax = 16 << 10
	// aloneTime is for how long a connection may go without a reader, and as long again.
	aloneTime = time.Millisecond
	// aloneLooks without any such call end the looks at them.
	aloneLooks = 100
)

// errHandedOver ends a goroutine's part as the reader.
var errHandedOver = errors.New("another goroutine reads")

// alone is what a transmission knows of this. All but served and serving is the
// reader's.
type alone struct {
	row     int                     // requests that were alone, in a row
	served  atomic.Uint64           // by the reader, so far
	serving atomic.Pointer[request] // nil: the reader reads, or another does by now
	readEnd chan error              // what ended the last of several readers
}

// isAlone reports, on the reader's goroutine, that r is to be served there: a short
// read, or a change that waits for no drive.
func (t *transmission) isAlone(r *request) bool {
	switch {
	case !isChange(r.Type) && r.Type != wire.CmdRead || r.fua() || r.buf != nil && r.buf.n > aloneBytesMax:
		return false
	case t.r.Buffered() > 0 || t.calls.Load() > 0:
		t.alone.row = 0
		return false
	}
	t.alone.row++
	return t.alone.row > aloneMin
}

// serveAlone serves r on the reader's goroutine. It returns errHandedOver when that
// is the reader's no more.
func (t *transmission) serveAlone(r *request) error {
	t.begin(r)
	t.alone.served.Add(1)
	t.alone.serving.Store(r)
	t.conn.server.patience.expect(t)
	err := t.perform(r)
	// As long as r is this call's, nobody else serves it.
	if !t.alone.serving.CompareAndSwap(r, nil) {
		if t.ended(r, err) {
			t.answerLate(r)
		}
		return errHandedOver
	}
	if t.alone.row%aloneMin == 0 && sentMore(t.conn.Conn) {
		t.alone.row = 0
	}
	if t.ended(r, err) {
		t.answer(r)
	}
	return nil
}

// handOver has another goroutine read, if the reader still serves r.
func (t *transmission) handOver(r *request) {
	if !t.alone.serving.CompareAndSwap(r, nil) {
		return
	}
	t.workers.Go(func() {
		if err := t.read(); !errors.Is(err, errHandedOver) {
			t.alone.readEnd <- err
		}
	})
}

// patience has readers that serve for long replaced. A goroutine of the server's looks
// at them, from when one serves until none did for a while.
type patience struct {
	looking atomic.Bool
	mu      sync.Mutex
	readers map[*transmission]uint64 // that have served, and how often by the last look
}

// expect has somebody look at t, which serves. forget ends that.
func (p *patience) expect(t *transmission) {
	if t.alone.served.Load() == 1 {
		p.mu.Lock()
		if p.readers == nil {
			p.readers = map[*transmission]uint64{}
		}
		p.readers[t] = 0
		p.mu.Unlock()
	}
	if !p.looking.Load() && p.looking.CompareAndSwap(false, true) {
		t.conn.server.conns.Go(p.look)
	}
}

func (p *patience) forget(t *transmission) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.readers, t)
}

// look looks until nothing was served for a while. One who serves says so before
// asking whether somebody looks, and who ends looking asks after saying that.
func (p *patience) look() {
	tick := time.NewTicker(aloneTime)
	defer tick.Stop()
	for idle := 0; ; {
		<-tick.C
		served, serving := p.lookOnce()
		if idle++; served || serving {
			idle = 0
		}
		if idle < aloneLooks && p.any() {
			continue
		}
		p.looking.Store(false)
		if _, serving := p.lookOnce(); !serving || !p.looking.CompareAndSwap(false, true) {
			return
		}
		idle = 0
	}
}

// lookOnce replaces the readers that serve what they did at the last look. It reports
// whether any has served since then, and whether any does.
func (p *patience) lookOnce() (served, serving bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, last := range p.readers {
		r, n := t.alone.serving.Load(), t.alone.served.Load()
		if r != nil && n == last {
			t.handOver(r)
		}
		p.readers[t] = n
		served, serving = served || n != last, serving || r != nil
	}
	return served, serving
}

func (p *patience) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.readers) > 0
}
