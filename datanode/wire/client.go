package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"plinth/datanode"
)

// ClientOptions says how a node is reached. TLS, Cluster and Paths are needed;
// the rest of the zero value is right.
type ClientOptions struct {
	// TLS has the client's certificate and the authorities for nodes. It is made
	// strict: TLS 1.3, and the node is known by its certificate, wherever it is.
	// Its callbacks serve for certificates that change and for revocation.
	TLS *tls.Config
	// Cluster is what certificates must name. Node and Pool are what the node must
	// be called and belong to; the zero value takes any.
	Cluster, Node string
	Pool          [16]byte
	// Guard cuts connections to a node whose certificate is withdrawn; nil for none.
	Guard Guard
	// Paths are the node's addresses over up to four networks: host:port, or
	// unix:PATH. The first that works carries small calls, all carry bulk.
	Paths []string
	// UnreachableAfter is how long calls wait for a connection; 20 s if 0.
	UnreachableAfter time.Duration
	// BackOffMax bounds the pause between two attempts to connect, which begins at
	// 20 ms, doubles, and is shortened at random by up to a half; 1 s if 0.
	BackOffMax time.Duration
	// RequestBytesMax bounds the requests that are in memory, half of them bulk;
	// 64 MiB if 0.
	RequestBytesMax int64
	Keepalive       Keepalive
	// Logger gets what an operator should know; slog.Default if nil.
	Logger *slog.Logger
	// Dial replaces the way a path is connected to; net.Dialer's if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	versions versions // a test's; zero for this package's
}

const (
	pathsMax   = 4
	backOffMin = 20 * time.Millisecond
)

func (o ClientOptions) filled() ClientOptions {
	if o.UnreachableAfter == 0 {
		o.UnreachableAfter = 20 * time.Second
	}
	if o.BackOffMax == 0 {
		o.BackOffMax = time.Second
	}
	if o.RequestBytesMax == 0 {
		o.RequestBytesMax = sessionBytes
	}
	o.Keepalive = o.Keepalive.filled()
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.versions == (versions{}) {
		o.versions = versions{VersionMin, VersionMax}
	}
	return o
}

// Validate returns an error for options out of bounds.
func (o ClientOptions) Validate() error {
	o = o.filled()
	switch {
	case o.Cluster == "" || len(o.Node) > nameBytesMax:
		return errors.New("a client of the wire needs the name of its cluster")
	case len(o.Paths) == 0 || len(o.Paths) > pathsMax:
		return fmt.Errorf("%d paths to a data node: 1 to %d", len(o.Paths), pathsMax)
	case o.UnreachableAfter < 0 || o.BackOffMax < backOffMin:
		return fmt.Errorf("waiting %v for a connection, trying at least every %v", o.UnreachableAfter, o.BackOffMax)
	case o.RequestBytesMax < 2<<20:
		return fmt.Errorf("memory for %d bytes of requests: the least is 2 MiB", o.RequestBytesMax)
	}
	return o.Keepalive.validate()
}

// Client is one process of a node, far away. It implements datanode.Node.
type Client struct {
	opts  ClientOptions
	tls   *tls.Config
	life  context.Context
	kill  context.CancelFunc
	links []*link
	tasks sync.WaitGroup

	slots  []slot
	free   [2]chan uint16 // of small calls, of bulk
	bytes  [2]*semaphore.Weighted
	most   int64 // of either
	freed  [2]func(*frame)
	turn   atomic.Uint32          // of the paths
	serial [callTop]chan struct{} // holds the right to send a call that takes turns

	// renewing is held while calls of a session that was lost are ended. No connection
	// of the next one is used before, or the next would carry them out again.
	renewing sync.Mutex

	mu       sync.Mutex
	session  [16]byte
	previous [16]byte
	fresh    bool // no server has welcomed the session yet
	instance uint64
	known    bool // the node has been reached once; what follows is its
	boot     [16]byte
	name     string
	features uint64          // that both know
	dead     *datanode.Error // no call is made any more
	last     error           // why there is no connection
	up       int             // links with a connection
	downFrom time.Time       // since when there is none
	cut      chan struct{}   // closed while calls do not wait for a connection
	first    chan struct{}   // closed when the node was reached, or never will be

	breaking sync.Once
	broken   chan struct{} // see Broken
	ended    chan struct{} // see Ended
}

