package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

const mib = 1 << 20

// probe is an export of 1 MiB whose calls go through before.
func probe(before func(context.Context, nbdtest.Call) error) nbd.Export {
	return nbd.Export{Name: "disk", Device: &nbdtest.Probe{Device: memory.New(mib), Before: before}}
}

// gate holds up calls until it is opened, or their context ends.
type gate struct {
	ch    chan struct{}
	in    atomic.Int32 // calls that wait now
	ended atomic.Int32 // by their context
}

func newGate() *gate { return &gate{ch: make(chan struct{})} }

func (g *gate) open() { close(g.ch) }

func (g *gate) wait(ctx context.Context, _ nbdtest.Call) error {
	g.in.Add(1)
	defer g.in.Add(-1)
	select {
	case <-g.ch:
		return nil
	case <-ctx.Done():
		g.ended.Add(1)
		return ctx.Err()
	}
}

// settle waits until n calls are held up, and then for more that should not
// come.
func (g *gate) settle(t *testing.T, n int32) {
	t.Helper()
	eventually(t, func() bool { return g.in.Load() == n })
	time.Sleep(50 * time.Millisecond)
	if got := g.in.Load(); got != n {
		t.Fatalf("%d calls are under way, want %d", got, n)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not come about in a minute")
		}
	}
}

func TestRepliesComeAsTheDeviceFinishes(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{}, probe(func(ctx context.Context, c nbdtest.Call) error {
		if c.Off == 0 && c.Op != "flush" {
			return g.wait(ctx, c)
		}
		return nil
	}))
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdWrite, 1, 0, 512, make([]byte, 512))
	r.Request(0, wire.CmdRead, 2, 512, 512, nil)
	r.Expect(0, 2)
	r.Receive(512)
	r.Request(0, wire.CmdFlush, 3, 0, 0, nil)
	r.Expect(0, 3)
	g.open()
	r.Expect(0, 1)
}

func TestRequestsReachTheDevice(t *testing.T) {
	calls := make(chan nbdtest.Call, 1)
	h := serve(t, "unix", nbd.Options{}, probe(func(_ context.Context, c nbdtest.Call) error {
		calls <- c
		return nil
	}))
	r := h.raw(t)
	r.Enter("disk")
	const fua, noHole = wire.CmdFlagFUA, wire.CmdFlagNoHole
	for i, test := range []struct {
		flags, typ uint16
		off        uint64
		n          uint32
		want       nbdtest.Call
	}{
		{0, wire.CmdRead, 7, 9, nbdtest.Call{Op: "read", Off: 7, N: 9}},
		{fua, wire.CmdRead, 7, 9, nbdtest.Call{Op: "read", Off: 7, N: 9}},
		{0, wire.CmdWrite, 3, 5, nbdtest.Call{Op: "write", Off: 3, N: 5}},
		{fua, wire.CmdWrite, 3, 5, nbdtest.Call{Op: "write", Off: 3, N: 5, FUA: true}},
		{0, wire.CmdTrim, 1, mib - 1, nbdtest.Call{Op: "trim", Off: 1, N: mib - 1}},
		{fua, wire.CmdTrim, 0, mib, nbdtest.Call{Op: "trim", N: mib, FUA: true}},
		{0, wire.CmdWriteZeroes, 1, 2, nbdtest.Call{Op: "zero", Off: 1, N: 2, MayTrim: true}},
		{noHole, wire.CmdWriteZeroes, 1, 2, nbdtest.Call{Op: "zero", Off: 1, N: 2}},
		{fua | noHole, wire.CmdWriteZeroes, 1, 2, nbdtest.Call{Op: "zero", Off: 1, N: 2, FUA: true}},
		{0, wire.CmdFlush, 0, 0, nbdtest.Call{Op: "flush"}},
		{fua, wire.CmdFlush, 0, 0, nbdtest.Call{Op: "flush"}},
	} {
		var payload []byte
		if test.typ == wire.CmdWrite {
			payload = make([]byte, test.n)
		}
		r.Request(test.flags, test.typ, uint64(i), test.off, test.n, payload)
		r.Expect(0, uint64(i))
		if test.typ == wire.CmdRead {
			r.Receive(int(test.n))
		}
		if got := <-calls; got != test.want {
			t.Errorf("%+v reached the device, want %+v", got, test.want)
		}
	}
}

