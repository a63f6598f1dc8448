package wire

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"plinth/datanode"
)

// Server serves a node to clients.
type Server struct {
	node     datanode.Node
	opts     ServerOptions
	tls      *tls.Config
	boot     [16]byte
	pool     [16]byte
	schedule scheduler
	requests *semaphore.Weighted
	replies  *semaphore.Weighted
	life     context.Context
	kill     context.CancelFunc
	serving  sync.WaitGroup
	draining atomic.Bool // no call is begun any more

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	sockets   map[net.Conn]struct{}
	greeting  int // of the sockets, those in their handshake
	sessions  map[[16]byte]*session
	instance  uint64 // of the last session
}

// NewServer returns a server of a node, which stays the caller's. Its boot id is
// new: clients of a server before it are told of a restart.
func NewServer(ctx context.Context, node datanode.Node, opts ServerOptions) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.filled()
	config, err := serverTLS(opts.TLS)
	if err != nil {
		return nil, err
	}
	st, err := node.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("serve a data node: %w", err)
	}
	s := &Server{
		node: node, opts: opts, tls: config, pool: st.PoolID,
		schedule:  scheduler{most: opts.HandlersMax, mostEach: opts.SessionHandlersMax, run: (*session).carry},
		requests:  semaphore.NewWeighted(opts.RequestBytesMax),
		replies:   semaphore.NewWeighted(opts.ReplyBytesMax),
		listeners: map[net.Listener]struct{}{}, sockets: map[net.Conn]struct{}{}, sessions: map[[16]byte]*session{},
	}
	_, _ = rand.Read(s.boot[:]) // never fails
	s.life, s.kill = context.WithCancel(context.Background())
	return s, nil
}

// Serve accepts connections until the listener fails or the server is closed; it
// then returns nil. It takes the listener over.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(datanode.ErrClosed, l.Close())
	}
	s.listeners[l] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		_ = l.Close() // the server has it no more
	}()
	for wait := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case s.draining.Load():
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // too many open files, say: it may pass
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.opts.Logger.Warn("accept a connection", "err", err, "again_in", wait)
			select {
			case <-s.life.Done():
			case <-time.After(wait):
			}
			continue
		}
		wait = 0
		greeted, ok := s.enter(c)
		if !ok {
			_ = c.Close()
			continue
		}
		go func() {
			defer s.leave(c)
			defer greeted()
			if err := s.serve(c, greeted); err != nil {
				s.opts.Logger.Info("connection of a client has ended", "from", c.RemoteAddr(), "err", err)
			}
		}()
	}
}

// handshakesMax bounds the connections in their handshake: whoever has no
// certificate must not take the place of those who have.
const handshakesMax = 128

// enter counts a connection, if there may be one more; greeted is called when
// its handshake is over.
func (s *Server) enter(c net.Conn) (greeted func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.sockets) >= s.opts.ConnsMax || s.greeting >= handshakesMax {
		return nil, false
	}
	s.sockets[c] = struct{}{}
	s.serving.Add(1)
	s.greeting++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.greeting--
		s.mu.Unlock()
	}), true
}

func (s *Server) leave(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	delete(s.sockets, c)
	s.mu.Unlock()
	s.serving.Done()
}