// Dial connects to a node and returns when it is reached on one path. The client
// belongs to the process that it finds: if that ends, all calls fail with
// datanode.ErrRestarted or ErrOutcome, and the caller, who must look anyway what
// is left of its state there, dials again.
//
// Errors: datanode.ErrForbidden, ErrWrongCluster, ErrVersion, ErrBusy as soon as
// a node says so, and once ctx ends ErrUnreachable with what hindered it.
func Dial(ctx context.Context, opts ClientOptions) (*Client, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.filled()
	config, err := clientTLS(opts.TLS)
	if err != nil {
		return nil, err
	}
	c := &Client{opts: opts, tls: config, fresh: true, first: make(chan struct{}), cut: make(chan struct{}), broken: make(chan struct{}), ended: make(chan struct{}), downFrom: time.Now()}
	c.life, c.kill = context.WithCancel(context.Background())
	_, _ = rand.Read(c.session[:]) // never fails
	for _, call := range serialCalls {
		c.serial[call] = make(chan struct{}, 1)
	}
	for _, p := range opts.Paths {
		network, address := SplitPath(p)
		for _, bulk := range []bool{false, true} {
			c.links = append(c.links, &link{client: c, network: network, address: address, bulk: bulk})
		}
	}
	c.tasks.Add(1 + len(c.links))
	for _, l := range c.links {
		go l.run()
	}
	go c.watch()
	select {
	case <-c.first:
	case <-ctx.Done():
	}
	c.mu.Lock()
	known, dead, last := c.known, c.dead, c.last
	c.mu.Unlock()
	switch {
	case known && dead == nil:
		return c, nil
	case dead != nil:
		err = dead
	default:
		err = errors.Join(datanode.Errorf(datanode.ErrUnreachable, "%s", strings.Join(opts.Paths, ", ")), ctx.Err(), last)
	}
	_ = c.Close()
	return nil, err
}

// SplitPath says how an address is dialed or listened on: HOST:PORT by TCP,
// unix:PATH as a socket.
func SplitPath(path string) (network, address string) {
	if socket, ok := strings.CutPrefix(path, "unix:"); ok {
		return "unix", socket
	}
	return "tcp", path
}

// Boot identifies the node's process, and Name is what its certificate calls it.
func (c *Client) Boot() [16]byte { return c.boot }
func (c *Client) Name() string   { return c.name }

// Err says why no call can succeed any more: ErrRestarted, ErrClosed, or nil.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil {
		return nil
	}
	return c.dead
}

// Broken is closed before a call returns for want of the node's answer: because it
// cannot be reached for long, has given up the session or been restarted, is
// shutting down, or the client is closed. Of such calls it may be unknown what they
// did, so who keeps state by the node's answers begins anew, with another client.
func (c *Client) Broken() <-chan struct{} { return c.broken }

// Ended is closed when no call can succeed any more; Err says why. A client that is
// Broken may still reach its node's process again.
func (c *Client) Ended() <-chan struct{} { return c.ended }

func (c *Client) breaks() { c.breaking.Do(func() { close(c.broken) }) }

// Close ends the session, so that the node forgets it, fails calls under way,
// and returns when nothing of the client runs. It may be called again.
func (c *Client) Close() error {
	c.perish(datanode.ErrClosed)
	for _, l := range c.links {
		if conn := l.current(); conn != nil {
			conn.goodbye(datanode.ErrClosed)
			break // one of them ends the session
		}
	}
	c.kill()
	for _, l := range c.links {
		if conn := l.current(); conn != nil {
			conn.end(datanode.ErrClosed)
		}
	}
	c.tasks.Wait()
	return nil
}

// perish fails all calls, now and later.
func (c *Client) perish(why *datanode.Error) {
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.dead = why
	c.breaks()
	close(c.ended)
	c.closeFirst()
	c.closeCut()
	c.mu.Unlock()
	c.eachSlot(func(s *slot) {
		err := why
		if s.unsettled() {
			err = datanode.Errorf(datanode.ErrOutcome, "%s: %s", s.call, why.Text)
		}
		c.answer(s, result{err: err})
	})
}

// closeFirst ends Dial's wait; mu is held.
func (c *Client) closeFirst() {
	select {
	case <-c.first:
	default:
		close(c.first)
	}
}

// closeCut has calls fail rather than wait; mu is held.
func (c *Client) closeCut() {
	select {
	case <-c.cut:
	default:
		close(c.cut)
	}
}

// eachSlot does something with each slot that is taken, under its lock.
func (c *Client) eachSlot(do func(*slot)) {
	for i := range c.slots {
		s := &c.slots[i]
		s.mu.Lock()
		if s.taken {
			do(s)
		}
		s.mu.Unlock()
	}
}

// answer ends a slot's call and lets the next one have the slot; the slot's mu
// is held.
func (c *Client) answer(s *slot, r result) {
	if s.answer(r) {
		c.free[lane(s.bulk)] <- s.index // it has room for all
	}
}

// desert lets a slot's caller go; the slot's mu is held.
func (c *Client) desert(s *slot, err *datanode.Error) {
	if s.desert(err) {
		c.free[lane(s.bulk)] <- s.index
	}
}

func lane(bulk bool) int {
	if bulk {
		return 1
	}
	return 0
}

// prepare makes the slots, once the node has said how many there are: a quarter
// of them, and half of the memory, is for bulk.
func (c *Client) prepare(slots int, bytes int64) {
	c.slots = make([]slot, slots)
	bulk := max(1, slots/4)
	c.free = [2]chan uint16{make(chan uint16, slots-bulk), make(chan uint16, bulk)}
	for i := range c.slots {
		s := &c.slots[i]
		s.index, s.bulk = uint16(i), i < bulk
		c.free[lane(s.bulk)] <- s.index
	}
	c.most = min(bytes, c.opts.RequestBytesMax) / 2
	for l := range c.bytes {
		sem := semaphore.NewWeighted(c.most)
		c.bytes[l] = sem
		c.freed[l] = func(f *frame) { sem.Release(min(int64(f.bytes), c.most)) }
	}
}
