package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"math/rand/v2"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/memory"
)

// view returns a client's view of the disk.
func view(t *testing.T, o Options) *Device {
	t.Helper()
	o.Logger = quiet
	o.Bytes = diskBytes
	if o.Gone == nil {
		o.Gone = func(_ any, err error) bool { return isGone(err) }
	}
	d := New(o)
	t.Cleanup(d.Close)
	return d
}

func to(address string) func(context.Context) (Place, error) {
	return func(context.Context) (Place, error) { return Place{Addr: address, Export: "vm"}, nil }
}

// load has writers each count in a block of their own, and compare what they read
// after every write, while harm is done 60 times, each time after some writes.
// Each write is done once.
func load(t *testing.T, d *Device, disk *shared, harm func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var writers sync.WaitGroup
	var writes atomic.Int64
	var over atomic.Bool
	for w := range int64(8) {
		writers.Go(func() {
			b, got := make([]byte, blockBytes), make([]byte, blockBytes)
			for n := uint64(1); !over.Load() && !t.Failed(); n++ {
				for i := 0; i < blockBytes; i += 8 {
					binary.LittleEndian.PutUint64(b[i:], n)
				}
				err := d.WriteAt(ctx, b, w*blockBytes, n%4 == 0)
				if err == nil {
					time.Sleep(rand.N(time.Millisecond))
					err = d.ReadAt(ctx, got, w*blockBytes)
				}
				if err != nil {
					t.Errorf("writer %d, write %d: %v", w, n, err)
					return
				}
				if !bytes.Equal(got, b) {
					t.Errorf("writer %d wrote %d and reads %d", w, n, binary.LittleEndian.Uint64(got))
				}
				writes.Add(1)
			}
		})
	}
	for range 60 {
		for until := writes.Load() + 1 + rand.Int64N(10); writes.Load() < until && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(rand.N(10 * time.Millisecond))
		harm()
	}
	over.Store(true)
	writers.Wait()
	d.Close()
	if disk.mu.Lock(); disk.applied != int(writes.Load()) && !t.Failed() {
		t.Errorf("of %d writes came %d", writes.Load(), disk.applied)
	}
	disk.mu.Unlock()
}

// Connections are cut, and what they have brought is carried out late: never after
// what the client sent later.
func TestNoOldCopyComesLate(t *testing.T) {
	pool := newPool(t)
	disk := newShared("a", true)
	r := newRelay(t, serve(t, host{"a", disk}, config(t, pool, "a")))
	d := view(t, Options{Find: to(r.address), TLS: config(t, pool, "b")})
	load(t, d, disk, r.cut)
}

// The disk moves between two peers and this host under load.
func TestMoves(t *testing.T) {
	pool := newPool(t)
	disk := newShared("a", true)
	addresses := map[string]string{}
	for _, name := range []string{"a", "b"} {
		addresses[name] = serve(t, host{name, disk}, config(t, pool, name))
	}
	var opened, released atomic.Int64
	d := view(t, Options{TLS: config(t, pool, "c"), Find: func(context.Context) (Place, error) {
		owner, while := disk.at()
		if owner != "c" {
			return Place{Addr: addresses[owner], Export: "vm", While: while}, nil
		}
		local, err := disk.open("c")
		if err != nil {
			return Place{}, err
		}
		if opened.Add(1)%2 == 0 { // or else its errors say that it has left
			while = nil
		}
		return Place{Local: local, Release: func() { released.Add(1) }, While: while}, nil
	}})
	load(t, d, disk, func() { disk.move([]string{"a", "b", "c"}[rand.IntN(3)]) })
	d.Close()
	if opened.Load() == 0 || opened.Load() != released.Load() {
		t.Errorf("the disk was here %d times and released %d times", opened.Load(), released.Load())
	}
}

