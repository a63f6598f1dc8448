package shelf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// store writes a segment of one fragment per spindle, published if told so. Its
// slots are born held by disk 1.
func store(t testing.TB, s *Shelf, number uint64, publish bool) datanode.SegmentHeader {
	t.Helper()
	h := datanode.SegmentHeader{
		Segment: id.MakeSegment(0, number), Kind: datanode.KindChunks, K: 3, M: 1, DataBytes: 100,
		Births: []datanode.Birth{{Disk: 1, Epoch: 1, Slots: 2}},
	}
	r := &datanode.WriteFragmentsRequest{Header: h}
	for i := range 4 {
		data := bytes.Repeat([]byte{byte(number), byte(i)}, datanode.BlockBytes/2)
		r.Fragments = append(r.Fragments, datanode.Fragment{Spindle: id.Spindle(i), Index: uint8(i), Data: data})
	}
	reply, err := s.WriteFragments(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range reply.Errors {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !publish {
		return h
	}
	entry := datanode.SegmentEntry{Header: h, FragmentBytes: datanode.BlockBytes}
	for i := range 2 {
		location, _ := id.MakeLocation(i*32, 32)
		entry.Slots = append(entry.Slots, datanode.SlotEntry{
			Slot: id.Slot(i), Fingerprint: id.Fingerprint{byte(number), byte(i), 1}, Location: location, PlainBytes: 4096,
		})
	}
	if err := s.Publish(t.Context(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{entry}}); err != nil {
		t.Fatal(err)
	}
	return h
}

// owned lists the segments of disk 1.
func owned(t testing.TB, s *Shelf) []id.Segment {
	t.Helper()
	reply, err := s.ListSegments(t.Context(), &datanode.ListSegmentsRequest{Disk: 1, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Segments
}

func reclaim(t testing.TB, s *Shelf) []id.Segment {
	t.Helper()
	reply, err := s.Reclaim(t.Context(), &datanode.ReclaimRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Deleted
}

// fence makes disk 1 owned under epoch 1.
func fence(t testing.TB, s *Shelf) {
	t.Helper()
	if _, err := s.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestLostIndexIsRecovered(t *testing.T) {
	for _, lost := range []string{"", fingerprintsName, registryName} {
		opts := small(crashfs.New())
		s := fresh(t, "/data", opts)
		fence(t, s)
		h := store(t, s, 1, true)
		commit(t, s, "disks/1", "first")
		commit(t, s, "disks/1", "second")
		shut(t, s)
		if err := (place{opts.FS, "/data"}).remove(append([]string{indexName}, lost)...); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), "/data", opts)
		refused(t, "open without index/"+lost, err, ErrNeedsRecover, "plinth recover")
		s, err = Recover(t.Context(), "/data", opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := value(t, s, "disks/1"); got != "second" {
			t.Errorf("lost %q: the registry has %q", lost, got)
		}
		status, err := s.Status(t.Context())
		if err != nil || status.Index.Complete || status.Index.Segments != 1 {
			t.Errorf("lost %q: index %+v, %v", lost, status.Index, err)
		}
		if got := owned(t, s); len(got) != 1 || got[0] != h.Segment {
			t.Errorf("lost %q: disk 1 holds %v", lost, got)
		}
		release := &datanode.SetListsRequest{Disk: 1, Epoch: 1, Seq: 5, Lists: []datanode.List{{Segment: h.Segment}}}
		if _, err := s.SetLists(t.Context(), release); err != nil {
			t.Fatal(err)
		}
		if deleted := reclaim(t, s); len(deleted) != 0 {
			t.Errorf("lost %q: an incomplete index deleted %v", lost, deleted)
		}
		commit(t, s, "disks/2", "third")
		shut(t, s)
		s = open(t, "/data", opts) // recovered is recovered
		if got := value(t, s, "disks/2"); got != "third" {
			t.Errorf("lost %q: after another open %q", lost, got)
		}
		complete := &datanode.CompleteIndexRequest{Incarnation: status.Index.Incarnation}
		if err := s.CompleteIndex(t.Context(), complete); err != nil {
			t.Error(err)
		}
		if deleted := reclaim(t, s); len(deleted) != 1 {
			t.Errorf("lost %q: a complete index deleted %v", lost, deleted)
		}
		shut(t, s)
	}
}

// A damaged index is made anew by itself, also where that is interrupted: nothing that the
// registry or the spindles have is touched, and nothing is deleted before owners have spoken.
func TestCrashIndexIsMadeAnew(t *testing.T) {
	for what, damage := range map[string]func(*crashfs.FS, string, string) error{
		"tables are missing": func(fs *crashfs.FS, path, name string) error {
			if strings.HasSuffix(name, ".sst") {
				return fs.Remove(path)
			}
			return nil
		},
		"the marker of the manifest is missing": func(fs *crashfs.FS, path, name string) error {
			if strings.HasPrefix(name, "marker.manifest") {
				return fs.Remove(path)
			}
			return nil
		},
		"the manifest is of other bytes": func(fs *crashfs.FS, path, name string) error {
			if strings.HasPrefix(name, "MANIFEST") {
				f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte("these are others"), 3)
				return errors.Join(err, f.Close())
			}
			return nil
		},
		"tables are cut short": func(fs *crashfs.FS, path, name string) error {
			if strings.HasSuffix(name, ".sst") {
				f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
				return errors.Join(err, f.Close())
			}
			return nil
		},
		"all is missing": func(fs *crashfs.FS, path, _ string) error { return fs.RemoveAll(path) },
	} {
		t.Run(what, func(t *testing.T) {
			disk := crashfs.New()
			opts := small(disk)
			s := fresh(t, "/data", opts)
			fence(t, s)
			h := store(t, s, 1, true)
			commit(t, s, "disks/1", "first")
			shut(t, s)
			s = open(t, "/data", opts) // with a table
			complete(t, s, true)
			shut(t, s)
			dir := "/data/" + indexName + "/" + fingerprintsName
			names, err := disk.List(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := damage(disk, dir+"/"+name, name); err != nil {
					t.Fatal(err)
				}
			}
			interrupted := 0
			for budget := int64(0); ; budget += 600 {
				disk = disk.Kill()
				disk.Limit(budget)
				if s = openUntil(t, disk, opts); s != nil {
					break
				}
				interrupted++
			}
			disk.Limit(1 << 40)
			if interrupted < 10 {
				t.Errorf("it was interrupted %d times: the test shows little", interrupted)
			}
			if got := value(t, s, "disks/1"); got != "first" {
				t.Errorf("the registry has %q", got)
			}
			complete(t, s, false)
			if got := owned(t, s); len(got) != 1 || got[0] != h.Segment {
				t.Errorf("disk 1 holds %v", got)
			}
			release := &datanode.SetListsRequest{Disk: 1, Epoch: 1, Seq: 5, Lists: []datanode.List{{Segment: h.Segment}}}
			if _, err := s.SetLists(t.Context(), release); err != nil {
				t.Fatal(err)
			}
			if deleted := reclaim(t, s); len(deleted) != 0 {
				t.Errorf("an incomplete index deleted %v", deleted)
			}
			shut(t, s)
		})
	}
}

// openUntil opens a node, nil if its file system crashes before that ends.
func openUntil(t *testing.T, disk *crashfs.FS, opts Options) *Shelf {
	t.Helper()
	type result struct {
		s   *Shelf
		err error
	}
	ofPebble := func(path string) bool { return strings.HasPrefix(path, "/data/"+indexName) }
	fs, done := crashfs.Park(disk, ofPebble, ofPebble), make(chan result, 1)
	opts.FS = fs
	go func() {
		s, err := Open(context.WithoutCancel(t.Context()), "/data", opts)
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		fs.Opened()
		if r.err != nil && !disk.Crashed() {
			t.Fatal(r.err)
		}
		if r.err == nil && disk.Crashed() {
			_ = r.s.Close()
			return nil
		}
		return r.s
	case <-fs.Parked():
		return nil
	}
}

// complete tests whether the index says that it is, of one segment.
func complete(t testing.TB, s *Shelf, want bool) {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil || st.Index.Complete != want || st.Index.Segments != 1 {
		t.Errorf("index %+v, %v", st.Index, err)
	}
}

// The newest copy counts, whichever spindles are left.
func TestRegistryIsRestoredFromWhatIsLeft(t *testing.T) {
	opts := small(crashfs.New())
	p := place{opts.FS, "/data"}
	s := fresh(t, "/data", opts)
	for n := range 5 {
		commit(t, s, "a", fmt.Sprint(n))
	}
	shut(t, s)
	for _, names := range [][]string{{indexName}, {spindleName(0)}} {
		if err := p.remove(names...); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Recover(t.Context(), "/data", opts)
	if err != nil {
		t.Fatal(err)
	}
	if got := value(t, s, "a"); got != "4" {
		t.Errorf("the registry has %q", got)
	}
	shut(t, s)
	for _, names := range [][]string{{indexName}, {spindleName(1)}, {spindleName(2)}, {spindleName(3)}} {
		if err := p.remove(names...); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Recover(t.Context(), "/data", opts)
	refused(t, "recover without a copy", err, datanode.ErrNotFound, "bring back the spindles")
}

// Somebody puts an old index directory back: its registry must not win over the
// newer copies.
func TestOldIndexIsRefused(t *testing.T) {
	for _, fix := range []string{"recover", "recover and recover"} {
		opts := small(crashfs.New())
		p := place{opts.FS, "/data"}
		s := fresh(t, "/data", opts)
		commit(t, s, "a", "old")
		shut(t, s)
		if ok, err := vfs.Clone(opts.FS, opts.FS, p.path(indexName), "/saved"); !ok || err != nil {
			t.Fatal(ok, err)
		}
		s = open(t, "/data", opts)
		commit(t, s, "a", "new")
		shut(t, s)
		if err := p.remove(indexName); err != nil {
			t.Fatal(err)
		}
		if ok, err := vfs.Clone(opts.FS, opts.FS, "/saved", p.path(indexName)); !ok || err != nil {
			t.Fatal(ok, err)
		}
		for range 2 { // the first refusal must not have spoilt the copies
			_, err := Open(t.Context(), "/data", opts)
			refused(t, fix, err, ErrNeedsRecover, "plinth recover")
		}
		s, err := Recover(t.Context(), "/data", opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := value(t, s, "a"); got != "new" {
			t.Errorf("%s: the registry has %q", fix, got)
		}
		shut(t, s)
	}
}

func TestLostLogIsNotMadeAnew(t *testing.T) {
	opts := small(crashfs.New())
	s := fresh(t, "/data", opts)
	fence(t, s)
	shut(t, s)
	if err := (place{opts.FS, "/data"}).remove(logName); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), "/data", opts)
	refused(t, "open", err, ErrLogMissing, "/data/log")
	_, err = Recover(t.Context(), "/data", opts)
	refused(t, "recover", err, ErrLogMissing, "/data/log")
	opts.AcceptLostLog = true
	_, err = Open(t.Context(), "/data", opts)
	refused(t, "open that accepts", err, ErrLogMissing)
	if s, err = Recover(t.Context(), "/data", opts); err != nil {
		t.Fatal(err)
	}
	fence(t, s)
	shut(t, s)
}

// A writer dies between its fragments and their publication: the segment is
// known after the next open, held by its birth, and freed by its owner.
func TestOrphansAreAdopted(t *testing.T) {
	opts := small(crashfs.New())
	s := fresh(t, "/data", opts)
	fence(t, s)
	known := store(t, s, 1, true)
	orphan := store(t, s, 2, false)
	shut(t, s)
	s = open(t, "/data", opts)
	if got := owned(t, s); len(got) != 2 || got[0] != known.Segment || got[1] != orphan.Segment {
		t.Fatalf("disk 1 holds %v", got)
	}
	release := &datanode.SetListsRequest{Disk: 1, Epoch: 1, Seq: 5, Lists: []datanode.List{{Segment: orphan.Segment}}}
	if _, err := s.SetLists(t.Context(), release); err != nil {
		t.Fatal(err)
	}
	if deleted := reclaim(t, s); len(deleted) != 1 || deleted[0] != orphan.Segment {
		t.Errorf("deleted %v", deleted)
	}
	shut(t, s)
}
