package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/keyring"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

// rack is a data node in memory and the hosts of a test on it.
type rack struct {
	*testing.T
	node *shelf.Shelf
	key  string
}

// endSession ends a host's lease at the registry.
func (r *rack) endSession(host string) {
	r.Helper()
	row, err := r.node.RegistryGet(r.Context(), &datanode.RegistryGetRequest{Key: "host/" + host})
	r.ok(err)
	r.ok(r.node.RegistryRevoke(r.Context(), &datanode.RegistryRevokeRequest{Lease: row.Lease}))
}

func (r *rack) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func openRack(t *testing.T) *rack {
	r := &rack{T: t, key: filepath.Join(t.TempDir(), "root.key")}
	root, err := keyring.CreateRootFile(r.key)
	r.ok(err)
	pool, fs := keyring.NewPoolID(), crashfs.New()
	r.ok(fs.MkdirAll("pool", 0o700))
	o := shelf.Options{
		PoolID: pool, FS: fs, Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 64 << 20, Width: 3, IndexCacheBytes: 1 << 20,
		Logger: slog.New(slog.DiscardHandler),
	}
	r.ok(shelf.Create("pool", o))
	r.node, err = shelf.Open(t.Context(), "pool", o)
	r.ok(err)
	t.Cleanup(func() { r.ok(r.node.Close()) })
	header, _ := keyring.CreatePool(root, pool)
	r.ok(host.Format(t.Context(), r.node, header, stripe.Geometry{K: 2, M: 1}, 4))
	return r
}

// cut is a node that a host may be cut off from: in its registry, where it keeps
// its lease alive.
type cut struct {
	datanode.Node
	off atomic.Bool
}

func (c *cut) err() error {
	if c.off.Load() {
		return datanode.Errorf(datanode.ErrUnreachable, "cut off")
	}
	return nil
}

func (c *cut) RegistryKeepAlive(ctx context.Context, r *datanode.RegistryKeepAliveRequest) error {
	if err := c.err(); err != nil {
		return err
	}
	return c.Node.RegistryKeepAlive(ctx, r)
}

func (c *cut) RegistryGrant(ctx context.Context, r *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	if err := c.err(); err != nil {
		return nil, err
	}
	return c.Node.RegistryGrant(ctx, r)
}

func (c *cut) RegistryRevoke(ctx context.Context, r *datanode.RegistryRevokeRequest) error {
	if err := c.err(); err != nil {
		return err
	}
	return c.Node.RegistryRevoke(ctx, r)
}

// member is a host of a rack.
type member struct {
	*host.Host
	r    *rack
	name string
	cut  *cut
}

func (r *rack) host(name string, ttl time.Duration) *member {
	r.Helper()
	return r.open(name, host.Options{LeaseTTL: ttl})
}

func (r *rack) open(name string, o host.Options) *member {
	r.Helper()
	return r.openOn(r.node, name, o)
}

// openOn opens a host that reaches the data node by way of another one.
func (r *rack) openOn(node datanode.Node, name string, o host.Options) *member {
	r.Helper()
	root, err := keyring.LoadRootFile(r.key)
	r.ok(err)
	m := &member{r: r, name: name, cut: &cut{Node: node}}
	o.Name, o.FS, o.Dir, o.CacheBytes, o.RAMCacheBytes = name, crashfs.New(), "host", 1<<20, host.RAMCacheBytesMin
	o.DestageInterval, o.IdleTime, o.Logger = time.Hour, time.Hour, slog.New(slog.DiscardHandler)
	m.Host, err = host.Open(r.Context(), m.cut, root, o)
	r.ok(err)
	r.node.SetLayoutVersion(m.LayoutVersion())
	r.Cleanup(func() { _ = m.Close() })
	return m
}

func (m *member) device(name string, f func(nbd.Device) error) error {
	e, release, err := host.Exports{Host: m.Host}.Open(m.r.Context(), name)
	if err != nil {
		return err
	}
	defer release()
	return f(e.Device)
}

func (m *member) write(name string, content []byte) error {
	return m.device(name, func(d nbd.Device) error { return d.WriteAt(m.r.Context(), content, 0, true) })
}

