package remote

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/forward"
	"plinth/internal/host"
	"plinth/internal/linear"
	"plinth/nbd"
)

var (
	onceOps     = flag.Int("once-ops", 1500, "operations of TestForwardedLinearizable")
	onceVersion = flag.Uint("once-version", uint(forward.Speaks.High), "version that its hosts speak with each other")
)

// opaque is a network between hosts: it can keep answers back, and hang up.
type opaque struct {
	net.Listener

	mu    sync.Mutex
	to    string // known before anybody comes
	mute  bool
	conns map[net.Conn]bool
}

func newOpaque(t testing.TB) *opaque {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	o := &opaque{Listener: l, conns: map[net.Conn]bool{}}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { o.pass(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		o.hangUp()
		work.Wait()
	})
	return o
}

func (o *opaque) pass(near net.Conn) {
	defer near.Close()
	o.mu.Lock()
	to := o.to
	o.conns[near] = true
	o.mu.Unlock()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(answers{near, o}, far)
		_ = near.Close()
	}()
	_, _ = io.Copy(far, near)
	_ = far.Close()
	<-back
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, near)
}

type answers struct {
	io.Writer
	o *opaque
}

func (a answers) Write(p []byte) (int, error) {
	a.o.mu.Lock()
	mute := a.o.mute
	a.o.mu.Unlock()
	if mute {
		return len(p), nil
	}
	return a.Writer.Write(p)
}

func (o *opaque) setMute(mute bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mute = mute
}

func (o *opaque) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		_ = c.Close()
	}
}

// agents opens hosts a, b, c … that speak up to these versions with each other, with a
// disk, each reached by the others through a network.
func (f *far) agents(t *testing.T, ttl time.Duration, versions ...uint16) (all []*Agent, links []*link, nets []*opaque) {
	t.Helper()
	for i, version := range versions {
		name := string(rune('a' + i))
		l, n := &link{}, newOpaque(t)
		opts := f.options(t, name, l)
		opts.Peer.Address, opts.Host.LeaseTTL, opts.speaks = n.Addr().String(), ttl, forward.Versions{Low: 1, High: version}
		a, err := Open(t.Context(), opts)
		ok(t, err)
		t.Cleanup(func() { ok(t, a.Close()) })
		n.mu.Lock()
		n.to = a.peer.listener.Addr().String()
		n.mu.Unlock()
		all, links, nets = append(all, a), append(links, l), append(nets, n)
	}
	_, err := all[0].Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: 1 << 20})
	ok(t, err)
	for _, a := range all {
		until(t, "the disk is known", func() bool { _, err := a.Host().Disk("d"); return err == nil })
	}
	return all, links, nets
}

