package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// journal keeps a log for a test to look at.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.b.String(), text)
}

// certificates makes an authority's directory for a server, and for clients
// of these names.
func certificates(t *testing.T, names ...string) (server string, clients map[string]string) {
	t.Helper()
	a := nbdtest.NewAuthority(t)
	server, clients = t.TempDir(), map[string]string{}
	a.Write(server, "server", "127.0.0.1", time.Now().Add(time.Hour))
	for _, name := range names {
		clients[name] = t.TempDir()
		a.Write(clients[name], "client", name, time.Now().Add(time.Hour))
	}
	clients["expired"], clients["none"], clients["stranger"] = t.TempDir(), t.TempDir(), t.TempDir()
	a.Write(clients["expired"], "client", "expired", time.Now().Add(-time.Minute))
	a.Write(clients["none"], "other", "none", time.Now().Add(time.Hour))
	// Another authority's certificate, in a client that trusts ours.
	nbdtest.NewAuthority(t).Write(clients["stranger"], "client", "stranger", time.Now().Add(time.Hour))
	ca, err := os.ReadFile(filepath.Join(server, "ca-cert.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(clients["stranger"], "ca-cert.pem"), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return server, clients
}

// serveTLS serves the exports a1, a2 and b on TCP with TLS required. Host1 may
// use a1 and a2, host2 may use b.
func serveTLS(t *testing.T, server string, j *journal) *house {
	t.Helper()
	config, err := nbd.LoadTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, "tcp", nbd.Options{
		Logger: slog.New(slog.NewTextHandler(j, nil)), TLS: config, TLSRequired: true,
		Allow: nbd.Grants{"host1": {"a*"}, "host2": {"b"}}.Allow,
	}, inMemory("a1"), inMemory("a2"), inMemory("b"))
}

func TestTLS(t *testing.T) {
	server, clients := certificates(t, "host1", "host2")
	var j journal
	h := serveTLS(t, server, &j)
	options := func(name string) client.Options {
		return client.Options{TLS: nbdtest.ClientTLS(t, clients[name]), Form: client.Extended}
	}
	c := h.openAs(t, "a1", options("host1"))
	p := bytes.Repeat([]byte("over TLS"), 100_000)
	if err := c.WriteAt(t.Context(), p, 1, true); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if err := c.ReadAt(t.Context(), got, 1); err != nil || !bytes.Equal(got, p) {
		t.Errorf("what came back differs: %v", err)
	}
	eventually(t, func() bool { return j.has("certificate=\"[host1 localhost]\"") })
	for _, test := range []struct {
		who, export, log string
		err              error
	}{
		{"host1", "b", "export refused", nil},
		{"host2", "a1", "export refused", nil},
		{"host2", "none", "", nbd.ErrUnknownExport},
		{"expired", "a1", "certificate has expired", nil},
		{"none", "a1", "client didn't provide a certificate", nil},
		{"stranger", "a1", "signed by unknown authority", nil},
	} {
		c, err := client.Dial(t.Context(), h.network, h.addr, test.export, options(test.who))
		if err == nil {
			c.Close()
			t.Errorf("%s may use %s", test.who, test.export)
		}
		if test.err != nil && !errors.Is(err, test.err) {
			t.Errorf("%s and %s: %v", test.who, test.export, err)
		}
		if test.log != "" {
			eventually(t, func() bool { return j.has(test.log) })
		}
	}
	for who, want := range map[string]string{"host1": "[{a1 } {a2 }]", "host2": "[{b }]"} {
		entries, err := client.List(t.Context(), h.network, h.addr, options(who))
		if fmt.Sprint(entries) != want || err != nil {
			t.Errorf("%s sees %v, %v", who, entries, err)
		}
	}
	if h.Connections("b") != 0 || h.Connections("a1") != 1 {
		t.Errorf("%d connections to b, %d to a1", h.Connections("b"), h.Connections("a1"))
	}
}

func TestTLSRequired(t *testing.T) {
	server, clients := certificates(t, "host1")
	var j journal
	h := serveTLS(t, server, &j)
	r := h.raw(t)
	r.Greet(fixed)
	for _, opt := range []uint32{wire.OptList, wire.OptInfo, wire.OptGo, wire.OptStructuredReply, wire.OptSetMetaContext, 99} {
		r.Option(opt, nbdtest.InfoData(t, "a1"))
		if typ := r.LastReply(opt); typ != wire.RepErrTLSReqd {
			t.Errorf("option %d without TLS: reply %#x", opt, typ)
		}
	}
	r.Option(wire.OptExportName, []byte("a1"))
	r.ExpectEnd()
	eventually(t, func() bool { return j.has("EXPORT_NAME without TLS, which is required") })
	if _, err := client.Dial(t.Context(), h.network, h.addr, "a1", client.Options{}); err == nil {
		t.Error("opened without TLS")
	}

	// What is said before TLS does not count after it, and nothing may hide
	// between the two.
	r = h.raw(t)
	r.Greet(fixed)
	r.Send(append(optionHead(t, wire.OptStartTLS, 0), optionHead(t, wire.OptList, 0)...))
	r.ExpectEnd()
	eventually(t, func() bool { return j.has("data before the acknowledgement") })

	// TLS twice, and with data.
	r = h.raw(t)
	r.Greet(fixed)
	r.Option(wire.OptStartTLS, []byte{1})
	if typ := r.LastReply(wire.OptStartTLS); typ != wire.RepErrInvalid {
		t.Errorf("STARTTLS with data: reply %#x", typ)
	}
	r.Option(wire.OptStartTLS, nil)
	if typ := r.LastReply(wire.OptStartTLS); typ != wire.RepAck {
		t.Errorf("STARTTLS: reply %#x", typ)
	}
	r = r.TLS(nbdtest.ClientTLS(t, clients["host1"]))
	r.Option(wire.OptStartTLS, nil)
	if typ := r.LastReply(wire.OptStartTLS); typ != wire.RepErrInvalid {
		t.Errorf("STARTTLS in TLS: reply %#x", typ)
	}
	r.Option(wire.OptExportName, []byte("a1"))
	r.Receive(10)
	r.Request(0, wire.CmdDisc, 0, 0, 0, nil)
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("after DISC: %x, %v: the end is not TLS's own", b, err)
	}
}

