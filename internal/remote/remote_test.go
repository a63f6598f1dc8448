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

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/datanode/wire/wiretest"
	"plinth/internal/host"
	"plinth/nbd"
)

// waitMax bounds every wait of a test.
const waitMax = time.Minute

// far is a data node behind a network that can be cut.
type far struct {
	*shelf.Shelf
	pool    [16]byte
	cluster string
	ca      *wiretest.Authority
	address string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newFar(t *testing.T) *far {
	t.Helper()
	f := &far{pool: [16]byte{1}, ca: wiretest.NewAuthority(t)}
	f.cluster = hex.EncodeToString(f.pool[:])
	quiet := slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "shelf")
	opts := shelf.Options{PoolID: f.pool, Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 32 << 20, Logger: quiet}
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

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects, where the network is not cut.
func (f *far) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut {
		return nil, errors.New("the network is cut")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		f.conns = append(f.conns, c)
	}
	return c, err
}

func (f *far) setCut(cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = cut
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
}

func (f *far) options(t *testing.T, name, dir string) Options {
	return Options{
		Name: name, Dir: dir, Logger: slog.New(slog.DiscardHandler),
		Keys: host.RootSource{File: filepath.Join(dir, "..", "root.key")},
		Node: wire.ClientOptions{
			TLS: f.ca.Config(t, "plinth://"+f.cluster+"/host/"+name), Cluster: f.cluster, Pool: f.pool, Paths: []string{f.address}, Dial: f.dial,
			UnreachableAfter: 100 * time.Millisecond,
		},
		Host: host.Options{DestageInterval: 20 * time.Millisecond, RAMCacheBytes: -1},
	}
}

// open starts an agent, which the test's end closes.
func (f *far) open(t *testing.T, name, dir string) *Agent {
	t.Helper()
	a, err := Open(t.Context(), f.options(t, name, dir))
	ok(t, err)
	t.Cleanup(func() { ok(t, a.Close()) })
	return a
}

func openExport(t *testing.T, a *Agent, name string) nbd.Device {
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
	a := f.open(t, "h1", filepath.Join(t.TempDir(), "h"))
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
		f.setCut(true)
		select {
		case <-s.client.Broken():
		case <-ctx.Done():
			t.Fatal("a session outlives its network")
		}
		gone, give := context.WithCancel(t.Context())
		give()
		if err := d.WriteAt(gone, make([]byte, 1), 0, false); err == nil {
			t.Error("a write of a client that has gone is done")
		}
		f.setCut(false)
		ok(t, <-done)
		cancel()
		same(d, content)
		same(snapshot, old)
	}
	if info := a.Host().Disks(); len(info) != 1 || info[0].State != "ok" || info[0].Clients != 1 {
		t.Errorf("disks: %+v", info)
	}
}

// One host at a time: another is refused, one with the same directory takes over
// from its last process, and who was away while another served ends.
func TestGuard(t *testing.T) {
	f := newFar(t)
	dir := t.TempDir()
	a := f.open(t, "h1", filepath.Join(dir, "a"))
	if _, err := Open(t.Context(), f.options(t, "h2", filepath.Join(dir, "b"))); !errors.Is(err, ErrServed) {
		t.Fatalf("a second host: %v", err)
	}
	_, err := a.Host().CreateDisk(t.Context(), host.DiskSpec{Name: "d", Bytes: 1 << 20})
	ok(t, err)
	d := openExport(t, a, "d")
	ok(t, d.WriteAt(t.Context(), make([]byte, 100), 0, true))

	f.setCut(true)
	s := a.now.Load()
	<-s.client.Broken()
	// Its lease ends, and another host comes and goes.
	ok(t, f.RegistryRevoke(t.Context(), &datanode.RegistryRevokeRequest{Lease: s.guard.lease}))
	other, err := takeGuard(t.Context(), f, holder{"h2", "i2", "p2"}, false, a.log)
	ok(t, err)
	other.release()
	f.setCut(false)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	if err := a.Wait(ctx); !errors.Is(err, ErrLost) {
		t.Errorf("a host that was away while another served: %v", err)
	}
	if err := d.WriteAt(ctx, make([]byte, 100), 0, true); !errors.Is(err, ErrLost) {
		t.Errorf("its clients' write: %v", err)
	}

	// A process that was killed leaves its lease: the next one in its directory, and
	// nobody else, has it at once.
	me := holder{"h3", "i3", "p3"}
	dead, err := takeGuard(t.Context(), f, me, false, a.log)
	ok(t, err)
	dead.close()
	if _, err := takeGuard(t.Context(), f, holder{"h2", "i2", "p2"}, false, a.log); !errors.Is(err, ErrServed) {
		t.Errorf("another host than the one that was killed: %v", err)
	}
	me.Process = "p4"
	next, err := takeGuard(t.Context(), f, me, false, a.log)
	ok(t, err)
	ok(t, next.mayReply())
	next.release()
	if err := next.mayReply(); !errors.Is(err, datanode.ErrLeaseLost) {
		t.Errorf("a reply without a lease: %v", err)
	}
}
