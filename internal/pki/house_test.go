package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// quiet is a log that nobody reads.
var quiet = slog.New(slog.DiscardHandler)

// house is a cluster whose authority answers on loopback.
type house struct {
	*Authority
	admin *Identity
	addr  string
	dir   string
	clock *clock
}

// clock is the time of a test's cluster.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// begin makes a cluster and serves it until the test ends.
func begin(t *testing.T, o InitOptions) *house {
	t.Helper()
	h := &house{dir: filepath.Join(t.TempDir(), "admin"), clock: &clock{}}
	var err error
	if h.Authority, h.admin, err = Init(h.dir, o, quiet); err != nil {
		t.Fatal(err)
	}
	h.Authority.now, h.admin.now = h.clock.now, h.clock.now
	h.addr = h.serve(t, NewServer(h.Authority, h.admin, quiet))
	return h
}

func (h *house) serve(t *testing.T, s *Server) string {
	t.Helper()
	s.limits.burst = 10_000 // all members of a test have one address
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func (h *house) token(t *testing.T, role Role, name string) Token {
	t.Helper()
	token, _, err := h.CreateToken(TokenOptions{Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// join makes a member.
func (h *house) join(t *testing.T, role Role, name string) *Identity {
	t.Helper()
	i, err := Join(t.Context(), filepath.Join(t.TempDir(), name), JoinOptions{Token: h.token(t, role, name), Server: h.addr}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	i.now = h.clock.now
	return i
}

// talk lets a client call a server over TCP, both by these configs, and returns what
// either side says; nil: a byte went each way.
func talk(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	s, c := pair(t)
	defer s.Close()
	defer c.Close()
	done := make(chan error, 1)
	go func() { done <- echo(tls.Server(s, server)) }()
	clientErr = ask(tls.Client(c, client))
	c.Close()
	return <-done, clientErr
}

func ask(c *tls.Conn) error {
	if _, err := c.Write([]byte{7}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

func echo(s *tls.Conn) error {
	b := make([]byte, 1)
	if _, err := io.ReadFull(s, b); err != nil {
		return err
	}
	_, err := s.Write(b)
	return err
}

// pair returns both ends of a connection on loopback, which end after ten seconds.
func pair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(10 * time.Second)
	if err := errors.Join(server.SetDeadline(end), client.SetDeadline(end)); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// meet fails the test unless the two members take each other.
func meet(t *testing.T, server, client *Identity) {
	t.Helper()
	s, c := talk(t, server.ServerConfig(), client.ClientConfig(server.Self().Role, server.Self().Name))
	if s != nil || c != nil {
		t.Errorf("%s calls %s: server %v, client %v", client.Self(), server.Self(), s, c)
	}
}

// tlsServer shakes hands over a pair and returns the server's end.
func tlsServer(t *testing.T, server *Identity, s net.Conn, client *Identity, c net.Conn) *tls.Conn {
	t.Helper()
	conn := tls.Server(s, server.ServerConfig())
	peer := tls.Client(c, client.ClientConfig(server.Self().Role, ""))
	done := make(chan error, 1)
	go func() { done <- peer.Handshake() }()
	if err := errors.Join(conn.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return conn
}