// A unix socket's own permissions are enough, and TLS on it is possible.
func TestUnixSocketNeedsNoTLS(t *testing.T) {
	server, clients := certificates(t, "host1")
	config, err := nbd.LoadTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	grants := nbd.Grants{"host1": {"a*"}}
	h := serve(t, "unix", nbd.Options{TLS: config, TLSRequired: true, Allow: grants.Allow}, inMemory("a"), inMemory("b"))
	h.open(t, "b")
	o := client.Options{TLS: nbdtest.ClientTLS(t, clients["host1"])}
	h.openAs(t, "a", o)
	if _, err := client.Dial(t.Context(), h.network, h.addr, "b", o); err == nil {
		t.Error("host1 may use b")
	}
	if err := (nbd.Grants{"x": {"[a"}}).Validate(); err == nil {
		t.Error("a malformed pattern is valid")
	}
}

// counted counts what is opened.
type counted struct {
	nbd.Exports
	opens atomic.Int64
}

func (c *counted) Open(ctx context.Context, name string) (nbd.Export, func(), error) {
	c.opens.Add(1)
	return c.Exports.Open(ctx, name)
}

// Opening may cost much: an export that a client may not use is not opened for it.
func TestRefusedIsNotOpened(t *testing.T) {
	x := &counted{Exports: nbdtest.NewExports(inMemory("a"), inMemory("b"))}
	s := nbd.NewServer(x, nbd.Options{Logger: quiet, Allow: func(_ nbd.Peer, export string) bool { return export == "a" }})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	defer func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, opt := range []uint32{wire.OptGo, wire.OptExportName} {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		r := nbdtest.NewRaw(t, conn)
		r.Greet(fixed)
		if opt == wire.OptExportName {
			r.Option(opt, []byte("b"))
			r.ExpectEnd()
			continue
		}
		r.Option(opt, nbdtest.InfoData(t, "b"))
		if typ := r.LastReply(opt); typ != wire.RepErrPolicy {
			t.Errorf("GO: reply %#x", typ)
		}
		if n := x.opens.Load(); n != 0 {
			t.Errorf("opened %d times", n)
		}
		r.Option(opt, nbdtest.InfoData(t, "a"))
		if typ := r.LastReply(opt); typ != wire.RepAck {
			t.Errorf("GO: reply %#x", typ)
		}
	}
	if n := x.opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

func TestConformanceOverTLS(t *testing.T) {
	server, clients := certificates(t, "host1")
	config, err := nbd.LoadTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	disk := memory.New(nbdtest.DeviceBytesMin + 12345)
	h := serve(t, "tcp", nbd.Options{TLS: config}, nbd.Export{Name: "disk", Device: disk, MultiConn: true})
	nbdtest.Run(t, nbdtest.Target{Export: "disk", Forms: []client.Form{client.Extended}, Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := h.dial(ctx)
		if err != nil {
			return nil, err
		}
		return nbdtest.DialTLS(ctx, conn, nbdtest.ClientTLS(t, clients["host1"]))
	}})
}

func TestShutdownOverTLS(t *testing.T) {
	server, clients := certificates(t, "host1")
	var j journal
	h := serveTLS(t, server, &j)
	c := h.openAs(t, "a1", client.Options{TLS: nbdtest.ClientTLS(t, clients["host1"])})
	if err := c.WriteAt(t.Context(), []byte("x"), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := h.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Flush(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("flush after shutdown: %v", err)
	}
}

func TestLoadTLS(t *testing.T) {
	server, _ := certificates(t)
	if c, err := nbd.LoadTLS(server); err != nil || c.ClientCAs == nil {
		t.Errorf("with an authority: %v", err)
	}
	if err := os.Remove(filepath.Join(server, "ca-cert.pem")); err != nil {
		t.Fatal(err)
	}
	if c, err := nbd.LoadTLS(server); err != nil || c.ClientCAs != nil {
		t.Errorf("without an authority: %v", err)
	}
	if err := os.WriteFile(filepath.Join(server, "ca-cert.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{server, t.TempDir()} {
		if _, err := nbd.LoadTLS(dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
