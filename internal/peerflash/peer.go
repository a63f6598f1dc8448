package peerflash

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"plinth/internal/id"
	"plinth/nbd/client"
)

const (
	// answerDefault is about what a spindle's read takes: so a read that waits in vain
	// takes twice as long as without a peer, and no more.
	answerDefault = 10 * time.Millisecond
	// dialMax bounds an attempt to connect, for which no read waits.
	dialMax = 5 * time.Second
)

// ErrUnable is wrapped by a Dial for a peer that cannot lend: it is not asked again for
// long.
var ErrUnable = errors.New("the host lends no chunks from its flash")

// Dial connects to a lender at an address, which proves that it is one as config wants it,
// and has it go over to this protocol. Errors: ErrUnable, of a program that does not know
// it.
func Dial(ctx context.Context, address string, config *tls.Config) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("reach the host: %w", err)
	}
	conn, err = client.Change(ctx, conn, Option, client.Options{TLS: config})
	if errors.Is(err, client.ErrUnsupported) {
		err = fmt.Errorf("%w: %w", ErrUnable, err)
	}
	return conn, err
}

// Options of a Peer.
type Options struct {
	// Dial connects to the lender, and has it go over to this protocol.
	Dial func(ctx context.Context) (net.Conn, error)
	// Answer is for how long a read waits. Default: 10 ms.
	Answer time.Duration
	// Counts count what is asked for.
	Counts *Counts
	// Failed, if not nil, is told why the peer is left alone.
	Failed func(error)
}

// Counts are what asking has come to, of all Peers that share them.
type Counts struct {
	Asked, Here, Bytes, Bad, Failed atomic.Int64
}

// Peer is a host that lends, as one that asks it sees it. [NewPeer] makes one, Close
// ends it.
type Peer struct {
	opts   Options
	life   context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	line    *line // nil: none
	dialing bool
	backoff backoff
}

// NewPeer returns a peer, to which nothing is connected yet.
func NewPeer(o Options) *Peer {
	if o.Answer <= 0 {
		o.Answer = answerDefault
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	p := &Peer{opts: o}
	p.life, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends the connection. Who waits is let go, and nothing comes from then on.
func (p *Peer) Close() {
	p.mu.Lock()
	p.cancel() // under mu, so that no work begins any more
	if p.line != nil {
		_ = p.line.conn.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
}

// ready returns the line, nil where nobody is to be asked now. It has one made if there
// is none.
func (p *Peer) ready() *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil || !p.backoff.over(time.Now()) {
		return nil
	}
	if p.line == nil && !p.dialing {
		p.dialing = true
		p.work.Go(p.connect)
	}
	return p.line
}

// connect makes a line, and receives on it until it ends.
func (p *Peer) connect() {
	ctx, cancel := context.WithTimeout(p.life, dialMax)
	conn, err := p.opts.Dial(ctx)
	cancel()
	p.mu.Lock()
	p.dialing = false
	if err == nil && p.life.Err() != nil {
		_ = conn.Close()
		err = p.life.Err()
	}
	if err != nil {
		p.mu.Unlock()
		p.failed(err)
		return
	}
	l := newLine(conn)
	p.line = l
	p.mu.Unlock()
	var sending sync.WaitGroup
	sending.Go(l.send)
	quiet := l.receive()
	sending.Wait()
	p.mu.Lock()
	p.line = nil
	p.mu.Unlock()
	if !quiet {
		p.failed(errGone)
	}
}

var (
	errGone = errors.New("the connection has ended before its answer")
	errLate = errors.New("no answer in time")
	errBad  = errors.New("a chunk that does not verify")
)

// failed leaves the peer alone for a time.
func (p *Peer) failed(err error) {
	if p.life.Err() != nil {
		return
	}
	p.mu.Lock()
	if errors.Is(err, ErrUnable) {
		p.backoff.unable(time.Now())
	} else {
		p.backoff.failed(time.Now())
	}
	p.mu.Unlock()
	p.opts.Counts.Failed.Add(1)
	p.opts.Failed(err)
}

func (p *Peer) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backoff.answered(time.Now())
}

// Source is a peer as one disk reads from it: whether it has what that disk reads is
// learnt for each. [Peer.Source] makes one.
type Source struct {
	peer *Peer

	mu   sync.Mutex
	rate rate
}

// Source returns a peer for one disk, and has it connected to.
func (p *Peer) Source() *Source {
	_ = p.ready()
	return &Source{peer: p}
}

// Get asks for chunks, and calls got one by one for those that come, from this goroutine
// and in no order; sealed is valid until got returns. got reports whether it verified. Get returns when all
// are answered, or in about Options.Answer.
func (s *Source) Get(ctx context.Context, names []id.Fingerprint, got func(i int, sealed []byte) bool) {
	if len(names) == 0 {
		return
	}
	l := s.peer.ready()
	if l == nil || !s.ask() {
		return
	}
	counts, here, bad := s.peer.opts.Counts, 0, 0
	asked, out := l.ask(ctx, s.peer.opts.Answer, names, func(i int, sealed []byte) {
		if !got(i, sealed) {
			bad++
			return
		}
		here++
		counts.Bytes.Add(int64(len(sealed)))
	})
	counts.Asked.Add(int64(asked))
	counts.Here.Add(int64(here))
	counts.Bad.Add(int64(bad))
	s.answered(asked, here)
	switch {
	case bad > 0:
		s.peer.failed(errBad)
	case out == late:
		s.peer.failed(errLate)
	case out == answered:
		s.peer.answered()
	}
}

func (s *Source) ask() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rate.ask()
}

func (s *Source) answered(asked, here int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate.answered(asked, here)
}
