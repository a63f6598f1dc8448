package nbd_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// quiet keeps the expected complaints of a test out of its output.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// house is a server on a socket of its own.
type house struct {
	*nbd.Server
	*nbdtest.Exports
	network, addr string
}

// serve starts a server that is closed when the test ends, and checks then
// that every export was released and every goroutine has ended.
func serve(t testing.TB, network string, o nbd.Options, exports ...nbd.Export) *house {
	t.Helper()
	before := runtime.NumGoroutine()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	if o.Logger == nil {
		o.Logger = quiet
	}
	x := nbdtest.NewExports(exports...)
	h := &house{nbd.NewServer(x, o), x, network, l.Addr().String()}
	done := make(chan error, 1)
	go func() { done <- h.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		h.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		x.CheckReleased(t)
		checkGoroutines(t, before)
	})
	return h
}

// checkGoroutines fails the test if there are more than before for long.
func checkGoroutines(t testing.TB, before int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

func (h *house) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, h.network, h.addr)
}

func (h *house) raw(t testing.TB) *nbdtest.Raw {
	t.Helper()
	conn, err := h.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return nbdtest.NewRaw(t, conn)
}

func (h *house) open(t testing.TB, export string) *client.Client {
	t.Helper()
	return h.openAs(t, export, client.Options{})
}

func (h *house) openAs(t testing.TB, export string, o client.Options) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), h.network, h.addr, export, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// slow hides a device's TryReadAt, so that workers do all.
type slow struct{ nbd.Device }

func TestConformance(t *testing.T) {
	disk := memory.New(nbdtest.DeviceBytesMin + 12345)
	for network, d := range map[string]nbd.Device{"unix": disk, "tcp": slow{disk}} {
		t.Run(network, func(t *testing.T) {
			h := serve(t, network, nbd.Options{},
				nbd.Export{Name: "disk", Description: "a disk", Device: d, MultiConn: true},
				nbd.Export{Name: "fixed", Device: d, ReadOnly: true})
			nbdtest.Run(t, nbdtest.Target{Dial: h.dial, Export: "disk", ReadOnly: "fixed", Unknown: "none"})
		})
	}
}

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
