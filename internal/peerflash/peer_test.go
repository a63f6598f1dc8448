package peerflash

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/id"
)

const (
	sealedBytes = 4160
	waitMax     = 20 * time.Second
)

// chunkOf is what a flash has under a name.
func chunkOf(fp id.Fingerprint) []byte { return bytes.Repeat(fp[:], sealedBytes/len(fp)) }

// lender serves a flash on a socket, by a Server or as a test says.
type lender struct {
	net.Listener
	serve func(net.Conn)
	conns atomic.Int64
	work  sync.WaitGroup
}

func newLender(t *testing.T, serve func(net.Conn)) *lender {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &lender{Listener: l, serve: serve}
	x.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.conns.Add(1)
			x.work.Go(func() { x.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		x.work.Wait()
	})
	return x
}

// has serves a flash that has the chunks for which it is true.
func has(f func(id.Fingerprint) bool) func(net.Conn) {
	s := NewServer(func(fp id.Fingerprint, dst []byte) ([]byte, bool) {
		if !f(fp) {
			return dst, false
		}
		return append(dst, chunkOf(fp)...), true
	})
	return s.Serve
}

// asker is a peer of a lender, for one disk.
type asker struct {
	*Source
	counts Counts
	errs   chan error
}

// newAsker has no goroutines left when the test ends.
func newAsker(t *testing.T, l *lender, answer time.Duration) *asker {
	t.Helper()
	before := runtime.NumGoroutine()
	a := &asker{errs: make(chan error, 1000)}
	p := NewPeer(Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		},
		Answer: answer, Counts: &a.counts, Failed: func(err error) { a.errs <- err },
	})
	a.Source = p.Source()
	t.Cleanup(func() {
		p.Close()
		p.Close()
		a.Get(context.Background(), names(1), func(int, []byte) bool { t.Error("a chunk after Close"); return true })
		for end := time.Now().Add(waitMax); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				break
			}
		}
	})
	return a
}

// connect waits until there is a line.
func (a *asker) connect(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(waitMax); a.peer.ready() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no connection to the lender")
		}
	}
}

// get asks, and returns what came and how long it took.
func (a *asker) get(ctx context.Context, fps []id.Fingerprint) (got []int, took time.Duration) {
	began := time.Now()
	a.Get(ctx, fps, func(i int, sealed []byte) bool {
		if !bytes.Equal(sealed, chunkOf(fps[i])) {
			return false
		}
		got = append(got, i)
		return true
	})
	slices.Sort(got)
	return got, time.Since(began)
}

// failure wants the peer to have been left alone for this.
func (a *asker) failure(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-a.errs:
		if !errors.Is(err, want) {
			t.Errorf("failed with %v, want %v", err, want)
		}
	case <-time.After(waitMax):
		t.Fatalf("no failure, want %v", want)
	}
}

// Many at once ask for few and many chunks, of which a half is here.
func TestGet(t *testing.T) {
	odd := func(fp id.Fingerprint) bool { return fp[0]%2 == 1 }
	a := newAsker(t, newLender(t, has(odd)), waitMax)
	if got, took := a.get(t.Context(), names(1)); got != nil || took > time.Second {
		t.Errorf("without a connection %v came, after %v", got, took)
	}
	a.connect(t)
	if got, _ := a.get(t.Context(), nil); got != nil {
		t.Error("something for nothing")
	}
	var work sync.WaitGroup
	var asked atomic.Int64
	for w := range 8 {
		work.Go(func() {
			for i := range 40 {
				n := 1 + (i*37+w)%(requestsMax/8*turnChunks) // all fit
				got, _ := a.get(t.Context(), names(n))
				asked.Add(int64(n))
				for j, k := range got {
					if k != 2*j {
						t.Errorf("%v came", got)
						return
					}
				}
				if len(got) != (n+1)/2 {
					t.Errorf("%d of %d came", len(got), n)
				}
			}
		})
	}
	work.Wait()
	c := &a.counts
	if c.Asked.Load() != asked.Load() || c.Bytes.Load() != c.Here.Load()*sealedBytes || c.Failed.Load()+c.Bad.Load() != 0 {
		t.Errorf("%d were asked for, counted: %d, %d here, %d bytes, %d failures", asked.Load(), c.Asked.Load(), c.Here.Load(), c.Bytes.Load(), c.Failed.Load())
	}
	if n := len(a.peer.line.owed); n != 0 {
		t.Errorf("%d requests are owed", n)
	}
}

