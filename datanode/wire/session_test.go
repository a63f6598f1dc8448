package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// A call whose connection breaks, before or after it was carried out, is carried
// out once, and its caller gets the reply.
func TestCallSurvivesItsConnection(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	for pos := id.Pos(1); pos <= 6; pos++ {
		got := start(func() error { return b.append(b.Context(), 1, pos) })
		b.begun()
		if pos%2 == 0 { // the reply is made while there is no connection
			b.proxy.set(true, false)
			b.proxy.cut()
			b.release(1)
			time.Sleep(50 * time.Millisecond)
			b.proxy.set(false, false)
		} else {
			b.proxy.cut()
			time.Sleep(50 * time.Millisecond)
			b.release(1)
		}
		b.want("append", got, nil)
	}
	if n := b.node.appends.Load(); n != 6 || b.ends(1) != 6 {
		t.Errorf("6 appends were carried out %d times, and the log has %d records", n, b.ends(1))
	}
}

// Whoever gives up is let go at once; the node is told, and the connection stays.
func TestCancelledCallLeaves(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	conn := b.c.links[0].current()
	ctx, cancel := context.WithCancel(b.Context())
	got := start(func() error { return b.append(ctx, 1, 1) })
	b.begun()
	cancel()
	b.want("append", got, context.Canceled)
	for b.node.running.Load() != 0 { // it is told
		time.Sleep(time.Millisecond)
	}
	// One that waits for a handler never begins.
	b.node.stubborn = true
	var block []chan error
	for d := range id.Disk(64) {
		d += 100
		b.fence(d)
		block = append(block, start(func() error { return b.append(b.Context(), d, 1) }))
		b.begun()
	}
	ctx, cancel = context.WithCancel(b.Context())
	got = start(func() error { return b.append(ctx, 1, 1) })
	time.Sleep(50 * time.Millisecond)
	before := b.node.appends.Load()
	cancel()
	b.want("append", got, context.Canceled)
	for len(b.c.free[0]) != cap(b.c.free[0])-len(block) { // the node has answered the cancel
		time.Sleep(time.Millisecond)
	}
	b.release(len(block))
	for _, c := range block {
		b.want("append", c, nil)
	}
	time.Sleep(50 * time.Millisecond)
	if n := b.node.appends.Load(); n != before || b.ends(1) != 0 {
		t.Errorf("a call that was cancelled while it waited was begun: %d appends, %d before, %d records", n, before, b.ends(1))
	}
	if b.c.links[0].current() != conn {
		t.Error("the connection was lost")
	}
}

