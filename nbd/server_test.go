package nbd_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

func inMemory(name string) nbd.Export {
	return nbd.Export{Name: name, Device: memory.New(mib)}
}

// What was accepted is answered, what comes later is neither done nor answered,
// and then the server hangs up.
func TestShutdownFinishesRequests(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{}, probe(func(ctx context.Context, c nbdtest.Call) error {
		if c.Op != "trim" {
			t.Errorf("%s after shutdown began", c.Op)
		}
		return g.wait(ctx, c)
	}))
	r, silent, idle := h.raw(t), h.raw(t), h.raw(t)
	silent.Receive(18)
	idle.Enter("disk")
	r.Enter("disk")
	r.Request(0, wire.CmdTrim, 1, 0, 1, nil)
	g.settle(t, 1)
	done := make(chan error, 1)
	go func() { done <- h.Shutdown(context.Background()) }()
	idle.ExpectEnd()
	h.Connections("disk") // waits until Shutdown has come to every connection
	r.Request(0, wire.CmdWrite, 2, 0, 3, []byte("abc"))
	r.Request(0, wire.CmdFlush, 3, 0, 0, nil)
	g.open()
	r.Expect(0, 1)
	r.ExpectEnd()
	r.Close()
	idle.Close()
	silent.ExpectEnd()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Error(err)
	} else if err := h.Serve(t.Context(), l); !errors.Is(err, nbd.ErrShutdown) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestShutdownGivesUpWithItsContext(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{}, probe(g.wait))
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdTrim, 1, 0, 1, nil)
	g.settle(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if n := g.ended.Load(); n != 1 {
		t.Errorf("%d device calls ended by their context, want 1", n)
	}
	h.CheckReleased(t)
	r.ExpectEnd()
}

func TestLostConnectionEndsDeviceCalls(t *testing.T) {
	g := newGate()
	h := serve(t, "tcp", nbd.Options{}, probe(g.wait))
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdTrim, 1, 0, 1, nil)
	g.settle(t, 1)
	r.Close()
	eventually(t, func() bool { return g.ended.Load() == 1 && h.Connections("disk") == 0 })
}

// Nor does a client go unnoticed that hangs up while its requests wait for room.
func TestLostConnectionWithoutRoom(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		g := newGate()
		h := serve(t, network, nbd.Options{RequestsMax: 1}, probe(g.wait))
		r := h.raw(t)
		r.Enter("disk")
		for cookie := range uint64(3) {
			r.Request(0, wire.CmdTrim, cookie, 0, 1, nil)
		}
		g.settle(t, 1)
		r.Close()
		eventually(t, func() bool { return g.ended.Load() > 0 && h.Connections("disk") == 0 })
	}
}

// DISC is not a lost connection: what is in flight is finished.
func TestDisconnectFinishesRequests(t *testing.T) {
	g := newGate()
	h := serve(t, "tcp", nbd.Options{}, probe(g.wait))
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdTrim, 1, 0, 1, nil)
	r.Request(0, wire.CmdDisc, 0, 0, 0, nil)
	g.settle(t, 1)
	g.open()
	r.Expect(0, 1)
	if b := r.ExpectEnd(); len(b) > 0 {
		t.Errorf("after DISC: %x", b)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	s := nbd.NewServer(nbdtest.NewExports(inMemory("disk")), nbd.Options{Logger: quiet})
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c, err := client.Dial(ctx, "tcp", l.Addr().String(), "disk", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Errorf("a connection did not outlive Serve: %v", err)
	}
}