// A write that its client has given up is not carried out after the client's next.
func TestAbandonedWriteStaysInOrder(t *testing.T) {
	pool := newPool(t)
	m := memory.New(diskBytes)
	begun, hold, carriedOut := make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	var first sync.Once
	probe := &blocking{Device: m, write: func(write func() error) (err error) {
		mine := false
		first.Do(func() { mine = true })
		if !mine {
			return write()
		}
		begun <- struct{}{}
		<-hold
		defer close(carriedOut)
		return write()
	}}
	d := view(t, Options{TLS: config(t, pool, "b"),
		Find: to(serve(t, one{probe}, config(t, pool, "a")))})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	if err := d.WriteAt(ctx, []byte("old"), 0, false); !errors.Is(err, context.Canceled) && !errors.Is(err, client.ErrClosed) {
		t.Fatalf("the write that was given up: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { close(hold) })
	if err := d.WriteAt(t.Context(), []byte("new"), 0, false); err != nil {
		t.Fatal(err)
	}
	<-carriedOut
	got := make([]byte, 3)
	if err := d.ReadAt(t.Context(), got, 0); err != nil || string(got) != "new" {
		t.Errorf("read %q, %v", got, err)
	}
}

// one is a disk that stays.
type one struct{ nbd.Device }

func (o one) Open(context.Context, string) (nbd.Export, func(error) bool, func(), error) {
	return nbd.Export{Name: "vm", Device: o.Device}, nil, func() {}, nil
}

// blocking is a device whose writes do not heed their context.
type blocking struct {
	*memory.Device
	write func(func() error) error
}

func (b *blocking) TryWriteAt([]byte, int64) bool { return false }

func (b *blocking) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return b.write(func() error { return b.Device.WriteAt(context.WithoutCancel(ctx), p, off, fua) })
}

// A peer that says nothing is left when the disk is known to have left it.
func TestSilentPeerIsLeft(t *testing.T) {
	pool := newPool(t)
	disk := newShared("a", false)
	a := newRelay(t, serve(t, host{"a", disk}, config(t, pool, "a")))
	b := serve(t, host{"b", disk}, config(t, pool, "b"))
	d := view(t, Options{TLS: config(t, pool, "c"), Find: func(context.Context) (Place, error) {
		owner, while := disk.at()
		return Place{Addr: map[string]string{"a": a.address, "b": b}[owner], Export: "vm", While: while}, nil
	}})
	if err := d.WriteAt(t.Context(), []byte("abc"), 0, false); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.silent = true
	a.mu.Unlock()
	time.AfterFunc(50*time.Millisecond, func() { disk.move("b") })
	got := make([]byte, 3)
	if err := d.ReadAt(t.Context(), got, 0); err != nil || string(got) != "abc" {
		t.Errorf("read %q, %v", got, err)
	}
}

// Whoever has not the root key is not let in, at either end.
func TestStrangersAreRefused(t *testing.T) {
	pool, other := newPool(t), newPool(t)
	address := serve(t, host{"a", newShared("a", false)}, config(t, pool, "a"))
	name := strings.Repeat("0", 2*sessionBytes) + separator + "vm"
	for what, o := range map[string]client.Options{
		"without TLS":           {},
		"of another pool":       {TLS: config(t, other, "b")},
		"without a certificate": {TLS: anonymous(t, other, false)},
		"that trusts everybody": {TLS: anonymous(t, other, true)},
		"that shows nothing":    {TLS: anonymous(t, pool, false)},
	} {
		c, err := client.Dial(t.Context(), "tcp", address, name, o)
		if err == nil {
			// TLS 1.3: a server's refusal of a certificate comes after the handshake.
			err = c.Flush(t.Context())
			c.Close()
		}
		if err == nil {
			t.Errorf("a peer %s was let in", what)
		}
	}
	c, err := client.Dial(t.Context(), "tcp", address, name, client.Options{TLS: config(t, pool, "b")})
	if err != nil {
		t.Fatalf("a peer: %v", err)
	}
	c.Close()
	// Nor does a host send anything to a server of another pool.
	d := view(t, Options{Find: to(address), TLS: config(t, other, "b")})
	if _, err := d.open(t.Context(), Place{Addr: address, Export: "vm"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a disk at a stranger: %v", err)
	}
}

func TestBadNames(t *testing.T) {
	x := NewExports(host{"a", newShared("a", false)})
	good := strings.Repeat("0a", sessionBytes)
	for _, name := range []string{"", "vm", "/vm", good, good + "/", good[1:] + "/vm", good + "0/vm", strings.ToUpper(good) + "/vm", good + "/vm/x"} {
		if _, _, err := x.Open(t.Context(), name); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := x.Describe(t.Context(), name); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("describe %q: %v", name, err)
		}
	}
	if len(x.sessions) != 0 {
		t.Errorf("%d sessions are left", len(x.sessions))
	}
	if info, err := x.Describe(t.Context(), good+"/vm"); err != nil || info.Size != diskBytes {
		t.Errorf("%+v, %v", info, err)
	}
}

// A place that fails is asked for again; what a disk itself refuses is the answer.
func TestErrors(t *testing.T) {
	pool := newPool(t)
	var asked atomic.Int64
	m := memory.New(diskBytes)
	d := view(t, Options{TLS: config(t, pool, "b"), Find: func(context.Context) (Place, error) {
		switch asked.Add(1) {
		case 1:
			return Place{}, errors.New("nobody has it")
		case 2:
			return Place{}, nil
		case 3:
			return Place{Addr: "127.0.0.1:1", Export: "vm"}, nil
		}
		return Place{Local: refusing{m}}, nil
	}})
	if err := d.ReadAt(t.Context(), make([]byte, 1), 0); err != nil || asked.Load() != 4 {
		t.Errorf("read: %v after %d attempts", err, asked.Load())
	}
	if err := d.WriteAt(t.Context(), make([]byte, 1), 0, false); !errors.Is(err, nbd.ErrNoSpace) || asked.Load() != 4 {
		t.Errorf("write: %v after %d attempts", err, asked.Load())
	}
	d.Close()
	if err := d.Flush(t.Context()); !errors.Is(err, nbd.ErrShutdown) {
		t.Errorf("after the end: %v", err)
	}
}

// A change that a place in this process has begun goes on where it ended; one that
// was done to its end is not done again, and is flushed.
func TestResume(t *testing.T) {
	pool := newPool(t)
	shared := newShared("a", false)
	disk := shared.Device
	peer := serve(t, host{"a", shared}, config(t, pool, "a"))
	for _, done := range []int64{0, 3, 6} {
		if err := disk.WriteAt(t.Context(), []byte("......"), 0, false); err != nil {
			t.Fatal(err)
		}
		var found, wrote, left atomic.Int64
		d := view(t, Options{TLS: config(t, pool, "b"), Find: func(context.Context) (Place, error) {
			if found.Add(1) == 1 {
				return Place{Local: interrupting{disk}, Of: "first"}, nil
			}
			return Place{Addr: peer, Export: "vm"}, nil
		}, Begun: func(of any, err error) []Piece {
			if of != "first" || !isGone(err) {
				t.Errorf("asked for what ended at %v with %v", of, err)
			}
			return []Piece{{Bytes: done, Pos: 1}, {Bytes: 6 - done, Pos: 2}}
		}, Wrote: func(peer bool) {
			if peer != (found.Load() == 2) {
				t.Errorf("the first change at place %d, of a peer: %v", found.Load(), peer)
			}
			wrote.Add(1)
		}, Left: func() { left.Add(1) }})
		for range 2 {
			if err := d.WriteAt(t.Context(), []byte("abcdef"), 0, true); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 6)
			if err := d.ReadAt(t.Context(), got, 0); err != nil || string(got) != "......"[:done]+"abcdef"[done:] {
				t.Errorf("%d bytes were done: read %q, %v", done, got, err)
			}
			done = 0 // of the second, which the peer has wholly
		}
		if found.Load() != 2 || wrote.Load() != 2 || left.Load() != 1 {
			t.Errorf("%d places, %d first changes, left %d times", found.Load(), wrote.Load(), left.Load())
		}
	}
}

