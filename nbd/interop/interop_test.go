package interop

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

// programTime bounds each run of a program.
const programTime = time.Minute

// Sizes of the disk served. diskBytes is no multiple of 512, because no client
// may need one. One does: at such a size qemu-img compare (7.2) never ends,
// with any server that offers no block status.
const (
	diskBytes     = 96<<20 + 1001
	evenDiskBytes = 96 << 20
)

// house is a server of ours with the exports "disk" and "fixed", one device
// that only the first may change.
type house struct {
	disk          *memory.Device
	network, addr string
}

// everywhere runs a test against a server on each kind of socket.
func everywhere(t *testing.T, size int64, test func(*testing.T, *house)) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) { test(t, serve(t, network, size)) })
	}
}

// serve starts a server of a disk of size bytes that is shut down when the test ends; every client
// must be gone by then.
func serve(t *testing.T, network string, size int64) *house {
	t.Helper()
	return serveOptions(t, network, size, nbd.Options{})
}

func serveOptions(t *testing.T, network string, size int64, o nbd.Options) *house {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	disk := memory.New(size)
	exports := nbdtest.NewExports(
		nbd.Export{Name: "disk", Description: "a disk of a test", Device: disk, MultiConn: true},
		nbd.Export{Name: "fixed", Device: disk, ReadOnly: true, MultiConn: true})
	s := nbd.NewServer(exports, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		exports.CheckReleased(t)
	})
	return &house{disk, network, l.Addr().String()}
}

// uri names an export, or with "" the server.
func (h *house) uri(export string) string {
	if h.network == "unix" {
		return "nbd+unix:///" + export + "?socket=" + h.addr
	}
	return "nbd://" + h.addr + "/" + export
}

// run runs a program to its end and returns its output. It fails the test if
// the program does.
func run(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTime)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", program, args, err, &out, &complaints)
	}
	return out.Bytes()
}

// image writes a file of n bytes, random with zeros between, and returns its
// path and content.
func image(t *testing.T, n int) (string, []byte) {
	t.Helper()
	b := make([]byte, n)
	seed := [32]byte{byte(n)}
	rng := rand.NewChaCha8(seed)
	for off := 0; off < n; off += 3 << 18 {
		rng.Read(b[off:min(n, off+1<<19)])
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, b
}

// check compares the disk's first bytes with want.
func (h *house) check(t *testing.T, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := h.disk.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk does not hold what was written")
	}
}