func TestConnectionsMax(t *testing.T) {
	h := serve(t, "unix", nbd.Options{ConnectionsMax: 2}, inMemory("disk"))
	first, second := h.open(t, "disk"), h.open(t, "disk")
	if b := h.raw(t).ExpectEnd(); len(b) > 0 {
		t.Errorf("a third connection was greeted: %x", b)
	}
	first.Close()
	eventually(t, func() bool { return h.Connections("disk") == 1 })
	eventually(t, func() bool {
		c, err := client.Dial(t.Context(), h.network, h.addr, "disk", client.Options{})
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	if err := second.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	h := serve(t, "tcp", nbd.Options{HandshakeTimeout: 500 * time.Millisecond}, inMemory("disk"))
	r := h.raw(t)
	r.Greet(wire.ClientFixedNewstyle)
	r.ExpectEnd()
	var c *client.Client
	eventually(t, func() (ok bool) { // a busy machine may need more than one attempt
		var err error
		c, err = client.Dial(t.Context(), h.network, h.addr, "disk", client.Options{})
		return err == nil
	})
	defer c.Close()
	time.Sleep(600 * time.Millisecond)
	if err := c.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Errorf("the handshake's time limit outlived it: %v", err)
	}
}

func TestInfoSaysWhatTheExportIs(t *testing.T) {
	e := nbd.Export{Name: "vm1", Description: "root disk of vm1", Device: memory.New(12345),
		ReadOnly: true, MultiConn: true, Rotational: true, PreferredBlockSize: 65536}
	h := serve(t, "tcp", nbd.Options{}, e, inMemory("a"))
	want := client.Info{Name: "vm1", Description: "root disk of vm1", Size: 12345,
		Flags: wire.FlagHasFlags | wire.FlagReadOnly | wire.FlagSendFlush | wire.FlagSendFUA |
			wire.FlagRotational | wire.FlagCanMultiConn | wire.FlagSendCache,
		MinBlockSize: 1, PreferredBlockSize: 65536, PayloadBytesMax: nbd.PayloadBytesMax}
	for _, name := range []string{"vm1", ""} { // the empty name is the default's
		got, err := client.Describe(t.Context(), h.network, h.addr, name, client.Options{})
		if err != nil || got != want {
			t.Errorf("describe %q: %+v, %v, want %+v", name, got, err, want)
		}
	}
	entries, err := client.List(t.Context(), h.network, h.addr, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 || entries[0] != (client.Entry{Name: "a"}) || entries[1] != (client.Entry{Name: "vm1", Description: "root disk of vm1"}) {
		t.Errorf("list: %+v", entries)
	}
}

// broken is Exports that fail.
type broken struct{ err error }

func (b broken) List(context.Context) ([]nbd.ExportInfo, error) { return nil, b.err }
func (b broken) Describe(context.Context, string) (nbd.ExportInfo, error) {
	return nbd.ExportInfo{}, b.err
}
func (b broken) Open(context.Context, string) (nbd.Export, func(), error) {
	return nbd.Export{}, nil, b.err
}

func TestBrokenExports(t *testing.T) {
	for _, test := range []struct {
		err  error
		want uint32
	}{
		{errors.New("secret path"), wire.RepErrUnknown},
		{nbd.ErrUnknownExport, wire.RepErrUnknown},
		{nbd.ErrShutdown, wire.RepErrShutdown},
	} {
		s := nbd.NewServer(broken{test.err}, nbd.Options{Logger: quiet})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(t.Context(), l)
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		r := nbdtest.NewRaw(t, conn)
		r.Greet(wire.ClientFixedNewstyle)
		for _, opt := range []uint32{wire.OptList, wire.OptInfo, wire.OptGo} {
			var data []byte
			if opt != wire.OptList {
				data = nbdtest.InfoData(t, "disk")
			}
			r.Option(opt, data)
			typ, text := r.OptionReply(opt)
			if typ != test.want || string(text) == "secret path" {
				t.Errorf("option %d, %v: reply %#x %q", opt, test.err, typ, text)
			}
		}
		r.Option(wire.OptExportName, []byte("disk"))
		if b := r.ExpectEnd(); len(b) > 0 {
			t.Errorf("EXPORT_NAME, %v: %x", test.err, b)
		}
		s.Close()
	}
}

// grown is a device whose size is said at each call.
type grown struct {
	*memory.Device
	size *atomic.Int64
}

func (g grown) Size() int64 { return g.size.Load() }

// A connection may use what its device has grown by.
func TestDeviceGrows(t *testing.T) {
	d := grown{memory.New(2 * mib), new(atomic.Int64)}
	d.size.Store(mib)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: d})
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdWrite, 1, mib-1, 2, []byte("ab"))
	r.Expect(uint32(nbd.ENOSPC), 1)
	d.size.Store(2 * mib)
	r.Request(0, wire.CmdWrite, 2, mib-1, 2, []byte("ab"))
	r.Expect(0, 2)
	r.Request(0, wire.CmdWrite, 3, 2*mib-1, 2, []byte("ab"))
	r.Expect(uint32(nbd.ENOSPC), 3)
}
