package host_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/nbd"
)

func (s *site) clone(disk, snapshot, to string) {
	s.Helper()
	_, err := s.Host.Clone(s.Context(), disk, snapshot, to)
	s.ok(err)
}

func (s *site) info(disk string) *host.DiskInfo {
	s.Helper()
	info, err := s.Host.Disk(disk)
	s.ok(err)
	return info
}

func (s *site) sweep() {
	s.Helper()
	s.ok(s.Host.Sweep(s.Context()))
}

// TestClone writes to a clone and to its parent, before and after it is
// independent, and through restarts.
func TestClone(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one, two := noise(1, 1<<20), noise(2, 1<<20)
	s.write("vm", one)
	s.snap("vm", "mon")
	s.put("vm", 0, two)
	s.clone("vm", "mon", "new")
	if info := s.info("new"); info.CloneOf != s.info("vm").ID || info.Bytes != 1<<20 {
		t.Errorf("a clone: %+v", info)
	}
	part := noise(3, 5000)
	want := slices.Concat(one[:100], part, one[5100:])
	check := func() {
		t.Helper()
		s.has("vm@mon", one)
		s.has("vm", two)
		s.has("new", want)
	}
	s.has("new", one)
	s.put("new", 100, part)
	check()
	s.restart()
	check()
	s.verified()
	s.ok(s.Host.Quiesce(t.Context()))
	check()
	s.restart()
	check()
	s.sweep()
	check()
	if info := s.info("new"); info.CloneOf != 0 {
		t.Errorf("a clone that has passed: %+v", info)
	}
	s.sweep()
	check()
	s.verified()
	s.restart()
	check()
	s.verified()
}

// TestSimCloneOutlives removes the parent and its snapshots of clones, and of clones
// of these, at once or later, and with a restart or a lost index between.
func TestSimCloneOutlives(t *testing.T) {
	for n, between := range []func(*site){
		func(*site) {},
		(*site).restart,
		(*site).sweep,
		(*site).loseIndex,
		func(s *site) { s.sweep(); s.restart() },
		func(s *site) { s.ok(s.Host.Quiesce(s.Context())) },
	} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := openSite(t, siteOptions(t))
			one, part := noise(1, 1<<20), noise(2, 64<<10)
			s.write("a", one)
			s.snap("a", "s")
			s.put("a", 0, noise(3, 1<<20))
			s.clone("a", "s", "b")
			s.put("b", 4096, part)
			want := slices.Concat(one[:4096], part, one[4096+len(part):])
			s.snap("b", "s")
			s.put("b", 4096, one[:64<<10])
			s.clone("b", "s", "c")
			between(s)
			s.has("c", want)
			s.ok(s.Host.RemoveDiskWithSnapshots(s.Context(), "b"))
			s.has("c", want)
			between(s)
			s.ok(s.Host.RemoveDiskWithSnapshots(s.Context(), "a"))
			s.has("c", want)
			between(s)
			s.verified()
			s.sweep()
			s.sweep()
			s.has("c", want)
			s.verified()
			_, index := s.stored()
			if most := int64(len(want)+len(part)) / 4096; index.Fingerprints > most {
				t.Errorf("%d fingerprints are left of %d", index.Fingerprints, most)
			}
			s.restart()
			s.has("c", want)
			s.ok(s.Host.RemoveDisk(s.Context(), "c"))
			s.sweep()
			if bytes, index := s.stored(); bytes != 0 || index.Segments != 0 {
				t.Errorf("%d bytes in %d segments are left", bytes, index.Segments)
			}
		})
	}
}

// TestRemovedBaseHasNoLog removes a disk on whose lists a clone relies: it does not
// pin the log, also when it was just marked as being removed.
func TestRemovedBaseHasNoLog(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one := noise(1, 256<<10)
	s.write("vm", one)
	s.snap("vm", "s")
	s.clone("vm", "s", "new")
	s.put("vm", 0, noise(2, 256<<10))
	bare := func() {
		t.Helper()
		st, err := s.Node.Status(t.Context())
		s.ok(err)
		for _, stream := range st.Streams {
			if stream.Disk == 1 && (stream.First != stream.End || stream.Pins) {
				t.Errorf("the removed disk has records: %+v", stream)
			}
		}
		s.has("new", one)
	}
	s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
	bare()
	s.restart()
	bare()
	s.loseIndex()
	bare()
	s.sweep()
	s.verified()
	s.has("new", one)
}

