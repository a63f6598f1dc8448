package blockmap

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// faultyOptions returns options whose file system fails writing files whose
// path has what in it, while the flag is set; and what counts calls of Failed.
func faultyOptions(t *testing.T, what string) (Options, *atomic.Bool, *atomic.Int32) {
	broken, failed := new(atomic.Bool), new(atomic.Int32)
	opts := testOptions(t, newStore())
	opts.Failed = func(err error) {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("failed with %v", err)
		}
		failed.Add(1)
	}
	opts.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, what) {
			return syscall.ENOSPC
		}
		return nil
	}))
	return opts, broken, failed
}

func TestAFailedManifestFailsTheMap(t *testing.T) {
	opts, broken, failed := faultyOptions(t, "MANIFEST")
	m := mustCreate(t, opts)
	mustApply(t, m, &Batch{Updates: updates(0, 100, 0)}, "")
	broken.Store(true)
	if _, err := m.Checkpoint(context.Background()); !errors.Is(err, ErrFailed) {
		t.Errorf("checkpoint: %v", err)
	}
	if err := m.Apply(&Batch{}, nil); !errors.Is(err, ErrFailed) {
		t.Errorf("apply: %v", err)
	}
	if err := m.LookupRange(0, make([]Entry, 1)); !errors.Is(err, ErrFailed) {
		t.Errorf("look up: %v", err)
	}
	<-m.told // a Close that comes before need not tell
	mustClose(t, m)
	if n := failed.Load(); n != 1 {
		t.Errorf("Failed was called %d times", n)
	}
}

// Checkpoints of a map that does not change flush nothing, which is no failure.
func TestIdleCheckpoints(t *testing.T) {
	m := mustCreate(t, testOptions(t, newStore()))
	mustApply(t, m, &Batch{Updates: updates(0, 100, 0)}, "")
	for range 2 * flushFailuresMax {
		if _, err := m.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, m)
}

func TestAFullDiskIsWaitedFor(t *testing.T) {
	opts, broken, failed := faultyOptions(t, ".sst")
	m := mustCreate(t, opts)
	mustApply(t, m, &Batch{Updates: updates(0, 100, 0)}, "x")
	broken.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Checkpoint(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("checkpoint on a full disk: %v", err)
	}
	if err := m.LookupRange(0, make([]Entry, 1)); err != nil {
		t.Error(err)
	}
	broken.Store(false)
	if c := mustCheckpoint(t, m); string(c.State) != "x" || failed.Load() != 0 {
		t.Errorf("checkpoint %q, %d failures", c.State, failed.Load())
	}
}

// TestABrokenDiskFailsTheMapAndFreesItsWriter: an Apply that waits for a flush
// that never comes returns.
func TestABrokenDiskFailsTheMapAndFreesItsWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts, broken, failed := faultyOptions(t, ".sst")
		m, err := Create(opts)
		if err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		for err == nil {
			err = m.Apply(&Batch{Updates: updates(0, 10_000, 0)}, nil)
		}
		if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("apply: %v", err)
		}
		<-m.told
		mustClose(t, m)
		if n := failed.Load(); n != 1 {
			t.Errorf("Failed was called %d times", n)
		}
	})
}

func TestCloseFreesAWaitingWriter(t *testing.T) {
	opts, broken, _ := faultyOptions(t, ".sst")
	m := mustCreate(t, opts)
	broken.Store(true)
	done := make(chan error)
	go func() {
		var err error
		for err == nil {
			err = m.Apply(&Batch{Updates: updates(0, 10_000, 0)}, nil)
		}
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	mustClose(t, m)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("apply: %v", err)
	}
}

// attached returns a map of n entries of which nothing is in memory.
func attached(t *testing.T, s *store, n int, opts Options) *Map {
	t.Helper()
	m := mustCreate(t, testOptions(t, s))
	mustApply(t, m, &Batch{Updates: updates(0, n, 0)}, "")
	return mustAttach(t, mustCheckpoint(t, m).Manifest, opts)
}

func TestUnreachableObjectsFailCallsOnly(t *testing.T) {
	s := newStore()
	m := attached(t, s, 10_000, testOptions(t, s))
	s.fail(0, 1)
	out := make([]Entry, 1)
	if err := m.LookupRange(9000, out); !errors.Is(err, errInjected) {
		t.Errorf("look up: %v", err)
	}
	mustApply(t, m, &Batch{Updates: updates(0, 1, 77)}, "")
	s.fail(0, 0)
	if err := m.LookupRange(9000, out); err != nil || out[0] != entryOf(9000) {
		t.Errorf("look up: %v, %v", out[0], err)
	}
}

