package handover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"plinth/nbd/vsock"
)

func TestMain(m *testing.M) {
	answerTimeMax = time.Second // long enough for a machine under load
	m.Run()
}

// journal is a log for a test to look at.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// await runs Await on dir/up until the test or a successor ends it.
func await(t *testing.T, dir string, j *journal, prepare func(context.Context)) <-chan *Successor {
	t.Helper()
	l := listen(t, "unix", filepath.Join(dir, "up"))
	done := make(chan *Successor, 1)
	go func() {
		s, err := Await(t.Context(), l, j.logger(), prepare)
		if err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		done <- s
	}()
	return done
}

// Sockets of each kind go from one to another; who connects meanwhile waits.
func TestPass(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "nbd")
	listeners := []net.Listener{listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", path)}
	listeners[1].(*net.UnixListener).SetUnlinkOnClose(false)
	if l, err := vsock.Listen("0"); err == nil { // not every kernel has them
		defer l.Close()
		listeners = append(listeners, l)
	}
	var old []*Socket
	for _, l := range listeners {
		s, err := NewSocket(l, l.Addr().Network() == "unix")
		if err != nil {
			t.Fatal(err)
		}
		old = append(old, s)
	}
	var j journal
	ready := make(chan struct{})
	successor := await(t, dir, &j, func(context.Context) { close(ready) })
	type taken struct {
		sockets []*Socket
		err     error
	}
	next := make(chan taken, 1)
	go func() {
		s, err := Take(t.Context(), filepath.Join(dir, "up"))
		next <- taken{s, err}
	}()
	<-ready
	s := <-successor
	accepting := make(chan error, len(old))
	for _, l := range old {
		go func() {
			_, err := l.Accept()
			accepting <- err
		}()
		l.Keep()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range old {
		if err := <-accepting; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("accept: %v", err)
		}
	}
	var waiting []net.Conn
	for _, l := range listeners[:2] {
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waiting = append(waiting, c)
	}
	if err := s.Pass(old); err != nil {
		t.Fatal(err)
	}
	got := <-next
	if got.err != nil || len(got.sockets) != len(old) {
		t.Fatalf("%d sockets, %v", len(got.sockets), got.err)
	}
	for _, l := range listeners {
		l.Close() // as its process ends
	}
	for i, s := range got.sockets {
		if s.Addr().String() != old[i].Addr().String() || s.Addr().Network() != old[i].Addr().Network() || s.owned != old[i].owned {
			t.Errorf("%v was %v, owned %t", s.Addr(), old[i].Addr(), s.owned)
		}
		if i < len(waiting) {
			c, err := s.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Write([]byte("a"))
			if _, rerr := io.ReadFull(waiting[i], make([]byte, 1)); err != nil || rerr != nil {
				t.Errorf("%v, %v", err, rerr)
			}
			c.Close()
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the path is gone before its socket: %v", err)
		}
	}
	for _, s := range got.sockets {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the path is left: %v", err)
	}
}

func TestNobody(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "up")
	if _, err := Take(t.Context(), path); !errors.Is(err, ErrNobody) {
		t.Errorf("no socket: %v", err)
	}
	l := listen(t, "unix", path).(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Take(t.Context(), path); !errors.Is(err, ErrNobody) {
		t.Errorf("a socket that a dead process left: %v", err)
	}
}

// A predecessor that says nothing, nonsense, or goes away is an error that says
// so, within the time.
func TestTakeRefusals(t *testing.T) {
	for want, says := range map[string]string{
		"it does not answer": "",
		"it says":            "what?\n",
		"it has gone":        answer + "7\n" + "!",
		"process 7: it says": answer + "7\nno\n",
		"came with a description of 1": answer + "7\nprepared\n" +
			`{"sockets":[{"network":"tcp","address":"a"}]}` + "\n",
	} {
		dir := t.TempDir()
		l := listen(t, "unix", filepath.Join(dir, "up"))
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			p := &peer{UnixConn: c.(*net.UnixConn)}
			for line := range strings.Lines(says) {
				if line == "!" {
					return
				}
				_ = p.send(strings.TrimSuffix(line, "\n"), time.Second)
			}
			_, _ = io.Copy(io.Discard, c) // until the other side gives up
		}()
		began := time.Now()
		_, err := Take(t.Context(), filepath.Join(dir, "up"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", says, err, want)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%q: %v", says, took)
		}
		l.Close()
	}
	if _, err := Take(t.Context(), filepath.Join(t.TempDir(), strings.Repeat("x", 200))); err == nil || errors.Is(err, ErrNobody) {
		t.Errorf("a path that is no socket's: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	listen(t, "unix", filepath.Join(dir, "up"))
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := Take(ctx, filepath.Join(dir, "up")); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// Successors that say nothing, nonsense, or go away before they said go leave
// things as they are; the next one is served.
func TestAwaitRefusals(t *testing.T) {
	dir := t.TempDir()
	var j journal
	prepared := 0
	successor := await(t, dir, &j, func(context.Context) { prepared++ })
	for _, says := range []string{"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("x", messageBytesMax+1), hello + "\n", hello + "\nstop\n"} {
		c, err := net.Dial("unix", filepath.Join(dir, "up"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, says) // may be refused before its end
		if _, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Logf("%.20q: %v", says, err)
		}
		c.Close()
	}
	taken := make(chan error, 1)
	go func() {
		_, err := Take(t.Context(), filepath.Join(dir, "up"))
		taken <- err
	}()
	s := <-successor
	s.peer.Close()
	if err := <-taken; err == nil || !strings.Contains(err.Error(), "it has gone") {
		t.Errorf("sockets that were not passed: %v", err)
	}
	if prepared != 3 || strings.Count(j.text(), "came to nothing") != 5 {
		t.Errorf("prepared %d times\n%s", prepared, j.text())
	}
}

// Await ends with its context, also while it prepares.
func TestAwaitEnds(t *testing.T) {
	for _, connect := range []bool{false, true} {
		dir := t.TempDir()
		l := listen(t, "unix", filepath.Join(dir, "up"))
		ctx, cancel := context.WithCancel(t.Context())
		if connect {
			go func() { _, _ = Take(t.Context(), filepath.Join(dir, "up")) }()
		} else {
			time.AfterFunc(10*time.Millisecond, cancel)
		}
		s, err := Await(ctx, l, slog.New(slog.DiscardHandler), func(ctx context.Context) {
			cancel()
			<-ctx.Done()
		})
		if s != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("%v, %v", s, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(`{"sockets":[{"network":"tcp","address":"127.0.0.1:1","owned":true}]}`), 1)
	f.Add([]byte(`{"sockets":[]}`), 0)
	f.Add([]byte(`{"sockets":[{"network":"udp"}]}`), 1)
	f.Fuzz(func(t *testing.T, line []byte, n int) {
		all, err := parseMessage(line, n)
		if err == nil && (len(all) != n || n > socketsMax) {
			t.Errorf("%d descriptions of %d sockets", len(all), n)
		}
	})
}