// What a lender does wrong costs the time for an answer once, and then nothing for a
// while.
func TestLenderFails(t *testing.T) {
	const answer = 50 * time.Millisecond
	hang := func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	for _, test := range []struct {
		what  string
		serve func(net.Conn)
		want  error
	}{
		{"hangs", hang, errLate},
		{"dies midway", func(c net.Conn) {
			defer c.Close()
			if q, err := readRequest(c); err == nil {
				b := replyOf(q.number, chunkOf(q.names[0]), chunkOf(q.names[1]))
				_, _ = c.Write(b[:len(b)-1])
			}
		}, errGone},
		{"lies", func(c net.Conn) {
			defer c.Close()
			for {
				q, err := readRequest(c)
				if err != nil {
					return
				}
				_, _ = c.Write(replyOf(q.number, make([]byte, sealedBytes), make([]byte, 16)))
			}
		}, errBad},
		{"answers what nobody asked", func(c net.Conn) {
			defer c.Close()
			if q, err := readRequest(c); err == nil {
				_, _ = c.Write(replyOf(q.number+1, nil, nil))
				_, _ = io.Copy(io.Discard, c)
			}
		}, errGone},
		{"answers for fewer", func(c net.Conn) {
			defer c.Close()
			if q, err := readRequest(c); err == nil {
				_, _ = c.Write(replyOf(q.number, chunkOf(q.names[0])))
				_, _ = io.Copy(io.Discard, c)
			}
		}, errGone},
		{"talks nonsense", func(c net.Conn) {
			defer c.Close()
			_, _ = c.Write(bytes.Repeat([]byte{0xff}, 100))
			_, _ = io.Copy(io.Discard, c)
		}, nil},
	} {
		t.Run(test.what, func(t *testing.T) {
			a := newAsker(t, newLender(t, test.serve), answer)
			for end := time.Now().Add(waitMax); a.counts.Failed.Load() == 0 && time.Now().Before(end); {
				got, took := a.get(t.Context(), names(2))
				if got != nil || took > answer+5*time.Second {
					t.Fatalf("%v came, after %v", got, took)
				}
			}
			if test.want != nil {
				a.failure(t, test.want)
			}
			a.peer.mu.Lock()
			defer a.peer.mu.Unlock()
			if pause := a.peer.backoff.pause; pause < pauseMin {
				t.Errorf("it is left alone for %v", pause)
			}
		})
	}
}

// A lender that hangs is let go after some time, and one that answers again is asked
// again.
func TestLenderComesBack(t *testing.T) {
	var silent atomic.Bool
	silent.Store(true)
	served := has(func(id.Fingerprint) bool { return true })
	l := newLender(t, func(c net.Conn) {
		if silent.Load() {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
			return
		}
		served(c)
	})
	a := newAsker(t, l, 20*time.Millisecond)
	a.connect(t)
	if got, _ := a.get(t.Context(), names(3)); got != nil {
		t.Errorf("%v came", got)
	}
	a.failure(t, errLate)
	silent.Store(false)
	a.peer.opts.Answer = waitMax
	for end := time.Now().Add(waitMax); ; time.Sleep(5 * time.Millisecond) {
		if l.conns.Load() > 1 {
			if got, _ := a.get(t.Context(), names(3)); len(got) == 3 {
				break
			}
		} else {
			a.peer.ready()
		}
		if time.Now().After(end) {
			t.Fatal("a lender that is back is not asked")
		}
	}
}

// Who gives up is let go at once, and the peer is not blamed.
func TestGivenUp(t *testing.T) {
	a := newAsker(t, newLender(t, func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}), waitMax)
	a.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if got, took := a.get(ctx, names(100)); got != nil || took > waitMax/2 {
		t.Errorf("%v came, after %v", got, took)
	}
	a.peer.mu.Lock()
	over := a.peer.backoff.over(time.Now())
	a.peer.mu.Unlock()
	if !over {
		t.Error("the peer is blamed")
	}
}

// A program that knows nothing of this is not asked again for long.
func TestUnable(t *testing.T) {
	counts := &Counts{}
	p := NewPeer(Options{Counts: counts, Dial: func(context.Context) (net.Conn, error) { return nil, ErrUnable }})
	defer p.Close()
	for end := time.Now().Add(waitMax); counts.Failed.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.ready()
	}
	p.work.Wait()
	if p.ready() != nil || time.Until(p.backoff.until) < unableTime/2 || counts.Failed.Load() != 1 {
		t.Errorf("it is asked again at %v, %d failures", p.backoff.until, counts.Failed.Load())
	}
}

// A server answers at once what it has no room for, and bounds its replies.
func TestServerBounds(t *testing.T) {
	release := make(chan struct{})
	var begun atomic.Int64
	s := NewServer(func(fp id.Fingerprint, dst []byte) ([]byte, bool) {
		begun.Add(1)
		<-release
		return append(dst, make([]byte, 128<<10-16)...), true
	})
	near, far := net.Pipe()
	var work sync.WaitGroup
	work.Go(func() { s.Serve(far) })
	var requests []byte
	for i := range requestsMax {
		requests = appendRequest(requests, uint32(i), names(1))
	}
	requests = appendRequest(requests, 1000, names(3))
	work.Go(func() { _, _ = near.Write(requests) })
	p, err := readReply(near)
	if err != nil || p.number != 1000 || len(p.units) != 3 || len(p.sealed) != 0 {
		t.Errorf("what is too much is answered %+v, %v", p, err)
	}
	close(release)
	for range requestsMax {
		if p, err := readReply(near); err != nil || len(p.sealed) != 128<<10-16 {
			t.Fatalf("reply %+v, %v", p, err)
		}
	}
	before := begun.Load()
	work.Go(func() { _, _ = near.Write(appendRequest(nil, 2000, names(ChunksMax))) })
	if p, err = readReply(near); err != nil || len(p.sealed) > BytesMax || len(p.sealed) < BytesMax-128<<10 {
		t.Errorf("a full reply: %v", err)
	}
	if n := begun.Load() - before; n > BytesMax/(128<<10-16)+1 {
		t.Errorf("%d chunks are read for a full reply", n)
	}
	near.Close()
	work.Wait()
}
