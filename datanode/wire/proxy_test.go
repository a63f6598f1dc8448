package wire

import (
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy stands between clients and a server. It passes bytes on in pieces of
// random size, some of them late, and cuts connections after a random number of
// bytes, if it is told to; and it is told to by tests to cut, to swallow what
// comes, and to refuse.
type proxy struct {
	address string // to connect to
	to      string
	rough   bool
	most    float64 // bytes that a rough one passes on a connection
	l       net.Listener
	running sync.WaitGroup

	mu      sync.Mutex
	rng     *rand.Rand
	conns   map[net.Conn]struct{}
	refuse  bool
	swallow bool
	closed  bool
	cuts    int
}

func newProxy(t testing.TB, to string, rough bool, seed uint64) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		address: l.Addr().String(), to: to, rough: rough, most: 64 << 20, l: l,
		rng: rand.New(rand.NewPCG(seed, 1)), conns: map[net.Conn]struct{}{},
	}
	p.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.pass(c) })
		}
	})
	return p
}

func (p *proxy) close() {
	_ = p.l.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut()
	p.running.Wait()
}

// cut breaks all connections off.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		p.abort(c)
	}
}

func (p *proxy) abort(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0) // a reset: what is under way is lost
	_ = c.Close()
}

func (p *proxy) set(refuse, swallow bool) {
	p.mu.Lock()
	p.refuse, p.swallow = refuse, swallow
	p.mu.Unlock()
}

// bound sets the most bytes that a rough proxy passes on a connection.
func (p *proxy) bound(most float64) {
	p.mu.Lock()
	p.most = most
	p.mu.Unlock()
}

func (p *proxy) swallows() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallow
}

// draw is a length up to most, each order of magnitude as likely as the others.
func (p *proxy) draw(least, most float64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(math.Exp(math.Log(least) + p.rng.Float64()*(math.Log(most)-math.Log(least))))
}

func (p *proxy) pass(a net.Conn) {
	b, err := net.Dial("tcp", p.to)
	if err != nil {
		_ = a.Close()
		return
	}
	p.mu.Lock()
	refuse, most := p.refuse || p.closed, p.most
	if !refuse {
		p.conns[a], p.conns[b] = struct{}{}, struct{}{}
	}
	p.mu.Unlock()
	if refuse {
		p.abort(a)
		p.abort(b)
		return
	}
	left := math.MaxInt
	if p.rough { // many live long enough for the largest message
		left = p.draw(1<<10, most)
	}
	var both sync.WaitGroup
	both.Go(func() { p.copy(a, b, left) })
	both.Go(func() { p.copy(b, a, left) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, a)
	delete(p.conns, b)
	p.mu.Unlock()
}

// copy passes on what comes from one side, until it ends or left bytes are
// through; then both sides are cut.
func (p *proxy) copy(from, to net.Conn, left int) {
	defer p.abort(from)
	defer p.abort(to)
	buf := make([]byte, 64<<10)
	for {
		n := len(buf)
		if p.rough {
			n = min(p.draw(1, 1<<20), n)
		}
		n, err := from.Read(buf[:n])
		if err != nil {
			return
		}
		if p.rough && p.draw(1, 64) == 1 {
			time.Sleep(time.Duration(p.draw(1, 2000)) * time.Microsecond)
		}
		if p.swallows() {
			continue
		}
		last := left <= n
		if _, err := to.Write(buf[:min(n, left)]); err != nil {
			return
		}
		if left -= n; last {
			p.mu.Lock()
			p.cuts++
			p.mu.Unlock()
			return
		}
	}
}
