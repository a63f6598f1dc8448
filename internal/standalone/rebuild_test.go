package standalone

import (
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

var (
	rebuildSpindles = flag.Int("rebuild-spindles", 12, "TestRebuild: spindles; of 10 all are in each stripe")
	rebuildMiB      = flag.Int("rebuild-mib", 48, "TestRebuild: MiB of content")
	rebuildDrive    = flag.Int64("rebuild-drive", 0, "TestRebuild: MiB/s of each spindle, as a drive that also takes 8 ms to begin; 0: as fast as it goes")
	rebuildRate     = flag.Int64("rebuild-rate", 0, "TestRebuild: bound of the rate in MiB/s; 0: none")
)

// emptied makes a spindle's directory an empty one, as a new drive has it, and that the spindle.
func emptied(t testing.TB, o Options, n int) {
	t.Helper()
	dir := filepath.Join(o.Dir, "datanode")
	away(t, o, n)
	if err := os.Mkdir(spindleDir(o.Dir, n), 0o700); err != nil {
		t.Fatal(err)
	}
	pool, err := shelf.PoolID(vfs.Default, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := shelf.ReplaceSpindle(dir, n, shelf.Options{PoolID: pool, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
}

// away removes a spindle's directory, also while something is written to it.
func away(t testing.TB, o Options, n int) {
	t.Helper()
	await(t, "a spindle is away", func() bool { return os.RemoveAll(spindleDir(o.Dir, n)) == nil })
}

// rebuilt waits until all spindles have what they should, and returns how far it was.
func rebuilt(t testing.TB, s *Site, spindles ...int) host.RebuildStatus {
	t.Helper()
	var r host.RebuildStatus
	defer func() {
		if t.Failed() {
			t.Logf("%+v", r)
		}
	}()
	await(t, "the end of the rebuild", func() bool {
		r = status(t, s).Rebuild
		return r.Ended != nil && len(r.Restored) == len(spindles)
	})
	for i, n := range spindles {
		if r.Restored[i] != id.Spindle(n) {
			t.Errorf("restored %v, want %v", r.Restored, spindles)
		}
	}
	return r
}

// TestRebuild replaces a drive: what it had is restored at once, so that two others may go
// after it. With -v it says what that took.
func TestRebuild(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	if opts.Host.RebuildRate = *rebuildRate << 20; *rebuildRate == 0 {
		opts.Host.RebuildRate = -1
	}
	if opts.Node.SpindleBytes = int64(*rebuildMiB) << 20; *rebuildMiB < 128 {
		opts.Node.SpindleBytes = 128 << 20
	}
	opts.Node.Spindles = *rebuildSpindles
	fs := &rates{due: make(map[string]time.Time)}
	opts.FS = slabs{vfs.Default, fs.wrap}
	s := open(t, opts)
	data := image(seed, *rebuildMiB<<20)
	write(t, create(t, s, "vm1", int64(len(data))), data, 0)
	quiesce(t, s)
	lost := status(t, s).Node.Spindles[3]
	shut(t, s)

	emptied(t, opts, 3)
	fs.mib.Store(*rebuildDrive)
	s = open(t, opts)
	same(t, device(t, s, "vm1"), data[:8<<20], 0)
	r := rebuilt(t, s, 3)
	if st := status(t, s); r.Fragments == 0 || r.Fragments > lost.Fragments || st.Node.Spindles[3].AllocatedBytes != lost.AllocatedBytes || r.LostSegments > 0 || r.FragmentsLeft != 0 {
		t.Errorf("%d of %d fragments are restored: %+v", r.Fragments, lost.Fragments, r)
	}
	took := r.Ended.Sub(*r.Began)
	t.Logf("%d fragments, %.1f MiB in %v: %.1f MiB/s", r.Fragments, float64(r.Bytes)/(1<<20), took, float64(r.Bytes)/(1<<20)/took.Seconds())
	fs.mib.Store(0)
	if testing.Verbose() {
		t.Logf("one file of that size on the same drive, in pieces of 1 MiB that are each synced: %.1f MiB/s", driveRate(t, opts.Dir, r.Bytes))
	}
	verify(t, s)
	shut(t, s)

	s = open(t, opts) // and does not begin again
	for _, n := range []int{0, 7} {
		away(t, opts, n)
	}
	same(t, device(t, s, "vm1"), data, 0)
	if again := status(t, s).Rebuild; again.Began == nil || !again.Began.Equal(*r.Began) {
		t.Errorf("after a restart: %+v", again)
	}
	shut(t, s)
}

// rates is the operating system's file system, in which each spindle is a drive that does one
// thing after the other.
type rates struct {
	mib atomic.Int64 // per second; 0: no bound

	mu  sync.Mutex
	due map[string]time.Time // by directory: when it has done what it was asked for
}

func (r *rates) wrap(name string, f vfs.File) vfs.File {
	return &ratedSlab{f, r, filepath.Dir(name)}
}

// take waits as long as a drive takes for so many bytes.
func (r *rates) take(dir string, bytes int) {
	mib := r.mib.Load()
	if mib == 0 {
		return
	}
	r.mu.Lock()
	due, now := r.due[dir], time.Now()
	if due.Before(now) {
		due = now
	}
	due = due.Add(8*time.Millisecond + time.Duration(bytes)*time.Second/time.Duration(mib<<20))
	r.due[dir] = due
	r.mu.Unlock()
	time.Sleep(due.Sub(now))
}

type ratedSlab struct {
	vfs.File
	of  *rates
	dir string
}

func (f *ratedSlab) ReadAt(p []byte, off int64) (int, error) {
	f.of.take(f.dir, len(p))
	return f.File.ReadAt(p, off)
}

func (f *ratedSlab) WriteAt(p []byte, off int64) (int, error) {
	f.of.take(f.dir, len(p))
	return f.File.WriteAt(p, off)
}

// driveRate returns how fast a file is written, in MiB per second.
func driveRate(t *testing.T, dir string, bytes int64) float64 {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "rate"))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	piece, began := image(1, 1<<20), time.Now()
	for range bytes >> 20 {
		if _, err := f.Write(piece); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	return float64(bytes>>20) / time.Since(began).Seconds()
}

// TestSimRebuildInterrupted replaces a drive and, while that is rebuilt, stops the host,
// takes a second drive away, damages others within what the parity can bear, replaces
// the second too, and writes and trims all the while.
func TestSimRebuildInterrupted(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	opts := quiet(t, t.TempDir())
	opts.Logger = slog.New(slog.DiscardHandler)
	opts.Host.RebuildRate = 8 << 20 // slow enough to be interrupted
	s := open(t, opts)
	data := image(seed, 64<<20)
	write(t, create(t, s, "vm1", 128<<20), data, 0)
	quiesce(t, s)
	shut(t, s)
	first, second := 2, 9
	emptied(t, opts, first)
	// A fragment each of some stripes that lose nothing else, and that are gone through.
	extents := walkSlabs(t, opts.Dir)
	taken, there := map[uint64]bool{}, map[uint64]int{}
	for _, e := range extents {
		there[e.segment]++
		taken[e.segment] = taken[e.segment] || e.spindle == second
	}
	for s, n := range there {
		taken[s] = taken[s] || n == (stripe.Geometry{K: 8, M: 2}).Width()
	}
	var some []extent
	for _, e := range extents {
		if !taken[e.segment] {
			taken[e.segment] = true
			some = append(some, e)
		}
	}
	flipMany(t, rng, some, 8*len(some))

	s = open(t, opts)
	await(t, "some of it is restored", func() bool { return status(t, s).Rebuild.Fragments > 4 })
	if err := s.Host.Close(); err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	away(t, opts, second)
	opts.Host.RebuildRate = -1
	s = open(t, opts)
	d := device(t, s, "vm1")
	more := image(seed+1, 16<<20)
	write(t, d, more, 64<<20)
	write(t, d, more[:4<<20], 8<<20)
	copy(data[8<<20:], more[:4<<20])
	settle(t, s) // some segments go
	r := rebuilt(t, s, first)
	if r.LostSegments > 0 {
		t.Errorf("lost: %+v", r.Lost)
	}
	same(t, d, data, 0)
	shut(t, s)

	emptied(t, opts, second)
	s = open(t, opts)
	rebuilt(t, s, second)
	settle(t, s)
	verify(t, s)
	for _, n := range []int{0, first} {
		away(t, opts, n)
	}
	shut(t, s)
	s = open(t, opts)
	d = device(t, s, "vm1")
	same(t, d, data, 0)
	same(t, d, more, 64<<20)
	shut(t, s)
}
