package remote

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/datanode/wire/wiretest"
	"plinth/internal/host"
	"plinth/nbd"
)

// waitMax bounds every wait of a test.
const waitMax = time.Minute

// far is a data node behind a network.
type far struct {
	*shelf.Shelf
	pool    [16]byte
	cluster string
	ca      *wiretest.Authority
	address string
	dir     string // of the agents, and of the root key
}

// link is one agent's connection to the network, which can be cut.
type link struct {
	mu    sync.Mutex
	cut   bool
	deaf  bool // nothing comes back
	conns []net.Conn
}

// heard is a connection of a link.
type heard struct {
	net.Conn
	link *link
}

func (h heard) Read(p []byte) (int, error) {
	for {
		n, err := h.Conn.Read(p)
		h.link.mu.Lock()
		deaf := h.link.deaf
		h.link.mu.Unlock()
		if err != nil || !deaf {
			return n, err
		}
	}
}

func newFar(t testing.TB) *far { return newFarOn(t, nil) }

// newFarOn is newFar with drives on a file system; nil: the operating system's.
func newFarOn(t testing.TB, drives vfs.FS) *far {
	t.Helper()
	f := &far{pool: [16]byte{1}, ca: wiretest.NewAuthority(t), dir: t.TempDir()}
	f.cluster = hex.EncodeToString(f.pool[:])
	quiet := slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "shelf")
	opts := shelf.Options{PoolID: f.pool, Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 32 << 20, Logger: quiet, FS: drives}
	ok(t, shelf.Create(dir, opts))
	var err error
	f.Shelf, err = shelf.Open(t.Context(), dir, opts)
	ok(t, err)
	t.Cleanup(func() { ok(t, f.Shelf.Close()) })
	server, err := wire.NewServer(t.Context(), f.Shelf, wire.ServerOptions{
		TLS: f.ca.Config(t, "plinth://"+f.cluster+"/datanode/n1"), Cluster: f.cluster, Name: "n1", Logger: quiet,
	})
	ok(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	f.address = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		ok(t, server.Close())
		ok(t, <-ended)
	})
	return f
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects, where the network is not cut.
func (l *link) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("the network is cut")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.conns = append(l.conns, c)
	return heard{c, l}, nil
}

func (l *link) setDeaf(deaf bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deaf = deaf
}

func (l *link) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (f *far) options(t testing.TB, name string, l *link) Options {
	return Options{
		Name: name, Dir: filepath.Join(f.dir, name), Paths: [][]string{{f.address}}, Logger: slog.New(slog.DiscardHandler),
		Keys: host.RootSource{File: filepath.Join(f.dir, "root.key")}, Peer: PeerOptions{Listen: "127.0.0.1:0"},
		Node: wire.ClientOptions{
			TLS: f.ca.Config(t, "plinth://"+f.cluster+"/host/"+name), Cluster: f.cluster, Pool: f.pool, Dial: l.dial,
			UnreachableAfter: 300 * time.Millisecond, // a busy machine stands still for 100
		},
		Host: host.Options{DestageInterval: 20 * time.Millisecond, RAMCacheBytes: -1, LeaseTTL: 5 * time.Second},
	}
}

// open starts an agent, which the test's end closes.
func (f *far) open(t *testing.T, name string) (*Agent, *link) {
	t.Helper()
	l := &link{}
	a, err := Open(t.Context(), f.options(t, name, l))
	ok(t, err)
	t.Cleanup(func() { ok(t, a.Close()) })
	return a, l
}

func openExport(t testing.TB, a *Agent, name string) nbd.Device {
	t.Helper()
	e, release, err := Exports{a}.Open(t.Context(), name)
	ok(t, err)
	t.Cleanup(release)
	return e.Device
}

// The network is cut for longer than a client waits: requests wait until it is
// back, each change is done once, and snapshots that are open go on.
func TestCutNetwork(t *testing.T) {
	f := newFar(t)
	a, l := f.open(t, "h1")
	const size = 1 << 20
	_, err := a.Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: size})
	ok(t, err)
	d := openExport(t, a, "d")
	rng := rand.New(rand.NewPCG(1, 1))
	content := make([]byte, size)
	change := func(ctx context.Context, dev nbd.Device) error {
		off, n := rng.IntN(size-64<<10), 1+rng.IntN(64<<10)
		p := content[off : off+n]
		if rng.IntN(4) == 0 {
			clear(p)
			return dev.Zero(ctx, int64(off), int64(n), true, rng.IntN(2) == 0)
		}
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return dev.WriteAt(ctx, p, int64(off), rng.IntN(2) == 0)
	}
	same := func(dev nbd.Device, want []byte) {
		t.Helper()
		got := make([]byte, size)
		ok(t, dev.ReadAt(t.Context(), got, 0))
		if !bytes.Equal(got, want) {
			t.Fatal("other bytes were read than written")
		}
	}
	ok(t, change(t.Context(), d))
	_, err = a.Host().CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"d"}, Name: "s"})
	ok(t, err)
	snapshot, old := openExport(t, a, "d@s"), bytes.Clone(content)
	for range 4 {
		s := a.now.Load()
		ctx, cancel := context.WithTimeout(t.Context(), waitMax)
		done := make(chan error, 1)
		go func() {
			for s == a.now.Load() || rng.IntN(20) != 0 {
				if err := change(ctx, d); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		l.setCut(true)
		select {
		case <-s.nodes.client.Broken():
		case <-ctx.Done():
			t.Fatal("a session outlives its network")
		}
		gone, give := context.WithCancel(t.Context())
		give()
		if err := d.WriteAt(gone, make([]byte, 1), 0, false); err == nil {
			t.Error("a write of a client that has gone is done")
		}
		l.setCut(false)
		ok(t, <-done)
		cancel()
		same(d, content)
		same(snapshot, old)
	}
	if info := a.Host().Disks(); len(info) != 1 || info[0].State != "ok" || info[0].Clients != 1 {
		t.Errorf("disks: %+v", info)
	}
	if _, err := Open(t.Context(), f.options(t, "h1", l)); !errors.Is(err, host.ErrInUse) {
		t.Errorf("a second agent in the same directory: %v", err)
	}
}
