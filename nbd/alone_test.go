package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/nbdtest"
)

// aloneHouse serves a device that counts the calls which a connection's reader makes
// itself, and holds up those at offset 0 while holds is set.
type aloneHouse struct {
	*house
	byReader, calls atomic.Int32
	holds           atomic.Bool
	gate            *gate
	deaf            bool        // calls do not hear their context
	pairs           atomic.Bool // each call lasts until one more was sent than there are calls
	sent, paired    atomic.Int32
}

func serveAlone(t *testing.T, o nbd.Options) *aloneHouse {
	t.Helper()
	a := &aloneHouse{gate: newGate()}
	a.house = serve(t, "unix", o, probe(func(ctx context.Context, c nbdtest.Call) error {
		a.calls.Add(1)
		if bytes.Contains(debug.Stack(), []byte("transmission).serveAlone")) {
			a.byReader.Add(1)
		}
		if a.pairs.Load() {
			for n, end := a.paired.Add(1), time.Now().Add(5*time.Millisecond); a.sent.Load() <= n && time.Now().Before(end); {
				runtime.Gosched()
			}
		}
		if c.Off != 0 || c.Op != "write" || !a.holds.Load() {
			return nil
		}
		if a.deaf {
			ctx = context.Background()
		}
		return a.gate.wait(ctx, c)
	}))
	return a
}

// write has a block written, and waits for the answer.
func write(r *nbdtest.Raw, cookie, off uint64) {
	r.Request(0, wire.CmdWrite, cookie, off, 4, []byte("data"))
	r.Expect(0, cookie)
}

func (a *aloneHouse) enter(t *testing.T) *nbdtest.Raw {
	t.Helper()
	r := a.raw(t)
	r.Enter("disk")
	return r
}

// hold sends a write, with cookie 1, that is held up until gate opens.
func (a *aloneHouse) hold(t *testing.T, r *nbdtest.Raw) {
	t.Helper()
	a.holds.Store(true)
	r.Request(0, wire.CmdWrite, 1, 0, 4, []byte("held"))
	eventually(t, func() bool { return a.gate.in.Load() == 1 })
}

// accepted receives the answer, without error, to one of several requests.
func accepted(t *testing.T, r *nbdtest.Raw) {
	t.Helper()
	if errno, _ := r.Reply(); errno != 0 {
		t.Fatalf("error %d", errno)
	}
}

// single makes the next change one that the reader serves.
func (a *aloneHouse) single(t *testing.T, r *nbdtest.Raw) {
	t.Helper()
	for i := range uint64(20) {
		write(r, 1000+i, 4096)
	}
	if a.byReader.Load() == 0 {
		t.Fatal("no change was served by the reader")
	}
}

func TestReaderServesWhoWaits(t *testing.T) {
	a := serveAlone(t, nbd.Options{})
	r := a.enter(t)
	for i := range uint64(100) {
		write(r, i, 4096)
	}
	if n := a.byReader.Load(); n < 70 || n > 84 {
		t.Errorf("the reader served %d of 100 that were alone", n)
	}
	before := a.byReader.Load()
	for i := range uint64(100) {
		r.Request(0, wire.CmdRead, i, 4096, 4, nil)
		r.Expect(0, i)
		r.Receive(4)
	}
	if n := a.byReader.Load() - before; n < 70 {
		t.Errorf("the reader served %d of 100 reads", n)
	}
	before = a.byReader.Load()
	for i := range uint64(100) {
		r.Request(wire.CmdFlagFUA, wire.CmdWrite, i, 4096, 4, []byte("data"))
		r.Expect(0, i)
		r.Request(0, wire.CmdFlush, i, 0, 0, nil)
		r.Expect(0, i)
	}
	if n := a.byReader.Load() - before; n > 0 {
		t.Errorf("the reader served %d that wait for a drive", n)
	}
}

