package host_test

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/keyring"
	nodes "plinth/internal/rack"
	"plinth/internal/rack/racktest"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

// shelves are three data nodes with four spindles each, and hosts that use them.
type shelves struct {
	*rack
	*racktest.Shelves
}

func openShelves(t *testing.T) *shelves { return openShelvesOf(t, false) }

// openShelvesOf is openShelves, with told of nodes that know their pool, which others may
// come to.
func openShelvesOf(t *testing.T, told bool) *shelves { return openShelvesWith(t, told, 3, 4) }

// openShelvesWith is openShelvesOf of so many nodes with so many spindles each.
func openShelvesWith(t *testing.T, told bool, count, spindles int) *shelves {
	r := &rack{T: t, key: filepath.Join(t.TempDir(), "root.key")}
	root, err := keyring.CreateRootFile(r.key)
	r.ok(err)
	id := keyring.NewPoolID()
	s := &shelves{r, racktest.Open(t, id, stripe.Geometry{K: 4, M: 2}, count, spindles)}
	header, _ := keyring.CreatePool(root, id)
	layouts := s.Layouts
	var rows []datanode.Put
	if told {
		rows = s.Told()
	}
	r.ok(host.FormatLayouts(t.Context(), s.Switches[0], header, layouts, rows...))
	return s
}

// on opens a host with a rack of its own, which does nothing by itself.
func (s *shelves) on(name string) *member { return s.onEach(name, time.Hour, time.Hour) }

// onEach opens one that destages that often, and calls a disk idle after that.
func (s *shelves) onEach(name string, destage, idle time.Duration) *member {
	s.rack.Helper()
	return s.onWith(name, host.Options{DestageInterval: destage, IdleTime: idle})
}

// onWith opens one with options of the test's.
func (s *shelves) onWith(name string, o host.Options) *member {
	s.rack.Helper()
	root, err := keyring.LoadRootFile(s.key)
	s.ok(err)
	r := s.Rack(nodes.Options{})
	m := &member{r: s.rack, name: name, cut: &cut{Node: r}}
	o.Name, o.FS, o.Dir, o.CacheBytes, o.RAMCacheBytes = name, crashfs.New(), "host", 1<<20, host.RAMCacheBytesMin
	o.LeaseTTL, o.Logger = longTTL, slog.New(slog.DiscardHandler)
	m.Host, err = host.Open(s.rack.Context(), several{m.cut, r}, root, o)
	s.ok(err)
	s.rack.Cleanup(func() { _ = m.Close() })
	return m
}

// several is a rack that may be cut off.
type several struct {
	*cut
	host.Members
}

func (m *member) writeAt(name string, content []byte, off int64) {
	m.r.Helper()
	m.r.ok(m.device(name, func(d nbd.Device) error { return d.WriteAt(m.r.Context(), content, off, true) }))
}

// settled has a host destage, pass and reclaim, and wants verify to find nothing.
func (m *member) settled() {
	m.r.Helper()
	for range 2 {
		m.r.ok(m.Quiesce(m.r.Context()))
		m.r.ok(m.Sweep(m.r.Context()))
		_, err := m.Reclaim(m.r.Context(), host.ReclaimOptions{Full: true})
		m.r.ok(err)
	}
	report, err := m.Verify(m.r.Context(), host.VerifyOptions{Strict: true})
	m.r.ok(err)
	if len(report.Findings) > 0 || report.Elsewhere > 0 || report.Segments == 0 {
		m.r.Fatalf("host %s: verify: %+v", m.name, report)
	}
}

// inSync waits until every disk's log is at so many nodes.
func (s *shelves) inSync(want int) {
	s.rack.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		rows, err := s.Switches[0].RegistryList(s.rack.Context(), &datanode.RegistryListRequest{Prefix: "logset/"})
		s.ok(err)
		all := len(rows.Entries) > 0
		for _, e := range rows.Entries {
			row, err := nodes.ParseRow(e.Value)
			s.ok(err)
			all = all && len(row) == want
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			s.rack.Fatalf("not every log is at %d nodes: %v", want, rows.Entries)
		}
	}
}

