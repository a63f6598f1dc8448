package nbd_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/nbdtest"
)

const echoOption = 0x65636801

// echo answers lines with who has sent them, until the connection ends.
func echo(ctx context.Context, p nbd.Peer, c net.Conn) {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if p.TLS {
			line = p.Names[0] + ": " + line
		}
		if _, err := io.WriteString(c, line); err != nil || ctx.Err() != nil {
			return
		}
	}
}

var others = map[uint32]func(context.Context, nbd.Peer, net.Conn){echoOption: echo}

// change has a server go over to echo.
func change(t *testing.T, h *house, option uint32, o client.Options) (net.Conn, error) {
	t.Helper()
	conn, err := net.Dial(h.network, h.addr)
	if err != nil {
		t.Fatal(err)
	}
	return client.Change(t.Context(), conn, option, o)
}

// says sends a line and wants another one back.
func says(t *testing.T, c net.Conn, line, want string) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Errorf("%q is answered %q, want %q: %v", line, got, want, err)
	}
}

// ended wants the server to have hung up.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err == nil || n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %d bytes, %v", n, err)
	}
}

// A client goes over to a protocol that the server has been told of, in TLS where that
// is required; the connection ends with the server, which waits for it.
func TestOthers(t *testing.T) {
	for _, stop := range []func(*house) error{
		func(h *house) error { h.Close(); return nil },
		func(h *house) error { return h.Shutdown(context.Background()) },
	} {
		h := serve(t, "tcp", nbd.Options{Others: others}, inMemory("d"))
		c, err := change(t, h, echoOption, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		says(t, c, "a\nb\n", "a\nb\n")
		if _, err := change(t, h, echoOption+1, client.Options{}); !errors.Is(err, client.ErrUnsupported) {
			t.Errorf("another option: %v", err)
		}
		if err := stop(h); err != nil {
			t.Error(err)
		}
		ended(t, c)
		c.Close()
	}
}

// What a client sends right behind the option is not lost, and data of the option is
// refused.
func TestOthersAtOnce(t *testing.T) {
	h := serve(t, "tcp", nbd.Options{Others: others}, inMemory("d"))
	r := h.raw(t)
	r.Greet(fixed)
	r.Option(echoOption, []byte("x"))
	if typ := r.LastReply(echoOption); typ != wire.RepErrInvalid {
		t.Errorf("with data: reply %#x", typ)
	}
	r.Send(wire.MagicOption, uint32(echoOption), uint32(0), "now\n")
	if typ := r.LastReply(echoOption); typ != wire.RepAck {
		t.Fatalf("reply %#x", typ)
	}
	if got := r.Receive(4); string(got) != "now\n" {
		t.Errorf("got %q", got)
	}
}

func TestOthersOverTLS(t *testing.T) {
	server, clients := certificates(t, "host1")
	config, err := nbd.LoadTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	h := serve(t, "tcp", nbd.Options{TLS: config, TLSRequired: true, Others: others}, inMemory("d"))
	var refused *client.OptionError
	if _, err := change(t, h, echoOption, client.Options{}); !errors.As(err, &refused) || refused.Type != wire.RepErrTLSReqd {
		t.Errorf("without TLS: %v", err)
	}
	c, err := change(t, h, echoOption, client.Options{TLS: nbdtest.ClientTLS(t, clients["host1"])})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	says(t, c, "a\n", "host1: a\n")
}