func TestDeadlineTravels(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	ctx, cancel := context.WithTimeout(b.Context(), 100*time.Millisecond)
	defer cancel()
	b.want("append", start(func() error { return b.append(ctx, 1, 1) }), context.DeadlineExceeded)
	for b.node.running.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	// The node ends it itself where no cancel reaches it.
	<-b.node.began
	ctx, cancel = context.WithTimeout(b.Context(), 2*time.Second)
	defer cancel()
	got := start(func() error { return b.append(ctx, 1, 1) })
	b.begun()
	b.proxy.set(true, true)
	b.want("append", got, context.DeadlineExceeded)
	for range 60_000 {
		if b.node.running.Load() == 0 {
			b.proxy.set(false, false)
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("the node goes on with a call beyond its deadline")
}

// lateContext is a context whose deadline's timer never fires.
type lateContext struct {
	context.Context
	deadline time.Time
}

func (c lateContext) Deadline() (time.Time, bool) { return c.deadline, true }

// A node that ends a call before the caller's own timer has fired does so for
// the caller's deadline, and that is what the caller is told.
func TestDeadlineBeforeTimer(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	ctx := lateContext{b.Context(), time.Now().Add(50 * time.Millisecond)}
	b.want("append", start(func() error { return b.append(ctx, 1, 1) }), context.DeadlineExceeded)
}

// After a restart of the node's process, what may have been carried out has an
// unknown outcome, and nothing else is sent.
func TestRestartIsNoticed(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	got := start(func() error { return b.append(b.Context(), 1, 1) })
	b.begun()
	b.proxy.set(true, false)
	b.proxy.cut()
	b.down()
	waits := start(func() error {
		return b.c.TrimLog(b.Context(), &datanode.TrimLogRequest{Disk: 1, Epoch: 1, Through: 0})
	})
	stopped := start(b.v.Close)
	b.release(1)
	b.want("close", stopped, nil)
	next := serve(t, b.node, ServerOptions{TLS: b.ca.node(t)}, b.v.address)
	b.v.Server = next.Server // the bench stops that one
	<-b.v.ended
	b.v.ended = next.ended
	b.proxy.set(false, false)
	b.want("the append that was sent", got, datanode.ErrOutcome)
	b.want("the call that was not sent", waits, datanode.ErrRestarted)
	if _, err := b.c.Status(b.Context()); !errors.Is(err, datanode.ErrRestarted) {
		t.Errorf("a later call gave %v", err)
	}
	if !errors.Is(b.c.Err(), datanode.ErrRestarted) {
		t.Errorf("the client says %v", b.c.Err())
	}
}

// A server that closes does not wait for what may never happen.
func TestWatchEndsWithItsServer(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	now, err := b.c.RegistryList(t.Context(), &datanode.RegistryListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := start(func() error {
		_, err := b.c.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{Prefix: "never/", After: now.Revision})
		return err
	})
	x := b.sessions()[0]
	for running := 0; running == 0; time.Sleep(time.Millisecond) {
		x.mu.Lock()
		running = x.active
		x.mu.Unlock()
	}
	b.want("close", start(b.v.Close), nil)
	b.want("the watch", got, datanode.ErrTimeout)
}

// A session that the node gave up for want of a connection ends what the client
// had sent under it, and another one begins.
func TestSessionIsGivenUp(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	got := start(func() error { return b.append(b.Context(), 1, 1) })
	b.begun()
	b.proxy.set(true, false)
	b.proxy.cut()
	reads := start(func() error { _, err := b.c.Status(b.Context()); return err })
	for _, x := range b.sessions() {
		x.end(datanode.ErrOutcome, false) // as its timer would
	}
	b.proxy.set(false, false)
	b.want("the append that was sent", got, datanode.ErrOutcome)
	b.want("the read", reads, nil)
	go b.release(1)
	b.want("the next append", start(func() error { return b.append(b.Context(), 1, 1) }), nil)
	if n := b.ends(1); n != 1 {
		t.Errorf("the log has %d records", n)
	}
}

// The session after one that was given up does not carry its calls out again.
func TestNextSessionWaits(t *testing.T) {
	var dials atomic.Int32
	b := newBench(t, ServerOptions{}, ClientOptions{BackOffMax: backOffMin, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	got := start(func() error { return b.append(b.Context(), 1, 1) })
	b.begun()
	b.proxy.set(true, false)
	b.proxy.cut()
	b.down()
	for before := dials.Load(); dials.Load() < before+10; time.Sleep(time.Millisecond) {
	}
	for _, x := range b.sessions() {
		x.end(datanode.ErrOutcome, false)
	}
	b.c.slots[0].mu.Lock() // has the client stop within what it does at the loss
	b.proxy.set(false, false)
	for began := time.Now(); len(b.sessions()) == 0 && time.Since(began) < 200*time.Millisecond; {
		time.Sleep(time.Millisecond) // at most: both connections may have been refused, and wait
	}
	time.Sleep(50 * time.Millisecond)
	for _, l := range b.c.links {
		if l.current() != nil {
			t.Error("the next session is used before the calls of the one before have ended")
		}
	}
	b.c.slots[0].mu.Unlock()
	b.want("the append that was sent", got, datanode.ErrOutcome)
	go b.release(1)
	b.want("the next append", start(func() error { return b.append(b.Context(), 1, 1) }), nil)
	if n := b.node.appends.Load(); n != 2 {
		t.Errorf("two appends began %d times", n)
	}
}

func (b *bench) sessions() []*session {
	b.v.mu.Lock()
	defer b.v.mu.Unlock()
	var all []*session
	for _, x := range b.v.Server.sessions {
		all = append(all, x)
	}
	return all
}

func TestSessionWithoutConnectionEnds(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	x := b.sessions()[0]
	x.mu.Lock()
	x.without = 50 * time.Millisecond
	x.mu.Unlock()
	b.proxy.set(true, false)
	b.proxy.cut()
	select {
	case <-x.over:
	case <-time.After(10 * time.Second):
		t.Error("the session does not end")
	}
	b.proxy.set(false, false)
	b.want("status", start(func() error { _, err := b.c.Status(b.Context()); return err }), nil)
}

// Without any connection callers are let go, and told whether the node may have
// the call.
func TestUnreachable(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{UnreachableAfter: 300 * time.Millisecond})
	sent := start(func() error { return b.append(b.Context(), 1, 1) })
	b.begun()
	b.proxy.set(true, false)
	b.proxy.cut()
	b.down()
	held := start(func() error { return b.append(b.Context(), 1, 2) })
	b.want("the append that was sent", sent, datanode.ErrOutcome)
	b.want("the append that was not sent", held, datanode.ErrUnreachable)
	b.want("a later one", start(func() error { return b.append(b.Context(), 1, 2) }), datanode.ErrUnreachable)
	b.proxy.set(false, false)
	go b.release(1) // the first one, unless the node learns first that nobody waits
	b.want("status", start(func() error {
		for {
			if _, err := b.c.Status(b.Context()); !errors.Is(err, datanode.ErrUnreachable) {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}), nil)
	for b.node.running.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	if n := b.node.appends.Load(); n != 1 {
		t.Errorf("%d appends were begun, want 1", n)
	}
	select {
	case <-b.node.mayGo:
	case <-time.After(10 * time.Millisecond):
	}
}

// A silent network is noticed at both ends.
func TestSilenceIsNoticed(t *testing.T) {
	keep := Keepalive{PingEvery: 20 * time.Millisecond, DeadAfter: 2 * time.Second}
	b := newBench(t, ServerOptions{Keepalive: keep}, ClientOptions{Keepalive: keep})
	old := b.c.links[0].current()
	time.Sleep(keep.DeadAfter * 5 / 4) // pings keep it
	if b.c.links[0].current() != old {
		t.Fatal("an idle connection was given up")
	}
	b.proxy.set(false, true)
	for _, end := range []*conn{old, b.anyConn()} {
		select {
		case <-end.ended:
		case <-time.After(time.Minute):
			t.Fatal("silence is not noticed")
		}
	}
	b.proxy.set(false, false)
	b.want("status", start(func() error { _, err := b.c.Status(b.Context()); return err }), nil)
}

func (b *bench) anyConn() *conn {
	x := b.sessions()[0]
	x.mu.Lock()
	defer x.mu.Unlock()
	for c := range x.conns {
		return c
	}
	return nil
}

// With two paths, calls go on while one is down.
func TestTwoPaths(t *testing.T) {
	noLeaks(t)
	ca, node := newAuthority(t), newShelf(t)
	v := serve(t, node, ServerOptions{TLS: ca.node(t)}, "127.0.0.1:0")
	defer v.stop(t)
	p, q := newProxy(t, v.address, false, 1), newProxy(t, v.address, false, 2)
	defer p.close()
	defer q.close()
	c := dial(t, ClientOptions{TLS: ca.host(t), Paths: []string{p.address, q.address}, BackOffMax: backOffMin})
	defer func() { _ = c.Close() }()
	if _, err := c.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 100<<10)
	for pos := id.Pos(1); pos <= 20; pos++ {
		down := p
		if pos%10 >= 5 {
			down = q
		}
		down.set(true, false)
		down.cut()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := c.Append(ctx, &datanode.AppendRequest{Disk: 1, Epoch: 1, Records: []datanode.Record{{Pos: pos, Data: data[:1+len(data)*int(pos%2)/2]}}})
		cancel()
		if err != nil {
			t.Fatalf("append %d: %v", pos, err)
		}
		down.set(false, false)
		for c.links[0].current() == nil || c.links[1].current() == nil || c.links[2].current() == nil || c.links[3].current() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if n := len(v.Server.sessions); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

// Handlers are bounded, in all and per session, and one session that uses up its
// own does not keep another waiting.
func TestHandlersAreBoundedAndFair(t *testing.T) {
	b := newBench(t, ServerOptions{HandlersMax: 12, SessionHandlersMax: 8}, ClientOptions{})
	var flood []chan error
	for d := range id.Disk(100) {
		b.fence(d + 100)
	}
	for d := range id.Disk(100) {
		d += 100
		flood = append(flood, start(func() error { return b.append(b.Context(), d, 1) }))
	}
	for range 8 {
		b.begun()
	}
	other := dial(t, ClientOptions{TLS: b.ca.config(t, Identity{testCluster, RoleHost, "h2"}), Paths: []string{b.v.address}})
	defer func() { _ = other.Close() }()
	b.want("status of another host", start(func() error { _, err := other.Status(b.Context()); return err }), nil)
	time.Sleep(20 * time.Millisecond)
	if n := b.node.most.Load(); n != 8 {
		t.Errorf("%d calls of a session ran at a time, want 8", n)
	}
	b.release(len(flood))
	for _, c := range flood {
		b.want("append", c, nil)
	}
}

// Reservations do not overtake each other: the next is sent when the node is
// done with the one before, also if its caller has gone.
func TestReservationsKeepTheirOrder(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	b.node.stubborn = true
	reserve := func(ctx context.Context, bytes int64) error {
		return b.c.Reserve(ctx, &datanode.ReserveRequest{Host: "h1", Bytes: bytes})
	}
	ctx, cancel := context.WithCancel(b.Context())
	first := start(func() error { return reserve(ctx, 1<<20) })
	b.begun()
	cancel()
	b.want("the first", first, context.Canceled)
	second := start(func() error { return reserve(b.Context(), 2<<20) })
	time.Sleep(50 * time.Millisecond)
	if n := b.node.reserves.Load(); n != 1 {
		t.Errorf("%d reservations were begun", n)
	}
	b.release(2)
	b.want("the second", second, nil)
	if st, err := b.c.Status(b.Context()); err != nil || st.ReservedBytes != 2<<20 {
		t.Errorf("%+v reserved, %v", st, err)
	}
}

// Many callers at once, over connections that break, all get their own replies.
func TestManyCallersThroughCuts(t *testing.T) {
	noLeaks(t)
	ca, node := newAuthority(t), newShelf(t)
	v := serve(t, node, ServerOptions{TLS: ca.node(t)}, "127.0.0.1:0")
	defer v.stop(t)
	p := newProxy(t, v.address, true, uint64(time.Now().UnixNano()))
	p.bound(256 << 10)
	defer p.close()
	c := dial(t, ClientOptions{TLS: ca.host(t), Paths: []string{p.address}, BackOffMax: backOffMin})
	defer func() { _ = c.Close() }()
	var callers sync.WaitGroup
	for n := range 16 {
		callers.Go(func() {
			key := fmt.Sprintf("k%d", n)
			revision := uint64(0)
			for i := range 12 {
				value := strings.Repeat(fmt.Sprintf("%d.%d ", n, i), 1+i*n*20)
				put, err := c.RegistryCommit(t.Context(), &datanode.RegistryTxn{
					Compares: []datanode.Compare{{Key: key, Revision: revision}}, Puts: []datanode.Put{{Key: key, Value: []byte(value)}},
				})
				if err != nil {
					t.Errorf("%s, %d: %v", key, i, err)
					return
				}
				revision = put.Revision
				got, err := c.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: key})
				if err != nil || string(got.Value) != value || got.Revision != revision {
					t.Errorf("%s, %d: wrong value or revision, %v", key, i, err)
					return
				}
			}
		})
	}
	callers.Wait()
	t.Logf("%d connections cut", p.cuts)
}