// begin opens a host that has a disk with a snapshot s, and returns the content of
// both.
func (s *shelves) begin() (*member, []byte) {
	s.rack.Helper()
	a, content := s.on("a"), noise(1, 8<<20)
	a.create("one", content)
	s.ok(a.Quiesce(s.rack.Context()))
	_, err := a.CreateSnapshots(s.rack.Context(), host.SnapshotSpec{Disks: []string{"one"}, Name: "s"})
	s.ok(err)
	return a, content
}

func TestSimHostOverThreeNodes(t *testing.T) {
	s := openShelves(t)
	a, content := s.begin()
	old := bytes.Clone(content)
	copy(content[1<<20:], noise(2, 1<<20))
	a.writeAt("one", content[1<<20:2<<20], 1<<20)
	a.settled()
	a.has("one@s", old)
	// What all chunks of another disk are the same as takes no space: look-ups hit
	// at all nodes.
	before := a.stored()
	a.create("two", content)
	a.settled()
	if after := a.stored(); after > before+before/8 {
		t.Errorf("%d bytes are stored with a disk that is like another, %d before", after, before)
	}
	s.ok(a.RemoveDisk(t.Context(), "two"))
	a.settled()
	s.inSync(3)
}

func TestSimHostWhileANodeIsAway(t *testing.T) {
	s := openShelves(t)
	a, content := s.begin()
	old := bytes.Clone(content)
	change := func(m *member, seed byte, off int64) {
		t.Helper()
		copy(content[off:], noise(seed, 1<<20))
		m.writeAt("one", content[off:off+1<<20], off)
	}
	change(a, 2, 1<<20)
	s.inSync(3)

	s.Away(2)
	a.has("one", content)
	change(a, 3, 2<<20)
	s.ok(a.Quiesce(t.Context())) // into segments without the node
	change(a, 4, 3<<20)          // in the log alone
	a.has("one", content)
	a.has("one@s", old)
	s.inSync(2)

	// The host is cut off, and another one takes over what it acknowledged.
	s.endSessionOf("a")
	b := s.on("b")
	b.has("one", content)
	b.has("one@s", old)
	change(b, 5, 4<<20)
	if err := a.write("one", old); err == nil {
		t.Error("the host that lost the disk writes")
	}
	_ = a.Close()
	b.has("one", content)
	s.ok(b.Quiesce(t.Context()))
	change(b, 6, 5<<20)
	b.has("one", content)

	s.Back(2)
	change(b, 7, 6<<20)
	s.inSync(3)
	b.settled()
	b.has("one", content)
	b.has("one@s", old)
	s.Away(2)
	b.has("one", content)
	s.Stop(2)
	s.Start(2)
	s.ok(b.Close())
	b = s.on("b")
	b.has("one", content)
	s.inSync(3)
	b.settled()
}

// poor counts the segments in spare layouts of which something is needed, as far as nodes
// answer.
func (s *shelves) poor() (chunks, objects int) {
	s.rack.Helper()
	for _, node := range s.Switches {
		reply, err := node.Usage(s.rack.Context(), &datanode.UsageRequest{})
		if err != nil {
			continue
		}
		for _, u := range reply.Segments {
			switch {
			case u.LiveSlots == 0 || s.Layouts.Kind(u.Segment.Layout()) == stripe.Usual:
			case u.Kind == datanode.KindObject:
				objects++
			default:
				chunks++
			}
		}
	}
	return chunks, objects
}

func (m *member) stored() (bytes int64) {
	m.r.Helper()
	st, err := m.cut.Status(m.r.Context())
	m.r.ok(err)
	for _, sp := range st.Spindles {
		bytes += sp.AllocatedBytes
	}
	return bytes
}

func (s *shelves) endSessionOf(name string) {
	s.rack.Helper()
	row, err := s.Switches[0].RegistryGet(s.rack.Context(), &datanode.RegistryGetRequest{Key: "host/" + name})
	s.ok(err)
	s.ok(s.Switches[0].RegistryRevoke(s.rack.Context(), &datanode.RegistryRevokeRequest{Lease: row.Lease}))
}