// TestRemovedBaseStaysFenced has who had a disk before it was removed change its
// lists late, while a clone relies on them.
func TestRemovedBaseStaysFenced(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", noise(1, 256<<10))
	s.snap("vm", "s")
	n := s.hinder()
	n.dropLists.Store(2) // the clone does not pass
	s.clone("vm", "s", "new")
	s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
	late := &datanode.SetListsRequest{Disk: 1, Epoch: 1, Seq: 1 << 40}
	if _, err := s.Node.SetLists(t.Context(), late); !errors.Is(err, datanode.ErrFenced) {
		t.Errorf("lists of a disk that was removed are set: %v", err)
	}
}

// TestRemovedBaseIsTriedAgain cannot give up what a removed disk holds when the last clone
// that relied on it is independent, or there was none: it does so later, as else its
// record would keep a rebuilt index from being complete for as long as the host lives.
func TestRemovedBaseIsTriedAgain(t *testing.T) {
	for _, cloned := range []bool{true, false} {
		s := openSite(t, siteOptions(t))
		s.write("vm", noise(1, 256<<10))
		s.snap("vm", "s")
		n := s.hinder()
		if cloned {
			s.clone("vm", "s", "new")
		}
		n.dropLists.Store(1) // vm's
		s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
		if err := s.Host.Sweep(t.Context()); !errors.Is(err, datanode.ErrGone) {
			t.Errorf("sweep when a removed disk cannot give anything up: %v", err)
		}
		n.dropLists.Store(0)
		_, err := s.Host.Reclaim(t.Context(), host.ReclaimOptions{})
		s.ok(err)
		rows, err := s.Node.RegistryList(t.Context(), &datanode.RegistryListRequest{Prefix: "disk/"})
		s.ok(err)
		if has := len(rows.Entries); has != len(s.Host.Disks()) {
			t.Errorf("%d disks are in the registry, %d there are", has, len(s.Host.Disks()))
		}
	}
}

// TestClonesShareAndGo has a clone removed before it passed.
func TestClonesShareAndGo(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one := noise(1, 1<<20)
	s.write("vm", one)
	s.snap("vm", "s")
	s.clone("vm", "s", "x")
	s.clone("vm", "s", "y")
	s.ok(s.Host.RemoveDisk(t.Context(), "x"))
	s.ok(s.Host.RemoveSnapshot(t.Context(), "vm", "s", false))
	s.put("vm", 0, make([]byte, 1<<20))
	s.ok(s.Host.Quiesce(t.Context()))
	s.has("y", one)
	s.sweep()
	s.sweep()
	s.has("y", one)
	s.verified()
	s.restart()
	s.has("y", one)
	s.has("vm", make([]byte, 1<<20))
}

// TestRollback rolls a disk back and forth, and reads its snapshots.
func TestRollback(t *testing.T) {
	s := openSite(t, siteOptions(t))
	ctx := t.Context()
	one, two, three := noise(1, 1<<20), noise(2, 2<<20), noise(3, 1<<20)
	s.write("vm", one)
	s.snap("vm", "one")
	_, err := s.Host.ResizeDisk(ctx, "vm", 2<<20)
	s.ok(err)
	s.put("vm", 0, two)
	s.snap("vm", "two")
	s.put("vm", 0, three)
	check := func(now []byte) {
		t.Helper()
		if got := s.info("vm").Bytes; got != int64(len(now)) {
			t.Errorf("the disk has %d bytes, want %d", got, len(now))
		}
		s.has("vm", now)
		s.has("vm@one", one)
		s.has("vm@two", two)
	}
	back := func(to string) {
		t.Helper()
		_, err := s.Host.Rollback(ctx, "vm", to)
		s.ok(err)
	}
	back("one")
	check(one)
	back("two")
	check(two)
	s.restart()
	check(two)
	s.put("vm", 0, three)
	back("one")
	s.restart()
	check(one)
	s.put("vm", 0, three)
	check(three)
	s.ok(s.Host.Quiesce(ctx))
	s.sweep()
	check(three)
	s.verified()
	s.ok(s.Host.RemoveSnapshot(ctx, "vm", "one", false))
	back("two")
	s.sweep()
	s.has("vm", two)
	s.verified()
}