func (m *member) create(name string, content []byte) {
	m.r.Helper()
	_, err := m.CreateDisk(m.r.Context(), host.DiskSpec{Name: name, Bytes: int64(len(content))})
	m.r.ok(err)
	m.r.ok(m.write(name, content))
}

func (m *member) has(name string, content []byte) {
	m.r.Helper()
	got := make([]byte, len(content))
	m.r.ok(m.device(name, func(d nbd.Device) error { return d.ReadAt(m.r.Context(), got, 0) }))
	if !bytes.Equal(got, content) {
		m.r.Fatalf("host %s: disk %s has another content", m.name, name)
	}
}

// sees waits until the host says that of a disk: "ok", or who has it.
func (m *member) sees(name, want string) {
	m.r.Helper()
	var now string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		info, err := m.Disk(name)
		var elsewhere *host.ElsewhereError
		switch derr := m.device(name, func(nbd.Device) error { return nil }); {
		case err != nil:
			now = err.Error()
		case errors.As(derr, &elsewhere):
			now = elsewhere.Host
		case derr != nil:
			now = derr.Error()
		default:
			now = info.State
		}
		if now == want {
			return
		}
	}
	m.r.Fatalf("host %s says of disk %s: %q, want %q", m.name, name, now, want)
}

const longTTL = 5 * time.Minute // no stall of a test's machine ends it

// TestTwoHosts has two hosts on one data node: disks of each are known to both and
// served by one, a move is a hand-over, and what both have is passed over, reclaimed by the
// one that is the warden, and verified.
func TestTwoHosts(t *testing.T) {
	r := openRack(t)
	a, b := r.host("a", longTTL), r.host("b", longTTL)
	one, two := noise(1, 1<<20), noise(2, 1<<20)
	a.create("one", one)
	b.create("two", two)
	a.sees("two", "b")
	b.sees("one", "a")
	for _, err := range []error{
		b.write("one", two), b.RemoveDisk(t.Context(), "one"),
		func() error { _, err := b.RenameDisk(t.Context(), "one", "uno"); return err }(),
		func() error { _, err := b.ResizeDisk(t.Context(), "one", 2<<20); return err }(),
		func() error {
			_, err := b.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"one"}, Name: "s"})
			return err
		}(),
	} {
		if !errors.Is(err, host.ErrElsewhere) {
			t.Errorf("a change of a disk that another host has: %v", err)
		}
	}
	a.has("one", one)

	// A hand-over, there and back, by either host.
	_, err := a.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"one"}, Name: "old"})
	r.ok(err)
	r.ok(a.write("one", two))
	r.ok(a.MoveDisk(t.Context(), "one", "b"))
	b.sees("one", "ok")
	b.has("one", two)
	b.has("one@old", one)
	a.sees("one", "b")
	if _, err := a.RenameDisk(t.Context(), "one", "uno"); !errors.Is(err, host.ErrElsewhere) {
		t.Errorf("a change of a disk that was given away: %v", err)
	}
	_, err = b.RenameDisk(t.Context(), "one", "uno")
	r.ok(err)
	a.sees("uno", "b")
	r.ok(a.MoveDisk(t.Context(), "uno", "a"))
	a.sees("uno", "ok")
	a.has("uno", two)

	// A disk with clients stays.
	r.ok(a.device("uno", func(d nbd.Device) error {
		if err := a.MoveDisk(t.Context(), "uno", "b"); !errors.Is(err, host.ErrInUse) {
			return fmt.Errorf("a move under a client: %v", err)
		}
		return d.WriteAt(t.Context(), one[:4096], 0, true)
	}))
	if err := a.MoveDisk(t.Context(), "uno", "c"); !errors.Is(err, host.ErrInvalid) {
		t.Errorf("a move to nobody: %v", err)
	}
	copy(two, one[:4096])
	a.has("uno", two)
	r.quiet(a, b)
}

