package pki

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// connsMax and connsPerAddress bound the connections of an endpoint.
	connsMax        = 256
	connsPerAddress = 32
	// requestRate and requestBurst are those of one address, per second: a whole rack
	// may be behind one, and members ask once a minute.
	requestRate  = 20
	requestBurst = 100
	// addressesMax bounds what is remembered of addresses.
	addressesMax = 4096
)

// limits are how much each address may ask of an endpoint.
type limits struct {
	burst, rate float64 // requests, requests per second

	mu    sync.Mutex
	conns int
	from  map[netip.Prefix]*usage
}

type usage struct {
	conns  int
	tokens float64
	at     time.Time
}

func newLimits() *limits {
	return &limits{burst: requestBurst, rate: requestRate, from: map[netip.Prefix]*usage{}}
}

// source is who shares a limit: an address of IPv4, a network of IPv6.
func source(remote string) netip.Prefix {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	bits := 32
	addr := a.Addr().Unmap().WithZone("")
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// usageOf returns an address's, or nil if too many others are busy. The caller
// holds mu.
func (l *limits) usageOf(remote string, now time.Time) *usage {
	p := source(remote)
	u := l.from[p]
	if u == nil {
		if len(l.from) >= addressesMax {
			for q, v := range l.from {
				if l.refill(v, now); v.conns == 0 && v.tokens >= l.burst {
					delete(l.from, q)
				}
			}
		}
		if len(l.from) >= addressesMax {
			return nil
		}
		u = &usage{tokens: l.burst, at: now}
		l.from[p] = u
	}
	l.refill(u, now)
	return u
}

func (l *limits) refill(u *usage, now time.Time) {
	if passed := now.Sub(u.at).Seconds(); passed > 0 {
		u.tokens = min(l.burst, u.tokens+passed*l.rate)
	}
	u.at = now
}

// request takes one of an address's requests.
func (l *limits) request(remote string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.usageOf(remote, now)
	if u == nil || u.tokens < 1 {
		return false
	}
	u.tokens--
	return true
}

// open takes a connection; who gets true gives it back with close.
func (l *limits) open(remote string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.usageOf(remote, now)
	if u == nil || l.conns >= connsMax || u.conns >= connsPerAddress {
		return false
	}
	l.conns++
	u.conns++
	return true
}

func (l *limits) close(remote string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns--
	if u := l.from[source(remote)]; u != nil {
		u.conns--
	}
}

// limitedListener closes at once what is too much.
type limitedListener struct {
	net.Listener
	limits *limits
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote := c.RemoteAddr().String()
		if l.limits.open(remote, time.Now()) {
			return &limitedConn{Conn: c, close: sync.OnceFunc(func() { l.limits.close(remote) })}, nil
		}
		_ = c.Close() // it is refused either way
	}
}

type limitedConn struct {
	net.Conn
	close func()
}

func (c *limitedConn) Close() error {
	c.close()
	return c.Conn.Close()
}
