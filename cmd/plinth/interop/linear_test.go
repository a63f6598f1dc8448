package interop

import (
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/linear"
	"plinth/nbd/client"
)

var linearHistories = flag.Int("linear-histories", 1, "histories of TestLinearizable")

const (
	linearOps     = 10_000
	linearSectors = 24
	linearClients = 8
	// linearOpTime is how long a client waits before it goes to the other host.
	linearOpTime = 6 * time.Second
)

// relay is a network between a host and the data node.
type relay struct {
	address string
	to      string // a unix socket

	mu    sync.Mutex
	stir  sync.Cond // L is mu; state has changed
	state relayState
	conns []net.Conn
}

type relayState int

const (
	relayPasses  relayState = iota
	relayStalls             // what is sent arrives when it passes again
	relayRefuses            // connections are closed
)

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String(), to: to}
	r.stir.L = &r.mu
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { r.pass(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.set(relayRefuses)
		work.Wait()
	})
	return r
}

// pass carries one connection until either end closes it.
func (r *relay) pass(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("unix", r.to)
	if err != nil {
		return
	}
	defer far.Close()
	r.mu.Lock()
	refused := r.state == relayRefuses
	if !refused {
		r.conns = append(r.conns, near, far)
	}
	r.mu.Unlock()
	if refused {
		return
	}
	var copying sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		copying.Go(func() {
			_, _ = io.Copy(relayed{way[0], r}, way[1])
			_ = way[0].Close()
		})
	}
	copying.Wait()
}

// relayed holds up what is written while the relay stalls.
type relayed struct {
	net.Conn
	relay *relay
}

func (c relayed) Write(p []byte) (int, error) {
	c.relay.mu.Lock()
	for c.relay.state == relayStalls {
		c.relay.stir.Wait()
	}
	c.relay.mu.Unlock()
	return c.Conn.Write(p)
}

// ReadFrom hides the connection's own, which would not come by Write.
func (c relayed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{c}, r) }

func (r *relay) set(state relayState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = state
	r.stir.Broadcast()
	if state == relayRefuses {
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.conns = nil
	}
}

// linearPair is two hosts that can be cut off and killed.
type linearPair struct {
	*pair
	t      *testing.T
	relays [2]*relay
	mu     sync.Mutex // guards hosts, which are started again
}

func (p *linearPair) start(i int) {
	h := p.hostBy(p.t, []string{"h1", "h2"}[i], []string{"--node", p.relays[i].address}, hostLease...)
	if h.socket == "" {
		p.t.Fatalf("plinth host: %v\n%s", h.err, h.said)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts[i] = h
}

func (p *linearPair) host(i int) *site {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hosts[i]
}

// client does operations, one at a time, by either host.
func (p *linearPair) client(h *linear.History, first int, left *atomic.Int64) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	var c *client.Client
	at := rng.IntN(2)
	for deadline := time.Now().Add(5 * time.Minute); left.Add(-1) >= 0; {
		for c == nil {
			ctx, cancel := context.WithTimeout(p.t.Context(), linearOpTime)
			next, err := client.Dial(ctx, "unix", p.host(at).socket, "vm1", client.Options{})
			if cancel(); err == nil {
				c = next
				break
			}
			if time.Now().After(deadline) {
				p.t.Errorf("no host takes a client: %v", err)
				return
			}
			at = rng.IntN(2)
			time.Sleep(20 * time.Millisecond)
		}
		if err := p.operate(h, c, first, rng); err != nil {
			_ = c.Close()
			c, at = nil, rng.IntN(2)
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
	if c != nil {
		_ = c.Close()
	}
}

func (p *linearPair) operate(h *linear.History, c *client.Client, first int, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), linearOpTime)
	defer cancel()
	sector := rng.IntN(linearSectors)
	n, off := 1+rng.IntN(min(10, linearSectors-sector)), int64(first+sector)*linear.SectorBytes
	if rng.IntN(2) == 0 {
		fua := rng.IntN(4) == 0
		return h.Write(sector, n, func(b []byte) error { return c.WriteAt(ctx, b, off, fua) })
	}
	err := h.Read(sector, n, func(b []byte) error { return c.ReadAt(ctx, b, off) })
	if torn := (*linear.TornError)(nil); errors.As(err, &torn) {
		p.t.Error(err)
	}
	return err
}

// chaos cuts hosts off for less or more than their lease, kills them and has the disk
// move, until the end. It reports how often.
func (p *linearPair) chaos(over context.Context) (cuts, kills, moves int) {
	pause := func(most time.Duration) bool {
		select {
		case <-time.After(rand.N(most)):
		case <-over.Done():
		}
		return over.Err() == nil
	}
	for pause(2 * time.Second) {
		i := rand.IntN(2)
		switch rand.IntN(4) {
		case 0:
			kills++
			p.host(i).kill()
			pause(6 * time.Second)
			p.start(i)
		case 1:
			if _, _, code := plinth(p.t, []string{"PLINTH_API=" + p.host(i).api}, "disk", "move", "vm1", []string{"h1", "h2"}[rand.IntN(2)]); code == 0 {
				moves++
			}
		default:
			cuts++
			p.relays[i].set([]relayState{relayStalls, relayRefuses}[rand.IntN(2)])
			pause(8 * time.Second)
			p.relays[i].set(relayPasses)
		}
	}
	return cuts, kills, moves
}

// Clients of a disk at two hosts that are cut off from the data node for less or more
// than their lease, and killed: what they see is one disk, whose sectors behave as
// registers.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	p := &linearPair{pair: &pair{split: newSplit(t, 1), hosts: make([]*site, 2)}, t: t}
	for i, name := range []string{"h1", "h2"} {
		p.join(t, "host", name)
		p.relays[i] = newRelay(t, p.nodes[0].socket)
		p.start(i)
	}
	for run := range *linearHistories {
		h := linear.New(linearSectors)
		var left atomic.Int64
		left.Store(linearOps)
		over, end := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range linearClients {
			clients.Go(func() { p.client(h, run*4096, &left) })
		}
		go func() { clients.Wait(); end() }()
		cuts, kills, moves := p.chaos(over)
		if err := h.Check(); err != nil {
			t.Errorf("history %d: %v", run, err)
		}
		t.Logf("history %d: %+v, %d cuts, %d kills, %d moves", run, h.Tally, cuts, kills, moves)
	}
	p.host(0).command(t, "verify")
}