func TestCorruptTablesFailTheMap(t *testing.T) {
	s := newStore()
	opts := testOptions(t, s)
	failed := make(chan error, 1)
	opts.Failed = func(err error) { failed <- err }
	m := attached(t, s, 10_000, opts)
	s.mu.Lock()
	for _, b := range s.objects {
		for i := range b[:len(b)-2048] {
			b[i] ^= 0x40
		}
	}
	s.mu.Unlock()
	if err := m.LookupRange(9000, make([]Entry, 1)); err == nil {
		t.Error("a corrupt block is read")
	}
	if err := <-failed; !errors.Is(err, ErrCorrupt) {
		t.Errorf("failed: %v", err)
	}
}

// stuck is a store whose reads hang until their context ends.
type stuck struct {
	*store
	on   atomic.Bool
	hung chan struct{}
}

func (s *stuck) ReadAt(ctx context.Context, o Object, p []byte, off int64) error {
	if !s.on.Load() {
		return s.store.ReadAt(ctx, o, p, off)
	}
	s.hung <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func TestCloseEndsReads(t *testing.T) {
	s := &stuck{store: newStore(), hung: make(chan struct{}, 8)}
	opts := testOptions(t, s.store)
	opts.Objects = s
	m := attached(t, s.store, 10_000, opts)
	snapshot, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s.on.Store(true)
	done := make(chan error)
	go func() { done <- m.LookupRange(9000, make([]Entry, 1)) }()
	<-s.hung
	go mustClose(t, m)
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("look up: %v", err)
	}
	if err := snapshot.Close(); err != nil {
		t.Error(err)
	}
}

func TestAttachEndsWithItsContext(t *testing.T) {
	s := &stuck{store: newStore(), hung: make(chan struct{}, 8)}
	m := mustCreate(t, testOptions(t, s.store))
	mustApply(t, m, &Batch{Updates: updates(0, 100, 0)}, "")
	c := mustCheckpoint(t, m)
	s.on.Store(true)
	opts := testOptions(t, s.store)
	opts.Objects = s
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-s.hung; cancel() }()
	if _, err := Attach(ctx, c.Manifest, opts); !errors.Is(err, context.Canceled) {
		t.Errorf("attach: %v", err)
	}
}

func TestInvalidUse(t *testing.T) {
	m := mustCreate(t, testOptions(t, newStore()))
	mustApply(t, m, &Batch{Gen: 5}, "")
	for name, b := range map[string]*Batch{
		"a lower generation":        {Gen: 4},
		"a trim of this generation": {Gen: 5, Trims: []Extent{{0, 1}}},
		"an empty trim":             {Gen: 6, Trims: []Extent{{1, 1}}},
		"a trim beyond the end":     {Gen: 6, Trims: []Extent{{1, LBAMax + 1}}},
		"an LBA beyond the end":     {Gen: 5, Updates: []Update{{LBA: LBAMax}}},
		"the last generation":       {Gen: genEnd},
	} {
		if err := m.Apply(b, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := m.Apply(&Batch{Gen: 5}, make([]byte, StateBytesMax+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a large state: %v", err)
	}
	if err := m.LookupRange(LBAMax-1, make([]Entry, 2)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a look-up beyond the end: %v", err)
	}
	if _, err := Create(Options{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no options: %v", err)
	}
	mustClose(t, m)
	if err := m.Apply(&Batch{Gen: 5}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// compactor is a database that always has a compaction to run.
type compactor struct{ scheduled atomic.Int32 }

func (c *compactor) GetAllowedWithoutPermission() int { return 1 }
func (c *compactor) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	return true, pebble.WaitingCompaction{}
}

func (c *compactor) Schedule(pebble.CompactionGrantHandle) bool {
	c.scheduled.Add(1)
	return true
}

func TestFailedCompactionsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, db := newScheduler(), &compactor{}
		s.Register(1, db)
		if ok, _ := s.TrySchedule(); !ok {
			t.Fatal("no grant")
		}
		start := time.Now()
		for range 12 {
			s.ended(errInjected)
			s.Done()
			if ok, _ := s.TrySchedule(); ok {
				t.Error("a grant during a pause")
			}
			n := db.scheduled.Load()
			for db.scheduled.Load() == n {
				time.Sleep(10 * time.Millisecond)
				synctest.Wait()
			}
		}
		// 100 ms doubling to 30 s: 51.1 s, then three times 30.
		if d := time.Since(start); d < 2*time.Minute || d > 3*time.Minute {
			t.Errorf("12 failures took %v", d)
		}
		s.ended(nil)
		s.Done()
		synctest.Wait()
		if n := db.scheduled.Load(); n != 13 {
			t.Errorf("%d compactions after a success", n)
		}
		s.Unregister()
		s.Unregister()
	})
}
