package blockmap

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

var (
	scaleChunks = flag.Int64("scale-chunks", 100_000, "TestScale: mapped chunks")
	scaleTiB    = flag.Float64("scale-tib", 0.01, "TestScale: size of the disk")
	scaleReads  = flag.Int("scale-reads", 2_000, "TestScale: lookups that are timed, cold and warm")
)

const (
	// scaleCache is the cache that all maps of a host share by default.
	scaleCache = 256 << 20
	// scaleMemoryMax is what an attached map may take beyond the cache: memtables, and
	// what C's allocator keeps in its arenas of blocks that compactions had in hand, which
	// is up to 220 MiB whether 30 million chunks are mapped or 100.
	scaleMemoryMax = 256 << 20
)

// fileStore is Objects in files, so that memory is the map's own.
type fileStore struct {
	dir  string
	next atomic.Uint64
}

func (s *fileStore) path(o Object) string { return filepath.Join(s.dir, fmt.Sprintf("%x", []byte(o))) }

func (s *fileStore) Put(_ context.Context, _ string, _ int64, r io.Reader) (Object, error) {
	o := Object(binary.BigEndian.AppendUint64(nil, s.next.Add(1)))
	f, err := os.Create(s.path(o))
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, r); err != nil {
		return nil, err
	}
	return o, f.Close()
}

func (s *fileStore) ReadAt(_ context.Context, o Object, p []byte, off int64) error {
	f, err := os.Open(s.path(o))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(p, off)
	return err
}

// resident returns this process's memory, once what is free is given back.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "VmRSS:")
	var kb int64
	if _, err := fmt.Sscan(text, &kb); err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestScale measures a map of many chunks on a large disk: what a checkpoint has
// for each, how long an attach takes, lookups, and memory, which it bounds.
func TestScale(t *testing.T) {
	s := &fileStore{dir: t.TempDir()}
	opts := testOptions(t, nil)
	opts.FS, opts.Dir, opts.Objects = vfs.Default, t.TempDir(), s
	opts.Cache = NewCache(scaleCache, 10_000)
	t.Cleanup(opts.Cache.Close)
	m, err := Create(opts)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	batch := &Batch{Gen: m.NextGen(false)}
	for i := range *scaleChunks {
		batch.Updates = append(batch.Updates, Update{LBA: scaleLBA(i), Entry: scaleEntry(i)})
		if len(batch.Updates) == UpdatesMax/4 || i == *scaleChunks-1 {
			mustApply(t, m, batch, "state")
			batch.Updates = batch.Updates[:0]
		}
	}
	applied := time.Since(began)
	c, err := m.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, m)
	batch.Updates = nil
	before := resident(t)
	began = time.Now()
	m = mustAttach(t, c.Manifest, opts)
	attached, idle := time.Since(began), resident(t)-before
	cold := lookups(t, m)
	if err := m.Scan(t.Context(), func(id.LBA, Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	warm, full := lookups(t, m), resident(t)-before
	t.Logf("%d chunks of %.3g TiB: applied in %.1f s, %.1f bytes a chunk in the checkpoint, %d tables, attached in %v",
		*scaleChunks, *scaleTiB, applied.Seconds(), float64(c.UploadedBytes)/float64(*scaleChunks), len(c.Objects), attached)
	t.Logf("lookups at random: just attached p50 %v, p99 %v; after a scan p50 %v, p99 %v", at(cold, 0.5), at(cold, 0.99), at(warm, 0.5), at(warm, 0.99))
	t.Logf("memory: attached %.1f MiB, after a scan and lookups %.1f MiB, the cache of %d MiB included", float64(idle)/(1<<20), float64(full)/(1<<20), scaleCache>>20)
	if full > scaleCache+scaleMemoryMax {
		t.Errorf("the map takes %d MiB beside its cache", (full-scaleCache)>>20)
	}
}

// scaleLBA spreads chunks over the disk in runs of 1 MiB.
func scaleLBA(i int64) id.LBA {
	const run = 256
	stride := int64(*scaleTiB*(1<<28)) / (*scaleChunks/run + 1)
	return id.LBA(i/run*max(stride, run) + i%run)
}

// scaleEntry is like that of a chunk written with its neighbours.
func scaleEntry(i int64) Entry { return updates(0, 1, uint64(i))[0].Entry }

// lookups times random lookups and checks what they find.
func lookups(t *testing.T, m *Map) []time.Duration {
	t.Helper()
	r := newRand(4)
	out := make([]Entry, 1)
	var all []time.Duration
	for range *scaleReads {
		i := r.Int64N(*scaleChunks)
		began := time.Now()
		if err := m.LookupRange(scaleLBA(i), out); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(began))
		if want := scaleEntry(i); out[0] != want {
			t.Fatalf("chunk %d: %v, want %v", i, out[0], want)
		}
	}
	slices.Sort(all)
	return all
}

func at(sorted []time.Duration, share float64) time.Duration {
	return sorted[int(float64(len(sorted)-1)*share)]
}
