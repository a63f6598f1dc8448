package standalone

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/host"
	"plinth/internal/id"
)

var slowReads = flag.Int("slow-reads", 400, "TestSlowSpindle: reads with all spindles well, and as many with a slow one")

// discs have each read of a slab take a disc's time, in one spindle some times that.
type discs struct {
	slow  string       // part of its paths
	takes atomic.Int64 // ns, of a slab's reads
	times atomic.Int64 // as long for slow
}

func (d *discs) wrap(name string, f vfs.File) vfs.File {
	return &slab{f, d, strings.Contains(name, d.slow)}
}

// slabs is the operating system's file system, in which files of slabs are wrapped.
type slabs struct {
	vfs.FS
	wrap func(name string, f vfs.File) vfs.File
}

func (s slabs) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, c, o...)
	return s.wrapSlab(name, f), err
}

func (s slabs) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return s.wrapSlab(name, f), err
}

func (s slabs) wrapSlab(name string, f vfs.File) vfs.File {
	if f == nil || !strings.Contains(name, "slab-") {
		return f
	}
	return s.wrap(name, f)
}

// slab is a file of a disc.
type slab struct {
	vfs.File
	of   *discs
	slow bool
}

func (f *slab) ReadAt(p []byte, off int64) (int, error) {
	takes := f.of.takes.Load()
	if f.slow {
		takes *= f.of.times.Load()
	}
	if takes > 0 {
		time.Sleep(time.Duration(takes/2 + rand.Int64N(takes)))
	}
	return f.File.ReadAt(p, off)
}

// TestSlowSpindle has one spindle of a pool take 50 times as long as the others: it is
// found out, read around, and read again when it is well. With -v it says what
// reads took.
func TestSlowSpindle(t *testing.T) {
	fs := &discs{slow: "spindle-05"}
	fs.times.Store(1)
	opts := quiet(t, t.TempDir())
	opts.FS = slabs{vfs.Default, fs.wrap}
	opts.Host.RAMCacheBytes = host.RAMCacheBytesMin
	s := open(t, opts)
	content := image(rand.Uint64(), 128<<20)
	d := create(t, s, "vm1", 128<<20)
	write(t, d, content, 0)
	quiesce(t, s)
	read := func(n int) time.Duration {
		var mu sync.Mutex
		var all []time.Duration
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				got := make([]byte, 4096)
				for range n {
					off := rand.Int64N(int64(len(content))/4096) * 4096
					began := time.Now()
					if err := d.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, content[off:off+4096]) {
						t.Errorf("read at %d: %v", off, err)
						return
					}
					took := time.Since(began)
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		slices.Sort(all)
		if n > 4 {
			t.Logf("%d reads by 16: p50 %v, p99 %v, the longest %v", len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1])
		}
		return all[len(all)*99/100]
	}
	fs.takes.Store(int64(4 * time.Millisecond))
	well := read(*slowReads / 16)
	fs.times.Store(50)
	ill := read(*slowReads / 16)
	for deadline := time.Now().Add(2 * time.Minute); !slices.Equal(status(t, s).SlowSpindles, []id.Spindle{5}); {
		if time.Now().After(deadline) {
			t.Fatalf("slow: %v", status(t, s).SlowSpindles)
		}
		read(4)
	}
	t.Logf("p99 with a slow spindle, the time to find it out included: %.2f times", float64(ill)/float64(well))
	if n := status(t, s).Repairs["ranges_read_around"]; n == 0 {
		t.Error("nothing was read around it")
	}
	if st := status(t, s); !slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, fmt.Sprintf("spindle %d takes far longer", 5)) }) {
		t.Errorf("warnings: %q", st.Warnings)
	}
	fs.times.Store(1)
	for deadline := time.Now().Add(3 * time.Minute); len(status(t, s).SlowSpindles) > 0; {
		if time.Now().After(deadline) {
			t.Fatal("a spindle that is well again is read around after three minutes")
		}
		read(4)
	}
	shut(t, s)
}