// TestReclaimWithDisksElsewhere empties a segment of which a disk of another host
// holds a slot: that host follows, and the space comes back.
func TestReclaimWithDisksElsewhere(t *testing.T) {
	r := openRack(t)
	a, b := r.host("a", longTTL), r.host("b", longTTL)
	content := noise(1, 4<<20)
	a.create("one", content)
	r.ok(a.Quiesce(t.Context()))
	r.ok(a.Sweep(t.Context())) // and is the warden
	b.create("two", content[:64<<10])
	r.ok(b.Quiesce(t.Context()))
	r.ok(b.Sweep(t.Context()))
	a.sees("two", "b")
	stored := func() (bytes int64) {
		st, err := r.node.Status(t.Context())
		r.ok(err)
		for _, sp := range st.Spindles {
			bytes += sp.AllocatedBytes
		}
		return bytes
	}
	before := stored()
	r.ok(a.device("one", func(d nbd.Device) error { return d.Trim(t.Context(), 1<<20, 3<<20, true) }))
	r.ok(a.Quiesce(t.Context()))
	report, err := a.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
	r.ok(err)
	if report.Condemned == 0 {
		t.Fatalf("no segment was emptied: %+v", report)
	}
	r.ok(b.Sweep(t.Context())) // in the background it asks every few seconds
	_, err = a.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
	r.ok(err)
	if after := stored(); after > before/2 {
		t.Errorf("%d bytes are stored after three quarters were trimmed, %d before", after, before)
	}
	b.has("two", content[:64<<10])
	a.has("one", append(content[:1<<20:1<<20], make([]byte, 3<<20)...))
	r.quiet(a, b)
}

// quiet has hosts destage, pass and reclaim, and sees that verify finds nothing,
// with all disks at one of them too.
func (r *rack) quiet(hosts ...*member) {
	r.Helper()
	for range 2 {
		for _, h := range hosts {
			r.ok(h.Quiesce(r.Context()))
			r.ok(h.Sweep(r.Context()))
			_, err := h.Reclaim(r.Context(), host.ReclaimOptions{Full: true})
			r.ok(err)
		}
	}
	for n, h := range hosts {
		report, err := h.Verify(r.Context(), host.VerifyOptions{})
		r.ok(err)
		if len(report.Findings) > 0 {
			r.Fatalf("host %s: verify: %+v", h.name, report.Findings)
		}
		if n == 0 && len(hosts) > 1 && report.Elsewhere == 0 {
			r.Error("no disk is elsewhere")
		}
	}
	for _, h := range hosts[1:] {
		for _, d := range h.Disks() {
			if d.State == "ok" {
				r.ok(h.MoveDisk(r.Context(), d.Name, hosts[0].name))
			}
		}
	}
	for range 2 {
		for _, h := range hosts { // one of them has the disks, perhaps another one reclaims
			r.ok(h.Quiesce(r.Context()))
			_, err := h.Reclaim(r.Context(), host.ReclaimOptions{Full: true})
			r.ok(err)
		}
	}
	report, err := hosts[0].Verify(r.Context(), host.VerifyOptions{Strict: true})
	r.ok(err)
	if len(report.Findings) > 0 || report.Elsewhere > 0 {
		r.Fatalf("verify of all disks at one host: %+v", report)
	}
}

