package standalone

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/nbd"
)

// attach is device for a disk that is detached again.
func attach(t testing.TB, s *Site, name string) (nbd.Device, func()) {
	t.Helper()
	e, release, err := host.Exports{Host: s.Host}.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return e.Device, release
}

func addDisk(t testing.TB, s *Site, name string, size int64) (nbd.Device, func()) {
	t.Helper()
	if _, err := s.Host.CreateDisk(t.Context(), host.DiskSpec{Name: name, Bytes: size}); err != nil {
		t.Fatal(err)
	}
	return attach(t, s, name)
}

func remove(t testing.TB, s *Site, name string) {
	t.Helper()
	if err := s.Host.RemoveDisk(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// settle leaves nothing to destage and nothing to reclaim.
func settle(t testing.TB, s *Site) {
	t.Helper()
	for range 2 { // the second reclaims what the first checkpoint replaced
		quiesce(t, s)
		if err := s.Host.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// usage is what an independent walk of the slabs finds.
type usage struct{ chunks, objects int64 }

// measure compares the status with the walk of the slabs, and du with both.
func measure(t testing.TB, s *Site, dir string) (*host.Status, usage) {
	t.Helper()
	objects := make(map[uint64]bool)
	reply, err := s.Node.DescribeSegments(t.Context(), &datanode.DescribeSegmentsRequest{Max: 4096})
	if err != nil || reply.More {
		t.Fatal(err, reply.More)
	}
	for _, d := range reply.Segments {
		objects[uint64(d.Segment)] = d.Kind == datanode.KindObject
	}
	var u usage
	var each [12]int64
	for _, e := range walkSlabs(t, dir) {
		isObject, known := objects[e.segment]
		switch {
		case !known:
			t.Errorf("segment %x is on spindle %d and not in the index", e.segment, e.spindle)
		case isObject:
			u.objects += e.bytes
		default:
			u.chunks += e.bytes
		}
		each[e.spindle] += e.bytes
	}
	st := status(t, s)
	if diff := st.Space.StoredBytes - u.chunks - u.objects; diff*100 > st.Space.StoredBytes || -diff*100 > st.Space.StoredBytes {
		t.Errorf("status says %d bytes are stored, the slabs hold %d", st.Space.StoredBytes, u.chunks+u.objects)
	}
	for n, sum := range each {
		slab := int64(0)
		if info, err := os.Stat(filepath.Join(spindleDir(dir, n), "slab-000000")); err == nil {
			slab = info.Size()
		}
		if du := diskUsage(t, spindleDir(dir, n)); du-sum > slab {
			t.Errorf("spindle %d takes %d bytes for %d of fragments", n, du, sum)
		}
	}
	return st, u
}

// TestSimShared gives two disks one image, and removes one after the other.
func TestSimShared(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := quiet(t, t.TempDir())
	s := open(t, opts)
	const size = 32 << 20
	data := image(seed, size)
	for off := 0; off < size/2; off += 4096 { // compressible, and all different
		copy(data[off+64:off+4096], bytes.Repeat(data[off:off+64], 64))
	}
	d1, release1 := addDisk(t, s, "vm1", 64<<20)
	write(t, d1, data, 0)
	settle(t, s)
	st1, u1 := measure(t, s, opts.Dir)
	if sp := st1.Space; sp.LogicalBytes != size || sp.UniqueBytes != size ||
		sp.CompressedBytes > size*3/4 || sp.CompressedBytes < size/2 || sp.StoredBytes > size*3/4*10/8*11/10 {
		t.Errorf("space of one disk: %+v", sp)
	}
	d2, release2 := addDisk(t, s, "vm2", 64<<20)
	write(t, d2, data, 0)
	settle(t, s)
	st2, u2 := measure(t, s, opts.Dir)
	if sp := st2.Space; sp.LogicalBytes != 2*size || sp.UniqueBytes != size || sp.CompressedBytes != st1.Space.CompressedBytes {
		t.Errorf("space of two disks of one content: %+v, of one: %+v", sp, st1.Space)
	}
	if u2.chunks != u1.chunks || u2.objects > 4*u1.objects {
		t.Errorf("two disks of one content take %+v, one %+v", u2, u1)
	}
	t.Logf("one disk %+v, two %+v", u1, u2)
	release1()
	remove(t, s, "vm1")
	settle(t, s)
	if st, u := measure(t, s, opts.Dir); u.chunks != u1.chunks || st.Space.LogicalBytes != size {
		t.Errorf("the disk that is left takes %+v of %+v, %+v", u, u1, st.Space)
	}
	same(t, d2, data, 0)
	verify(t, s)
	release2()
	shut(t, s)
	s = open(t, opts)
	d2, release2 = attach(t, s, "vm2")
	same(t, d2, data, 0)
	release2()
	remove(t, s, "vm2")
	settle(t, s)
	if st, u := measure(t, s, opts.Dir); u != (usage{}) || st.Space.StoredBytes != 0 || st.Space.LogicalBytes != 0 {
		t.Errorf("a pool without disks stores %+v, %+v", u, st.Space)
	}
	verify(t, s)
	shut(t, s)
}

// tight is a pool that is soon full, with a log that is.
func tight(t testing.TB) Options {
	opts := quiet(t, t.TempDir())
	opts.Node.SpindleBytes = 16 << 20
	opts.Node.LogBytes = 8 << 20
	return opts
}

// patience bounds what one call may take on a full pool: an error is an answer,
// a hang is none.
const patience = time.Minute

// fillUp writes what is new from off on until there is no space, and returns how
// many bytes were acknowledged.
func fillUp(t testing.TB, d nbd.Device, seed uint64, size, off int64) int64 {
	t.Helper()
	const step = 256 << 10
	data := image(seed, step)
	for n := int64(0); n < size; n += step {
		fresh(data, uint64(n))
		start := time.Now()
		err := d.WriteAt(t.Context(), data, off+n, false)
		if took := time.Since(start); took > patience {
			t.Errorf("a write took %v: %v", took, err)
		}
		if err != nil {
			wantNoSpace(t, err)
			return n
		}
	}
	t.Fatalf("%d bytes did not fill the pool", size)
	return 0
}

// fresh makes each chunk of incompressible data new, by its number.
func fresh(data []byte, number uint64) {
	for off := 0; off < len(data); off += 4096 {
		for i := range 8 {
			data[off+i] = byte((number + uint64(off)) >> (8 * i))
		}
	}
}

func wantNoSpace(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, disk.ErrNoSpace) || host.Errno(err) != nbd.ENOSPC {
		t.Fatalf("a full pool answers: %v", err)
	}
}

// checkFilled reads what fillUp wrote.
func checkFilled(t testing.TB, d nbd.Device, seed uint64, from, to int64) {
	t.Helper()
	const step = 256 << 10
	data, got := image(seed, step), make([]byte, step)
	for n := from; n < to; n += step {
		fresh(data, uint64(n))
		if err := d.ReadAt(t.Context(), got, n); err != nil {
			t.Fatalf("read at %d of a full pool: %v", n, err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%d bytes at %d of a full pool are not what was written", step, n)
		}
	}
}

// TestSimFull fills a pool: reads, trims, restart and rm work, and writes go on
// when there is space again.
func TestSimFull(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := tight(t)
	s := open(t, opts)
	a, releaseA := addDisk(t, s, "a", 512<<20)
	b, releaseB := addDisk(t, s, "b", 512<<20)
	other := image(seed+9, 16<<20)
	write(t, b, other, 0)
	filled := fillUp(t, a, seed, 512<<20, 0)
	t.Logf("%d MiB and 16 fill the pool", filled>>20)
	if filled < 60<<20 {
		t.Errorf("only %d bytes fit", filled)
	}
	fullCalls(t, a, b, filled)
	checkFilled(t, a, seed, 0, filled)
	same(t, b, other, 0)
	if err := s.Host.Quiesce(t.Context()); err != nil {
		t.Fatalf("a full pool does not quiesce: %v", err)
	}
	releaseA()
	releaseB()
	shut(t, s)

	s = open(t, opts)
	a, releaseA = attach(t, s, "a")
	b, releaseB = attach(t, s, "b")
	checkFilled(t, a, seed, 0, filled)
	same(t, b, other, 0)
	releaseB()
	remove(t, s, "b")
	resumed := resume(t, a, seed+1, filled, 8<<20)
	t.Logf("after rm of 16 MiB writes resume within %v", resumed)
	half := filled / 2 &^ (1<<20 - 1)
	more := fillUp(t, a, seed+2, 512<<20-filled-(8<<20), filled+8<<20)
	t.Logf("%d MiB more fill it again", more>>20)
	if err := a.Trim(t.Context(), 0, half, false); err != nil {
		t.Fatalf("trim of a full pool: %v", err)
	}
	resumed = resume(t, a, seed+3, 0, half/2)
	t.Logf("after a trim of %d MiB writes resume within %v", half>>20, resumed)
	checkFilled(t, a, seed, half, filled)
	settle(t, s)
	checkFilled(t, a, seed, half, filled)
	verify(t, s)
	releaseA()
	shut(t, s)
}

// resume writes what is new until it succeeds: space that was given up comes
// back when passes have found it.
func resume(t testing.TB, d nbd.Device, seed uint64, off, n int64) time.Duration {
	t.Helper()
	start := time.Now()
	data := image(seed, int(n))
	for at := int64(0); at < n; {
		err := d.WriteAt(t.Context(), data[at:min(at+256<<10, n)], off+at, false)
		switch {
		case err == nil:
			at += 256 << 10
		case time.Since(start) > patience:
			t.Fatalf("writes do not resume: %d of %d after %v: %v", at, n, patience, err)
		default:
			wantNoSpace(t, err)
			time.Sleep(100 * time.Millisecond)
		}
	}
	same(t, d, data, off)
	return time.Since(start)
}

// fullCalls makes all kinds of calls on two disks of a full pool at once,
// behind off.
func fullCalls(t testing.TB, a, b nbd.Device, off int64) {
	t.Helper()
	off += 16 << 20
	var calls sync.WaitGroup
	for i, d := range []nbd.Device{a, b, a, b} {
		calls.Go(func() {
			data := image(uint64(off)+uint64(i), 64<<10)
			at := off + int64(i)<<20
			for n := range 8 {
				start := time.Now()
				fresh(data, uint64(n+1))
				errs := []error{
					d.WriteAt(t.Context(), data, at, false),
					d.WriteAt(t.Context(), data[:100], at+512, n == 0), // a part
					d.Zero(t.Context(), at+100, 5000, true, false),     // parts at both ends
				}
				for _, err := range errs {
					if err != nil && !errors.Is(err, disk.ErrNoSpace) {
						t.Errorf("a full pool answers: %v", err)
					}
				}
				if err := errors.Join(
					d.Zero(t.Context(), at, 64<<10, true, false),
					d.Trim(t.Context(), at, 64<<10, false),
					d.Flush(t.Context()),
				); err != nil {
					t.Errorf("what takes no space, on a full pool: %v", err)
				}
				if took := time.Since(start); took > patience {
					t.Errorf("six calls on a full pool took %v", took)
				}
			}
		})
	}
	calls.Wait()
}

// TestSimFullLog sends small trims, zeroes and parts of several disks through a
// log that is always full, on a pool that is full too.
func TestSimFullLog(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	opts := tight(t)
	opts.Node.LogBytes = 8 << 20
	opts.Host.DestageInterval = time.Hour // only what is nudged
	s := open(t, opts)
	a, _ := addDisk(t, s, "a", 512<<20)
	b, _ := addDisk(t, s, "b", 512<<20)
	filled := fillUp(t, a, seed, 512<<20, 0)
	ctx := t.Context()
	var calls sync.WaitGroup
	for i, d := range []nbd.Device{a, b, b} {
		calls.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 12000 {
				at := filled + (16+rng.Int64N(64))<<20 + rng.Int64N(256)*4096
				var err error
				if rng.IntN(2) == 0 {
					err = d.Trim(ctx, at, 4096, false)
				} else {
					err = d.Zero(ctx, at, 4096, false, false)
				}
				if err != nil {
					t.Errorf("disk %d: %v", i, err)
					return
				}
			}
		})
	}
	calls.Wait()
	checkFilled(t, a, seed, 0, filled)
	if err := a.Trim(ctx, 0, filled, false); err != nil {
		t.Fatal(err)
	}
	resume(t, b, seed+1, 0, 16<<20)
	settle(t, s)
	verify(t, s)
	shut(t, s)
}

// TestSimSmallLog writes more in one call than the smallest log holds.
func TestSimSmallLog(t *testing.T) {
	opts := small(t, t.TempDir())
	opts.Node.LogBytes = shelf.LogBytesMin
	s := open(t, opts)
	d := create(t, s, "vm1", 64<<20)
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			if err := d.WriteAt(t.Context(), image(uint64(i), 12<<20), int64(i)<<24, i == 0); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	for i := range 4 {
		same(t, d, image(uint64(i), 12<<20), int64(i)<<24)
	}
	shut(t, s)
}