// serve is one connection's life. It returns why it ended, nil where nobody needs
// to know.
func (s *Server) serve(nc net.Conn, greeted func()) error {
	deadline := time.Now().Add(handshakeWait)
	if err := nc.SetDeadline(deadline); err != nil {
		return err
	}
	raw := newStream(nc, s.opts.Keepalive.WriteWait)
	t := tls.Server(raw, s.tls)
	if err := t.HandshakeContext(s.life); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	release, err := s.opts.Guard.watch(t)
	if err != nil {
		return err
	}
	defer release()
	var h hello
	if err := getGreeting(t, helloMagic, &h, visitHello); err != nil {
		w := welcome{refusal: *fromNode(err), versions: s.opts.versions}
		_ = putGreeting(t, welcomeMagic, &w, visitWelcome) // it may not even be a client
		return err
	}
	w := welcome{versions: s.opts.versions, pool: s.pool, boot: s.boot, slots: slotsMax, bytes: sessionBytes, name: s.opts.Name}
	x, peer, err := s.admit(t, &h, &w, deadline)
	if err != nil {
		w.refusal = *fromNode(err)
		return errors.Join(fmt.Errorf("refused: %w", err), putGreeting(t, welcomeMagic, &w, visitWelcome))
	}
	w.instance = x.instance
	if err := putGreeting(t, welcomeMagic, &w, visitWelcome); err != nil {
		return err
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	greeted()
	c := newConn(t, raw, peer, h.bulk, s.opts.Keepalive)
	if !x.join(c) {
		c.end(datanode.ErrOutcome)
		return nil
	}
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	c.stop = cancel
	err = c.run(func(h header) (func(*frame), error) { return x.admit(ctx, h) }, func(h header, f *frame) error { return x.receive(c, h, f) })
	x.part(c)
	if errors.Is(err, errParted) || errors.Is(err, datanode.ErrClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", peer, err)
}

// errParted: the other end has said goodbye.
var errParted = errors.New("the peer has closed the session")

// admit decides whether a client may come in, and finds or makes its session.
func (s *Server) admit(t *tls.Conn, h *hello, w *welcome, deadline time.Time) (*session, Identity, error) {
	peer, err := peerOf(t, s.opts.Cluster)
	if err != nil {
		return nil, peer, err
	}
	version, ok := s.opts.versions.common(h.versions)
	switch {
	case !ok:
		return nil, peer, datanode.Errorf(datanode.ErrVersion, "node speaks versions %d to %d, client %s %d to %d: upgrade plinth on the one of the lower versions",
			s.opts.versions.low, s.opts.versions.high, peer, h.versions.low, h.versions.high)
	case h.pool != [16]byte{} && h.pool != s.pool:
		return nil, peer, datanode.Errorf(datanode.ErrWrongCluster, "node is of pool %x, not of pool %x", s.pool, h.pool)
	case h.name != "" && h.name != s.opts.Name:
		return nil, peer, datanode.Errorf(datanode.ErrWrongCluster, "this is node %q, not node %q", s.opts.Name, h.name)
	case s.opts.Allow[peer.Role] == 0:
		return nil, peer, datanode.Errorf(datanode.ErrForbidden, "%s: its role may not make any call", peer)
	case h.session == [16]byte{}:
		return nil, peer, datanode.Errorf(datanode.ErrInvalid, "a session without an id")
	}
	w.version, w.features = version, h.features&features
	if err := s.succeed(h, peer, deadline); err != nil {
		return nil, peer, err
	}
	s.makeRoom(h, peer)
	x, err := s.session(h, peer)
	return x, peer, err
}

// succeed ends the session that the client had before, and waits until nothing
// of it runs: what the client does next must not be overtaken by it.
func (s *Server) succeed(h *hello, peer Identity, deadline time.Time) error {
	s.mu.Lock()
	x := s.sessions[h.previous]
	s.mu.Unlock()
	if x == nil || x.peer != peer {
		return nil
	}
	x.end(datanode.ErrOutcome, false)
	wait := time.NewTimer(time.Until(deadline) / 2)
	defer wait.Stop()
	select {
	case <-x.over:
		return nil
	case <-s.life.Done():
		return datanode.ErrClosed
	case <-wait.C:
		return datanode.Errorf(datanode.ErrBusy, "calls of the session before still run")
	}
}

// sessionsEachMax is how many sessions of one identity may wait for a connection,
// as a host that starts again and again leaves them.
const sessionsEachMax = 8

// makeRoom ends the sessions of a client that have no connection, if it has many.
func (s *Server) makeRoom(h *hello, peer Identity) {
	s.mu.Lock()
	var own []*session
	for id, x := range s.sessions {
		if x.peer == peer && id != h.session {
			own = append(own, x)
		}
	}
	s.mu.Unlock()
	if len(own) >= sessionsEachMax {
		for _, x := range own {
			x.end(datanode.ErrOutcome, true)
		}
	}
}

// session finds or makes the client's session.
func (s *Server) session(h *hello, peer Identity) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[h.session]
	switch {
	case s.closed:
		return nil, datanode.ErrClosed
	case x != nil && x.peer != peer:
		return nil, datanode.Errorf(datanode.ErrForbidden, "the session is not %s's", peer)
	case x != nil && !x.hasEnded():
		return x, nil
	case x != nil: // a session that ended is not begun again
		return nil, datanode.Errorf(datanode.ErrOutcome, "the session has ended")
	case !h.fresh:
		return nil, datanode.Errorf(datanode.ErrOutcome, "the node knows no such session")
	case len(s.sessions) >= s.opts.SessionsMax:
		return nil, datanode.ErrBusy
	}
	x = newSession(s, h.session, peer)
	s.instance++
	x.instance = s.instance
	s.sessions[h.session] = x
	x.mu.Lock()
	x.expire() // unless its connection joins
	x.mu.Unlock()
	return x, nil
}

// remove forgets a session that has ended and of which nothing runs any more.
func (s *Server) remove(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, x.id)
	close(x.over)
}

// drainWait is how long Close waits for calls that run.
const drainWait = 5 * time.Second

// Close stops accepting connections and calls, has those that run answered for
// up to 5 s, cancels what is left, and returns when nothing runs any more. It
// may be called again.
func (s *Server) Close() error {
	s.draining.Store(true)
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		_ = l.Close() // Serve returns
	}
	all := slices.Collect(maps.Values(s.sessions))
	s.mu.Unlock()
	for _, x := range all {
		x.hush()
	}
	for start := time.Now(); !s.schedule.idle() && time.Since(start) < drainWait; {
		time.Sleep(time.Millisecond)
	}
	s.mu.Lock()
	s.kill()
	all = slices.Collect(maps.Values(s.sessions))
	s.mu.Unlock()
	var ending sync.WaitGroup
	for _, x := range all {
		ending.Go(func() { x.end(datanode.ErrClosed, false) })
	}
	ending.Wait()
	s.mu.Lock()
	for c := range s.sockets {
		_ = c.Close() // those in a handshake
	}
	s.mu.Unlock()
	s.serving.Wait()
	s.schedule.workers.Wait()
	return nil
}