// TestTakeover cuts a host off for longer than its lease: another one waits for the
// end of that, and takes its disk; the first one replies no more, and learns who has
// the disk when it is back.
func TestTakeover(t *testing.T) {
	r := openRack(t)
	one, two := noise(1, 256<<10), noise(2, 256<<10)
	first := r.host("a", longTTL)
	first.create("one", one)
	r.ok(first.Close())
	a := r.host("a", 3*datanode.LeaseTTLMin)
	var export nbd.Export
	for deadline := time.Now().Add(2 * time.Minute); ; { // a machine that stalls may lose so short a lease
		e, release, err := host.Exports{Host: a.Host}.Open(t.Context(), "one")
		if err == nil {
			defer release()
			export = e
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		a.sees("one", "ok")
	}
	a.cut.off.Store(true)
	b := r.host("b", longTTL)
	r.ok(b.MoveDisk(t.Context(), "one", "b")) // which waits for the end of a's lease
	if err := export.Device.ReadAt(t.Context(), make([]byte, 4096), 0); err == nil {
		t.Error("a host whose lease has ended answers a read")
	}
	if err := export.Device.WriteAt(t.Context(), two[:4096], 0, false); err == nil {
		t.Error("a host whose lease has ended acknowledges a write")
	}
	b.has("one", one)
	r.ok(b.write("one", two))
	a.cut.off.Store(false)
	a.sees("one", "b")
	b.has("one", two)
	r.ok(a.Close())
	r.quiet(b)
}

// TestSoleWaits opens a host with the data node when another one that used that over
// a wire may still reply: it has the disks when that one's lease has ended.
func TestSoleWaits(t *testing.T) {
	r := openRack(t)
	one := noise(1, 256<<10)
	a := r.host("a", longTTL)
	a.create("one", one)
	a.cut.off.Store(true)
	r.ok(a.Close()) // its lease stays
	s := r.open("local", host.Options{Sole: true})
	s.sees("one", "a")
	r.endSession("a") // its time is over
	s.sees("one", "ok")
	s.has("one", one)
	r.quiet(s)
}

// TestZombie has a host whose lease was ended at the registry, and that counts on
// it still: its writes are refused by the log.
func TestZombie(t *testing.T) {
	r := openRack(t)
	a, b := r.host("a", longTTL), r.host("b", longTTL)
	one, two := noise(1, 256<<10), noise(2, 256<<10)
	a.create("one", one)
	a.cut.off.Store(true)
	err := a.device("one", func(d nbd.Device) error {
		r.endSession("a")
		r.ok(b.MoveDisk(t.Context(), "one", "b"))
		b.has("one", one)
		if err := d.WriteAt(t.Context(), two, 0, false); !errors.Is(err, datanode.ErrFenced) {
			return fmt.Errorf("a write of a host that was taken over from: %v", err)
		}
		return nil
	})
	r.ok(err)
	b.has("one", one)
	r.ok(b.write("one", two))
	r.ok(a.Close()) // its session cannot be given up
	b.has("one", two)
	r.quiet(b)
}

// TestWardenFollows has the host that reclaims go: another one becomes the warden,
// adopts its disks and gives back what was being removed.
func TestWardenFollows(t *testing.T) {
	r := openRack(t)
	a, b := r.host("a", longTTL), r.host("b", longTTL)
	one, two := noise(1, 1<<20), noise(2, 1<<20)
	a.create("one", one)
	a.create("gone", two)
	r.ok(a.Sweep(t.Context()))
	for _, err := range []error{a.Quiesce(t.Context()), a.RemoveDisk(t.Context(), "gone"), a.Close()} {
		r.ok(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		r.ok(b.Sweep(t.Context())) // nobody asks for it
		if info, err := b.Disk("one"); err == nil && info.State == "ok" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody has taken the disk after two minutes")
		}
	}
	b.has("one", one)
}

// TestFormerWarden has a host go on as the warden that another one has followed: it
// gets no epoch, and the other one's mover goes on.
func TestFormerWarden(t *testing.T) {
	r := openRack(t)
	a, b := r.host("a", longTTL), r.host("b", longTTL)
	a.create("one", noise(1, 4<<20))
	b.create("two", noise(2, 8<<20))
	trim := func(m *member, disk string, offset int64) {
		t.Helper()
		r.ok(m.Quiesce(t.Context()))
		r.ok(m.device(disk, func(d nbd.Device) error { return d.Trim(t.Context(), offset, 1536<<10, true) }))
		r.ok(m.Quiesce(t.Context()))
	}
	condemns := func(m *member) {
		t.Helper()
		report, err := m.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
		r.ok(err)
		if report.Condemned == 0 {
			t.Fatalf("host %s condemns nothing: %+v", m.name, report)
		}
	}
	trim(a, "one", 0)
	condemns(a)
	a.cut.off.Store(true)
	r.endSession("a")
	trim(b, "two", 0)
	condemns(b) // and is the warden
	trim(b, "two", 2<<20)
	r.ok(b.Sweep(t.Context())) // the data node knows what is dead
	for _, want := range []error{datanode.ErrFenced, datanode.ErrConflict} {
		if report, err := a.Reclaim(t.Context(), host.ReclaimOptions{Full: true}); !errors.Is(err, want) {
			t.Errorf("a former warden condemns: %+v, %v; want %v", report, err, want)
		}
	}
	condemns(b)
	r.ok(a.Close())
}