// interrupting is a place that a disk has left.
type interrupting struct{ *memory.Device }

func (interrupting) WriteAt(context.Context, []byte, int64, bool) error { return errGone }

// A place that there will never be is not waited for.
func TestNoPlace(t *testing.T) {
	d := view(t, Options{Find: func(context.Context) (Place, error) { return Place{}, fmt.Errorf("%w: it was removed", ErrNone) }})
	if err := d.Flush(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("flush: %v", err)
	}
}

// A disk whose host does not answer is wanted by the one that was asked.
func TestUnreachedPeer(t *testing.T) {
	pool := newPool(t)
	wanted := make(chan struct{}, 1)
	disk := memory.New(diskBytes)
	d := view(t, Options{TLS: config(t, pool, "b"), Find: func(context.Context) (Place, error) {
		if len(wanted) > 0 {
			return Place{Local: disk}, nil
		}
		return Place{Addr: "127.0.0.1:1", Export: "vm"}, nil
	}, Unreached: func() { wanted <- struct{}{} }})
	if err := d.Flush(t.Context()); err != nil || len(wanted) != 1 {
		t.Errorf("flush: %v, wanted %d times", err, len(wanted))
	}
}

type refusing struct{ *memory.Device }

func (refusing) WriteAt(context.Context, []byte, int64, bool) error {
	return fmt.Errorf("write: %w", nbd.ErrNoSpace)
}