func TestErrorsReachTheClient(t *testing.T) {
	own := errors.New("known to the server's user")
	var fail error
	h := serve(t, "unix", nbd.Options{Errno: func(err error) nbd.Errno {
		if errors.Is(err, own) {
			return nbd.ENOTSUP
		}
		return 0
	}}, probe(func(context.Context, nbdtest.Call) error { return fail }))
	r := h.raw(t)
	r.Enter("disk")
	for i, test := range []struct {
		err         error
		read, write nbd.Errno
	}{
		{errors.New("anything"), nbd.EIO, nbd.EIO},
		{nbd.ErrNoSpace, nbd.ENOSPC, nbd.ENOSPC},
		{nbd.ErrReadOnly, nbd.EPERM, nbd.EPERM},
		{nbd.ErrOutOfRange, nbd.EINVAL, nbd.ENOSPC},
		{nbd.ErrShutdown, nbd.ESHUTDOWN, nbd.ESHUTDOWN},
		{nbd.ENOMEM, nbd.ENOMEM, nbd.ENOMEM},
		{nbd.Errno(42), nbd.EIO, nbd.EIO},
		{context.DeadlineExceeded, nbd.EIO, nbd.EIO},
		{syscall.ENOSPC, nbd.ENOSPC, nbd.ENOSPC},
		{own, nbd.ENOTSUP, nbd.ENOTSUP},
	} {
		fail = fmt.Errorf("wrapped: %w", test.err)
		cookie := uint64(10 * i)
		// A failed read has no payload: the next reply follows at once.
		r.Request(0, wire.CmdRead, cookie, 0, 4096, nil)
		r.Expect(uint32(test.read), cookie)
		r.Request(0, wire.CmdWrite, cookie+1, 0, 1, []byte{1})
		r.Expect(uint32(test.write), cookie+1)
	}
}

func TestWindowBoundsRequests(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{RequestsMax: 3}, probe(g.wait))
	r := h.raw(t)
	r.Enter("disk")
	for i := range 10 {
		r.Request(0, wire.CmdTrim, uint64(i), 0, 1, nil)
	}
	g.settle(t, 3)
	g.open()
	expectAll(t, r, 10, 0)
}

func TestWindowBoundsBytes(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{BytesInFlightMax: 16 << 10}, probe(g.wait))
	r := h.raw(t)
	r.Enter("disk")
	for i := range 9 {
		r.Request(0, wire.CmdWrite, uint64(i), 0, 5000, make([]byte, 5000)) // charged 8 KiB
	}
	r.Request(0, wire.CmdWrite, 9, 0, 100<<10, make([]byte, 100<<10)) // more than the window: goes alone
	g.settle(t, 2)
	g.open()
	expectAll(t, r, 10, 0)
}

// expectAll reads the replies to cookies 0 to n-1, in any order.
func expectAll(t *testing.T, r *nbdtest.Raw, n int, errno uint32) {
	t.Helper()
	seen := map[uint64]bool{}
	for range n {
		e, cookie := r.Reply()
		if e != errno || seen[cookie] || cookie >= uint64(n) {
			t.Fatalf("reply with error %d to cookie %d", e, cookie)
		}
		seen[cookie] = true
	}
}

// Requests of all connections run at once, each connection's in parallel.
func TestParallel(t *testing.T) {
	g := newGate()
	h := serve(t, "tcp", nbd.Options{}, probe(g.wait))
	var wg sync.WaitGroup
	for range 3 {
		c := h.open(t, "disk")
		for i := range 16 {
			wg.Go(func() {
				if err := c.WriteAt(context.Background(), []byte{1}, int64(i), false); err != nil {
					t.Error(err)
				}
			})
		}
	}
	g.settle(t, 48)
	if n := h.Connections("disk"); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	g.open()
	wg.Wait()
}

// moody takes some writes at once, others not.
type moody struct {
	*memory.Device
	tries atomic.Int64
	takes int64
}

func (m *moody) TryWriteAt(p []byte, off int64) bool {
	return m.tries.Add(1) <= m.takes && m.Device.TryWriteAt(p, off)
}

// A long write is handed over in pieces; wherever the device takes no more at
// once, the rest goes the other way.
func TestLongWriteInPieces(t *testing.T) {
	for takes := range int64(6) {
		d := &moody{Device: memory.New(2 * mib), takes: takes}
		h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: d})
		c := h.open(t, "disk")
		want := make([]byte, mib+12345)
		for i := range want {
			want[i] = byte(i * 7 >> 3)
		}
		if err := c.WriteAt(t.Context(), want, 4321, false); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := c.ReadAt(t.Context(), got, 4321); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("a device that took %d pieces: other bytes read than written", takes)
		}
		if tried := d.tries.Load(); tried < min(takes+1, 5) {
			t.Errorf("a device that takes %d pieces was asked %d times", takes, tried)
		}
	}
}
