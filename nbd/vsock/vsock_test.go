package vsock

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"
)

func TestAddress(t *testing.T) {
	for _, c := range []struct {
		text      string
		cid, port uint32
		listen    string
	}{
		{"10809", 2, 10809, "10809"}, {"3:1", 3, 1, "3:1"}, {"1:4294967294", 1, 4294967294, "1:4294967294"},
	} {
		cid, port, err := Split(c.text)
		if err != nil || cid != c.cid || port != c.port {
			t.Errorf("%q is %d:%d, %v", c.text, cid, port, err)
		}
		if a, err := parse(c.text, 1<<32-1); err != nil || a.String() != c.listen {
			t.Errorf("%q listens on %v, %v", c.text, a, err)
		}
	}
	for _, text := range []string{"", ":", "1:", ":1", "a:1", "1:a", "1:2:3", "-1:1", "4294967296:1", "1:4294967295", "4294967296"} {
		if err := Check(text); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A listener gives its socket to another before it closes. Connections need a
// machine at the other end: the guest in cmd/plinth/interop makes them.
func TestListener(t *testing.T) {
	l, err := Listen("0")
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return // there is nothing to listen on, and that is what it says
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	accepts := func(l *Listener, end func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			done <- err
		}()
		select {
		case err := <-done:
			t.Fatalf("accept: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("accept goes on")
		}
	}
	accepts(l, func() error { return l.SetDeadline(time.Unix(1, 0)) })
	at := l.Addr()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("accept goes on after close")
	}
	again, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	if again.Addr() != at || at.Network() != Network {
		t.Errorf("listens on %v, was %v", again.Addr(), at)
	}
	if _, err := Listen(at.String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	accepts(again, again.Close)
}

func TestDial(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if c, err := Dial(ctx, "1:1"); err == nil {
		c.Close()
		t.Error("connected to port 1 of this machine")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("dial took %v with a context of 50 ms", took)
	}
	if _, err := Dial(t.Context(), "a"); !errors.Is(err, ErrAddress) {
		t.Errorf("dial a: %v", err)
	}
}