// TestRollbackUnderReaders rolls a disk back and forth while snapshots are read,
// and a client comes: readers see nothing of it, and the client waits.
func TestRollbackUnderReaders(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one, two := noise(1, 256<<10), noise(2, 256<<10)
	s.write("vm", one)
	s.snap("vm", "one")
	s.put("vm", 0, two)
	s.snap("vm", "two")
	stop, done := make(chan struct{}), make(chan error, 3)
	read := func(name string, contents ...[]byte) error {
		for {
			select {
			case <-stop:
				return nil
			case <-time.After(time.Millisecond): // for rollbacks
			}
			got := make([]byte, len(one))
			err := s.device(name, func(d nbd.Device) error { return d.ReadAt(t.Context(), got, 0) })
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if !slices.ContainsFunc(contents, func(c []byte) bool { return bytes.Equal(got, c) }) {
				return fmt.Errorf("%s has another content", name)
			}
		}
	}
	go func() { done <- read("vm@one", one) }()
	go func() { done <- read("vm@two,since=one", two) }()
	go func() { done <- read("vm", one, two) }()
	rolled := 0
	for n := 0; n < 2000 && rolled < 10; n++ {
		_, err := s.Host.Rollback(t.Context(), "vm", []string{"one", "two"}[rolled%2])
		if err == nil {
			rolled++
		} else if !errors.Is(err, host.ErrInUse) {
			t.Fatal(err)
		}
	}
	close(stop)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if rolled == 0 {
		t.Error("the reader left no time to roll back")
	}
	s.sweep()
	s.has("vm@one", one)
	s.has("vm@two", two)
	s.verified()
}

// TestDiff compares what Diff and the dirty bitmap say with what was written.
func TestDiff(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := openSite(t, siteOptions(t))
	const chunks = 512
	now := noise(1, chunks*4096)
	s.write("vm", now)
	s.snap("vm", "a")
	old := bytes.Clone(now)
	for range 60 {
		at := rng.IntN(chunks) * 4096
		p := noise(byte(rng.Uint32()), 4096)
		if rng.IntN(3) == 0 {
			clear(p)
		}
		copy(now[at:], p)
		s.put("vm", int64(at), p)
	}
	s.snap("vm", "b")
	for _, limit := range []int64{0, 1, 7} {
		var got []byte
		at := int64(0)
		for off := int64(0); ; {
			r, err := s.Host.Diff(t.Context(), "vm", "a", "b", off, limit)
			s.ok(err)
			if limit > 0 && int64(len(r.Extents)) > limit {
				t.Fatalf("%d extents, limit %d", len(r.Extents), limit)
			}
			for _, x := range r.Extents {
				if x.Offset < at || x.Length <= 0 {
					t.Fatalf("extent %+v behind %d", x, at)
				}
				got = append(got, old[at:x.Offset]...)
				at = x.Offset + x.Length
				if x.Zero {
					got = append(got, make([]byte, x.Length)...)
				} else {
					got = append(got, now[x.Offset:at]...)
				}
			}
			if off = r.Next; off == 0 {
				break
			}
		}
		if got = append(got, old[at:]...); !bytes.Equal(got, now) {
			t.Errorf("limit %d: the differences do not make one of the other", limit)
		}
	}
	s.ok(s.device("vm@b,since=a", func(d nbd.Device) error {
		if d.(nbd.Changer).Bitmap() != "a" {
			return errors.New("no bitmap")
		}
		off := int64(0)
		return d.(nbd.Changer).Changes(t.Context(), 0, int64(len(now)), func(n int64, dirty bool) bool {
			for end := off + n; off < end; off += 4096 {
				if same := bytes.Equal(old[off:off+4096], now[off:off+4096]); same == dirty {
					t.Errorf("chunk at %d: dirty %v", off, dirty)
				}
			}
			return true
		})
	}))
	if err := s.device("vm@b", func(d nbd.Device) error { return d.WriteAt(t.Context(), now[:512], 0, false) }); !errors.Is(err, nbd.ErrReadOnly) {
		t.Errorf("write to a snapshot: %v", err)
	}
}

// TestRenameDisk renames a disk with a snapshot.
func TestRenameDisk(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one := noise(1, 64<<10)
	s.write("vm", one)
	s.snap("vm", "mon")
	info, err := s.Host.RenameDisk(t.Context(), "vm", "new")
	s.ok(err)
	if info.Name != "new" {
		t.Errorf("renamed: %+v", info)
	}
	s.has("new@mon", one)
	s.restart()
	s.has("new@mon", one)
	s.has("new", one)
	s.write("vm", noise(2, 64<<10))
	if n := len(s.Host.Disks()); n != 2 {
		t.Errorf("%d disks", n)
	}
	s.verified()
}
