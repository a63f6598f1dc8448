package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// Server serves Exports over any number of listeners. NewServer makes one;
// nothing runs until Serve.
type Server struct {
	exports Exports
	opts    Options
	// ctx is the parent of every call to Exports and devices.
	ctx    context.Context
	cancel context.CancelFunc
	conns  sync.WaitGroup // and patience's goroutine

	patience patience

	// mu guards the rest. It is taken before any conn's mu.
	mu        sync.Mutex
	stopped   bool
	listeners map[net.Listener]struct{}
	connected map[*conn]struct{}
	attached  map[string]*exportState // by export, while it has connections
}

// NewServer returns a server of exports. It panics on Options.TLSRequired
// without TLS: nobody could connect.
func NewServer(exports Exports, opts Options) *Server {
	if opts.TLSRequired && opts.TLS == nil {
		panic("nbd: TLS is required and not set up")
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		exports:   exports,
		opts:      opts.withDefaults(),
		ctx:       ctx,
		cancel:    cancel,
		listeners: map[net.Listener]struct{}{},
		connected: map[*conn]struct{}{},
		attached:  map[string]*exportState{},
	}
}

// Serve accepts connections from l, which it closes, until ctx ends, the
// server stops (both return nil; after that it returns ErrShutdown at once),
// or l fails. The connections live on until Shutdown or Close.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !s.addListener(l) {
		return ErrShutdown
	}
	defer s.removeListener(l)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			s.start(nc)
		case ctx.Err() != nil || s.stopping():
			return nil
		case isPassing(err):
			s.opts.Logger.Error("nbd: accept failed, will retry", "listener", l.Addr().String(), "err", err)
			if !sleep(ctx, acceptRetryTime) {
				return nil
			}
		default:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
	}
}

// acceptRetryTime gives connections time to end when there are no file
// descriptors for another.
const acceptRetryTime = 100 * time.Millisecond

// isPassing reports an accept error that says nothing of the listener.
func isPassing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Shutdown stops listening, lets requests in flight finish, answers options with
// ERR_SHUTDOWN and later requests not at all, and closes each connection when it
// is quiet: clients that reconnect notice no more than a pause. When ctx ends first it does what Close does and returns
// ctx's error. Either way it returns when every export is released.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop((*conn).drain)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.conns.Wait()
	}()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
		s.Close()
		<-done
		return fmt.Errorf("shut down nbd server: %w", ctx.Err())
	}
}

// Close closes listeners and connections, ends the context of device calls,
// and returns when all have returned and every export is released. What was
// in flight is not answered.
func (s *Server) Close() {
	s.cancel()
	s.stop(func(c *conn) { c.Close() })
	s.conns.Wait()
}

// Connections returns the number of connections that have the export of this
// canonical name open.
func (s *Server) Connections(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.attached[name]; x != nil {
		return x.attached
	}
	return 0
}

func (s *Server) stop(each func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.connected {
		each(c)
	}
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// start runs a connection, unless there are too many.
func (s *Server) start(nc net.Conn) {
	c := &conn{server: s, Conn: newSocket(nc)}
	s.mu.Lock()
	if s.stopped || len(s.connected) >= s.opts.ConnectionsMax {
		s.mu.Unlock()
		s.opts.Logger.Warn("nbd: connection refused", "remote", nc.RemoteAddr().String(), "max", s.opts.ConnectionsMax)
		nc.Close()
		return
	}
	s.connected[c] = struct{}{}
	s.conns.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.conns.Done()
		c.run()
		s.mu.Lock()
		delete(s.connected, c)
		s.mu.Unlock()
	}()
}

// open opens an export for a connection and counts it until its release.
func (s *Server) open(ctx context.Context, name string) (*session, error) {
	e, release, err := s.exports.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	shared := s.attached[e.Name]
	if shared == nil {
		shared = new(exportState)
		s.attached[e.Name] = shared
	}
	shared.attached++
	return &session{export: e, info: e.Info(), shared: shared, release: func() {
		release()
		s.mu.Lock()
		defer s.mu.Unlock()
		if shared.attached--; shared.attached == 0 {
			delete(s.attached, e.Name)
		}
	}}, nil
}
