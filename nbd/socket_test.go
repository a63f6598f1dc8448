package nbd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// pair returns both ends of a connection.
func pair(t *testing.T, network, address string) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a, b
}

func TestSocketCarriesMoreThanBuffersHold(t *testing.T) {
	for network, address := range map[string]string{"unix": filepath.Join(t.TempDir(), "s"), "tcp": "127.0.0.1:0"} {
		a, b := pair(t, network, address)
		from, to := newSocket(a).(*socket), newSocket(b).(*socket)
		want := make([]byte, 9*callBytesMax+1)
		for i := range want {
			want[i] = byte(i * i >> 7)
		}
		written := make(chan error, 1)
		go func() {
			_, err := from.write(want[:100], true)
			if err == nil {
				_, err = from.Write(want[100:])
			}
			written <- errors.Join(err, from.CloseWrite())
		}()
		got, err := io.ReadAll(to)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v", network, len(got), err)
		}
		if err := <-written; err != nil {
			t.Errorf("%s: write: %v", network, err)
		}
	}
}

func TestSocketEndsAtDeadlineAndAfterPeer(t *testing.T) {
	a, b := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	s := newSocket(a)
	p := make([]byte, 8<<20)
	s.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := s.Read(p); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read without input: %d, %v", n, err)
	}
	s.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := s.Write(p); n == 0 || n == len(p) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write without room: %d, %v", n, err)
	}
	s.SetDeadline(time.Time{})
	b.Close()
	if n, err := s.Write(p[:1]); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to one who is gone: %d, %v", n, err)
	}
	s.Close()
	if _, err := s.Read(p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}