// Who has sent more before it has an answer is found out, though each of its changes
// is alone when it is read.
func TestReaderServesNotTwo(t *testing.T) {
	a := serveAlone(t, nbd.Options{})
	r := a.enter(t)
	a.single(t, r)
	a.pairs.Store(true)
	before := a.byReader.Load()
	const pairs = 200
	for i := range uint64(pairs) { // each is sent while the one before it is served
		calls := a.calls.Load()
		r.Request(0, wire.CmdWrite, i, 4096, 4, []byte("data"))
		a.sent.Add(1)
		if i > 0 {
			accepted(t, r)
		}
		for a.calls.Load() == calls {
			runtime.Gosched()
		}
	}
	accepted(t, r)
	if n := a.byReader.Load() - before; n > pairs*9/10 {
		t.Errorf("the reader served %d of %d", n, pairs)
	}
}

// A change that takes long holds up nothing else of its connection, again and again.
func TestReaderIsReplaced(t *testing.T) {
	a := serveAlone(t, nbd.Options{})
	r := a.enter(t)
	for range 3 {
		a.single(t, r)
		a.gate = newGate()
		a.hold(t, r)
		r.Request(0, wire.CmdRead, 2, 4096, 4, nil)
		r.Expect(0, 2)
		if got := r.Receive(4); string(got) != "data" {
			t.Errorf("read %q", got)
		}
		before := a.byReader.Load()
		for i := range uint64(40) {
			write(r, 100+i, 8192)
		}
		if n := a.byReader.Load() - before; n > 0 {
			t.Errorf("the reader served %d that were not alone", n)
		}
		a.holds.Store(false)
		a.gate.open()
		r.Expect(0, 1)
	}
	if n := a.byReader.Load(); n < 6 {
		t.Errorf("the reader served %d", n)
	}
}

// Who hangs up while the reader serves it is noticed, and its change ends.
func TestHangUpWhileReaderServes(t *testing.T) {
	a := serveAlone(t, nbd.Options{})
	r := a.enter(t)
	a.single(t, r)
	a.hold(t, r)
	r.Conn.Close()
	eventually(t, func() bool { return a.gate.ended.Load() == 1 })
	eventually(t, func() bool { return a.Connections("disk") == 0 })
}

// A change that ignores its deadline is answered for it, and its connection goes on.
func TestReaderServesTooLong(t *testing.T) {
	a := serveAlone(t, nbd.Options{RequestTimeout: 300 * time.Millisecond})
	a.deaf = true
	r := a.enter(t)
	a.single(t, r)
	a.holds.Store(true)
	r.Request(0, wire.CmdWrite, 1, 0, 4, []byte("held"))
	r.Expect(uint32(nbd.EIO), 1)
	r.Request(0, wire.CmdRead, 2, 4096, 4, nil)
	r.Expect(0, 2)
	r.Receive(4)
	a.holds.Store(false)
	a.gate.open()
	eventually(t, func() bool {
		r.Request(0, wire.CmdWrite, 3, 4096, 4, []byte("next"))
		errno, _ := r.Reply()
		return errno == 0
	})
}

func TestShutdownWhileReaderServes(t *testing.T) {
	a := serveAlone(t, nbd.Options{})
	r := a.enter(t)
	a.single(t, r)
	a.hold(t, r)
	done := make(chan error)
	go func() { done <- a.Shutdown(context.Background()) }()
	time.Sleep(20 * time.Millisecond)
	a.gate.open()
	r.Expect(0, 1)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Clients that wait for a while and then have more in flight, on a device that takes
// some microseconds or some milliseconds, read what they wrote.
func TestReadersTakeTurns(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, probe(func(ctx context.Context, c nbdtest.Call) error {
		if rand.IntN(20) == 0 {
			time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		}
		return nil
	}))
	const region = 64 << 10
	var clients sync.WaitGroup
	for n := range 4 {
		clients.Go(func() {
			c := h.open(t, "disk")
			for turn := range 12 {
				one := func(i int) {
					off, want := int64(n*region+i*4096), bytes.Repeat([]byte{byte(turn*16 + i)}, 512)
					got := make([]byte, len(want))
					if err := errors.Join(c.WriteAt(t.Context(), want, off, false), c.ReadAt(t.Context(), got, off)); err != nil || !bytes.Equal(got, want) {
						t.Errorf("client %d, turn %d: read %d, %v, want %d", n, turn, got[0], err, want[0])
					}
				}
				for i := range 20 {
					one(i % 16)
				}
				var more sync.WaitGroup
				for i := range turn % 4 {
					more.Go(func() { one(i) })
				}
				more.Wait()
			}
		})
	}
	clients.Wait()
}