// What was written while a node was away, and the map's tables, are moved when it is back,
// so that another one may go.
func TestSimWhatLiesPoorlyIsMoved(t *testing.T) {
	s := openShelves(t)
	a, content := s.begin()
	old := bytes.Clone(content)
	for _, away := range []int{2, 1} {
		s.Away(away)
		for i := range int64(4) {
			copy(content[i<<20:], noise(byte(10*away)+byte(i), 1<<20))
			a.writeAt("one", content[i<<20:(i+1)<<20], i<<20)
		}
		s.ok(a.Quiesce(t.Context())) // with a checkpoint
		a.has("one", content)
		s.Back(away)
		s.inSync(3)
		if chunks, objects := s.poor(); chunks == 0 || objects == 0 {
			t.Errorf("%d and %d segments lie poorly: the test shows nothing", chunks, objects)
		}
		a.settled()
		a.settled()
		if chunks, objects := s.poor(); chunks != 0 || objects != 0 {
			t.Errorf("%d segments of chunks and %d of objects lie poorly", chunks, objects)
		}
		s.ok(a.Close())
		for n := 1; n < 3; n++ { // a new host knows only what lies on the two others
			s.Away(n)
			b := s.on("b")
			b.has("one", content)
			b.has("one@s", old)
			s.ok(b.Close())
			s.Back(n)
		}
		a = s.on("a")
		s.inSync(3)
	}
	a.settled()
	a.has("one", content)
}

// What was written while a node was away, checkpoints too, lies well soon after it is back,
// although the disk is written to all the time.
func TestSimSpareIsEmptiedUnderLoad(t *testing.T) {
	s := openShelves(t)
	a := s.onEach("a", 20*time.Millisecond, 200*time.Millisecond)
	content := noise(1, 4<<20)
	a.create("one", content)
	s.Away(1)
	copy(content[1<<20:], noise(2, 1<<20))
	a.writeAt("one", content[1<<20:2<<20], 1<<20)
	s.ok(a.Quiesce(t.Context())) // with a checkpoint in a spare layout
	if chunks, objects := s.poor(); chunks == 0 || objects == 0 {
		t.Fatalf("%d and %d segments lie poorly: the test shows nothing", chunks, objects)
	}
	s.Back(1)
	deadline := time.Now().Add(time.Minute)
	for block := int64(0); ; block++ {
		at := block % 256 * 4096
		copy(content[at:], noise(byte(block), 4096))
		a.writeAt("one", content[at:at+4096], at)
		st, err := a.Status(t.Context())
		s.ok(err)
		chunks, objects := s.poor()
		if st.Spare != nil && st.Spare.Segments == 0 && chunks+objects == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute %d segments of chunks and %d of objects lie poorly, and the host says %+v", chunks, objects, st.Spare)
		}
		time.Sleep(5 * time.Millisecond)
	}
	a.has("one", content)
	a.settled()
}

// TestSimHostClosesWhileNodesAreAway ends a host of which a read waits for nodes that do not
// answer: neither waits for them.
func TestSimHostClosesWhileNodesAreAway(t *testing.T) {
	s := openShelves(t)
	a, content := s.begin()
	s.ok(a.Close())
	b := s.on("b") // whose memory is empty
	s.Away(1)
	s.Away(2)
	read := make(chan error, 1)
	go func() {
		got := make([]byte, len(content))
		read <- b.device("one", func(d nbd.Device) error { return d.ReadAt(t.Context(), got, 0) })
	}()
	select {
	case err := <-read:
		t.Fatalf("a read has one node of three: %v", err)
	case <-time.After(time.Second):
	}
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }() // it may not give up its lease
	deadline := time.After(time.Minute)
	select {
	case err := <-read:
		if err == nil {
			t.Error("a read has one node of three")
		}
	case <-deadline:
		t.Fatal("a host is closed, and its read waits on")
	}
	select {
	case <-closed:
	case <-deadline:
		t.Fatal("a host is closed, and waits for nodes that are away")
	}
}