func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(busyTime); !is(); time.Sleep(5 * time.Millisecond) {
		if t.Failed() || time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func has(t *testing.T, d nbd.Device, want string) bool {
	t.Helper()
	got := make([]byte, len(want))
	ok(t, d.ReadAt(t.Context(), got, 0))
	return string(got) == want
}

// A write is forwarded and carried out, and its answer is lost; another client writes
// over it. When it is sent again, to whoever has the disk by then, it changes nothing.
// Hosts of version 1 do it twice.
func TestForwardedOnce(t *testing.T) {
	const first, other = "first", "other"
	for name, next := range map[string]struct {
		at   int // who has the disk then
		low  uint16
		move func(t *testing.T, all []*Agent, links []*link)
	}{
		"the same host": {0, 1, func(*testing.T, []*Agent, []*link) {}},
		"a new session": {0, 2, func(t *testing.T, all []*Agent, links []*link) {
			s := all[0].now.Load()
			links[0].setCut(true)
			until(t, "the session has ended", s.broken)
			links[0].setCut(false)
			until(t, "there is another one", func() bool { return all[0].now.Load() != s })
		}},
		"another host": {1, 1, func(t *testing.T, all []*Agent, _ []*link) {
			ok(t, all[0].Host().MoveDisk(t.Context(), "d", "b"))
		}},
		"the forwarder": {2, 2, func(t *testing.T, all []*Agent, _ []*link) {
			ok(t, all[0].Host().MoveDisk(t.Context(), "d", "b"))
			time.Sleep(100 * time.Millisecond) // so that b destages
			ok(t, all[1].Host().MoveDisk(t.Context(), "d", "c"))
		}},
	} {
		for version := next.low; version <= forward.Speaks.High; version++ {
			t.Run(fmt.Sprint(name, ", version ", version), func(t *testing.T) {
				t.Parallel()
				all, links, nets := newFar(t).agents(t, 5*time.Second, version, version, version)
				info, err := all[0].Host().Disk("d")
				ok(t, err)
				at := make(chan int, 2)
				at <- 0
				d := forward.New(forward.Options{
					TLS: all[2].tls, Logger: slog.New(slog.DiscardHandler), Gone: gone,
					Find: func(ctx context.Context) (forward.Place, error) {
						i := <-at
						at <- i
						if i < 2 {
							return forward.Place{Addr: all[i].peer.address(), Export: peerName(info.ID, "")}, nil
						}
						p, err := all[2].Host().Here(ctx, info.ID, "")
						if err != nil {
							return forward.Place{}, err
						}
						return forward.Place{Local: p.Export.Device, Release: p.Release, Of: here{all[2].now.Load()}}, nil
					},
				})
				defer d.Close()
				ok(t, d.WriteAt(t.Context(), []byte("....."), 0, false))
				a := openExport(t, all[0], "d")
				nets[0].setMute(true)
				done := make(chan error, 1)
				go func() { done <- d.WriteAt(t.Context(), []byte(first), 0, false) }()
				until(t, "the write is carried out", func() bool { return has(t, a, first) })
				ok(t, a.WriteAt(t.Context(), []byte(other), 0, false))
				next.move(t, all, links)
				<-at
				at <- next.at
				nets[0].setMute(false)
				nets[0].hangUp()
				ok(t, <-done)
				want := other
				if version == 1 {
					want = first
				}
				if !has(t, a, want) {
					t.Errorf("version %d: what is read is not %q", version, want)
				}
			})
		}
	}
}

// A host's own append gets no answer, and another host takes the disk over; its client
// writes over it. The first host asks that one, and changes nothing.
func TestOwnChangeOnce(t *testing.T) {
	f := newFar(t)
	all, links, _ := f.agents(t, 2*time.Second, forward.Speaks.High, forward.Speaks.High)
	a, b := openExport(t, all[0], "d"), openExport(t, all[1], "d")
	info, err := all[0].Host().Disk("d")
	ok(t, err)
	ok(t, a.WriteAt(t.Context(), []byte("....."), 0, false)) // position 1
	links[0].setDeaf(true)
	done := make(chan error, 1)
	go func() { done <- a.WriteAt(t.Context(), []byte("first"), 0, false) }()
	until(t, "the append is carried out", func() bool {
		log, err := f.ReadLog(t.Context(), &datanode.ReadLogRequest{Disk: info.ID, Epoch: info.Epoch, Stream: datanode.Ops, From: 2})
		ok(t, err)
		return len(log.Records) > 0
	})
	links[0].setCut(true)
	links[0].setDeaf(false)
	until(t, "the disk is taken over", func() bool { return has(t, b, "first") })
	ok(t, b.WriteAt(t.Context(), []byte("other"), 0, false))
	time.Sleep(100 * time.Millisecond) // so that it is destaged
	links[0].setCut(false)
	ok(t, <-done)
	if owner(t, all, "d") != 1 {
		t.Error("the disk is where it was")
	}
	for _, d := range []nbd.Device{a, b} {
		if !has(t, d, "other") {
			t.Error("the write is done twice")
		}
	}
}

// Clients at two hosts share a disk, while it moves, answers between hosts are lost, and
// hosts lose their data node: they see registers, and no write twice.
func TestForwardedLinearizable(t *testing.T) {
	const sectors, clients = 24, 8
	all, links, nets := newFar(t).agents(t, 5*time.Second, uint16(*onceVersion), uint16(*onceVersion))
	h := linear.New(sectors)
	var left atomic.Int64
	left.Store(int64(*onceOps))
	ctx, cancel := context.WithTimeout(t.Context(), busyTime)
	defer cancel()
	var working sync.WaitGroup
	for c := range clients {
		d := openExport(t, all[c%2], "d")
		working.Go(func() {
			for left.Add(-1) >= 0 && !t.Failed() {
				first := rand.IntN(sectors)
				n, off := 1+rand.IntN(min(10, sectors-first)), int64(first*linear.SectorBytes)
				var err error
				if rand.IntN(2) == 0 {
					err = h.Write(first, n, func(p []byte) error { return d.WriteAt(ctx, p, off, rand.IntN(8) == 0) })
				} else {
					err = h.Read(first, n, func(p []byte) error { return d.ReadAt(ctx, p, off) })
				}
				if err != nil {
					t.Error(err)
				}
				time.Sleep(rand.N(4 * time.Millisecond))
			}
		})
	}
	over, end := context.WithCancel(ctx)
	go func() { working.Wait(); end() }()
	moves, losses, cuts := 0, 0, 0
	for over.Err() == nil {
		i := rand.IntN(2)
		switch rand.IntN(8) {
		case 0:
			if all[i].Host().MoveDisk(over, "d", all[1-i].opts.Name) == nil {
				moves++
			}
		case 1:
			cuts++
			links[i].setDeaf(true)
			time.Sleep(rand.N(20 * time.Millisecond))
			links[i].setCut(true)
			links[i].setDeaf(false)
			links[i].setCut(false)
		default:
			losses++
			nets[i].setMute(true)
			time.Sleep(rand.N(20 * time.Millisecond))
			nets[i].hangUp()
			nets[i].setMute(false)
		}
		time.Sleep(rand.N(40 * time.Millisecond))
	}
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	t.Logf("%+v, %d moves, answers were lost %d times, data nodes %d times", h.Tally, moves, losses, cuts)
}

// Of three hosts one speaks the version before: they serve each other's clients, while the
// disk moves.
func TestOlderPeer(t *testing.T) {
	f := newFar(t)
	high := forward.Speaks.High
	all, _, nets := f.agents(t, 5*time.Second, high, high-1, high)
	var devices []nbd.Device
	for _, a := range all {
		devices = append(devices, openExport(t, a, "d"))
	}
	b := load(t, devices...)
	for i := range 9 {
		b.await(t, 20)
		err := all[i%3].Host().MoveDisk(t.Context(), "d", all[i%3].opts.Name)
		if err != nil && !errors.Is(err, host.ErrBusy) { // a client has asked for it meanwhile
			t.Fatal(err)
		}
		nets[i%3].hangUp()
	}
	b.await(t, 50)
	b.end()
}
