package flashcache

import (
	"flag"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/internal/id"
)

const (
	benchChunks = 50_000
	benchBytes  = 2208 // a 4 KiB chunk that compresses to a half
)

var openChunks = flag.Int("open-chunks", 100_000, "chunks in BenchmarkOpen")

// benchCache is a cache in a real file that the page cache holds, with
// benchChunks of the names.
func benchCache(b *testing.B) (*Cache, []id.Fingerprint) {
	c, err := Open(filepath.Join(b.TempDir(), "cache"), Options{Size: 256 << 20})
	ok(b, err)
	b.Cleanup(func() { c.Close() })
	await(b, "loading", func() bool { return !c.loading.Load() })
	rng := rand.New(rand.NewPCG(1, 1))
	names := make([]id.Fingerprint, 2*benchChunks)
	for i := range names {
		names[i] = randomFingerprint(rng)
		if i < benchChunks {
			c.sure(b, names[i], make([]byte, benchBytes))
		}
	}
	await(b, "writing", c.settled)
	return c, names
}

// processorTime is the process's: of the benchmark and of the Cache's goroutine.
func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	ok(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processor reports what an operation costs on a machine that others use too.
func processor(b *testing.B, since time.Duration) {
	b.ReportMetric(float64(processorTime(b)-since)/float64(b.N), "cpu-ns/op")
}

// sure offers a chunk until it is taken.
func (c *Cache) sure(b *testing.B, fp id.Fingerprint, sealed []byte) {
	await(b, "taking a chunk", func() bool {
		c.Put(fp, sealed)
		return c.Contains(fp)
	})
}

// BenchmarkGet gets chunks of half of 4 KiB from a real file that the page cache
// holds.
func BenchmarkGet(b *testing.B) {
	c, names := benchCache(b)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	defer processor(b, processorTime(b))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
		dst := make([]byte, 0, benchBytes+Slack)
		for pb.Next() {
			if _, found := c.Get(names[rng.IntN(benchChunks)], dst); !found {
				b.Error("a chunk is gone")
				return
			}
		}
	})
}

// BenchmarkMiss asks for chunks that are not there.
func BenchmarkMiss(b *testing.B) {
	c, names := benchCache(b)
	b.ReportAllocs()
	defer processor(b, processorTime(b))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
		for pb.Next() {
			c.Get(names[benchChunks+rng.IntN(benchChunks)], nil)
		}
	})
}

// BenchmarkPut offers each new chunk until it is taken: to a file in memory, which
// is what it costs, and to a real one, which is what that takes.
func BenchmarkPut(b *testing.B) {
	for name, fs := range map[string]vfs.FS{"memory": vfs.NewMem(), "file": vfs.Default} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			ok(b, fs.MkdirAll(dir, 0o700))
			c, err := Open(filepath.Join(dir, "cache"), Options{FS: fs, Size: 512 << 20, RegionBytes: 8 << 20})
			ok(b, err)
			b.Cleanup(func() { c.Close() })
			rng := rand.New(rand.NewPCG(2, 1))
			sealed := make([]byte, benchBytes)
			b.SetBytes(benchBytes)
			b.ReportAllocs()
			defer processor(b, processorTime(b))
			for b.Loop() {
				c.sure(b, randomFingerprint(rng), sealed)
			}
		})
	}
}

// BenchmarkOpen opens a cache and waits until it knows what it has. Chunks are
// short: it is their number that counts.
func BenchmarkOpen(b *testing.B) {
	const bytes = 64
	path := filepath.Join(b.TempDir(), "cache")
	opts := Options{Size: dataStart + 40<<20 + int64(*openChunks)*(bytes+fingerprintBytes+entryBytes)*6/5}
	open := func() *Cache {
		c, err := Open(path, opts)
		ok(b, err)
		return c
	}
	c := open()
	rng := rand.New(rand.NewPCG(3, 1))
	for range *openChunks {
		c.sure(b, randomFingerprint(rng), make([]byte, bytes))
	}
	ok(b, c.Close())
	chunks, opening, used := int64(0), time.Duration(0), time.Duration(0)
	for b.Loop() {
		start, before := time.Now(), processorTime(b)
		c := open()
		opening += time.Since(start)
		await(b, "loading", func() bool { return !c.loading.Load() })
		used += processorTime(b) - before
		b.StopTimer()
		chunks = c.Stats().Chunks
		ok(b, c.Close())
		b.StartTimer()
	}
	b.ReportMetric(float64(chunks), "chunks")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(chunks), "ns/chunk")
	b.ReportMetric(float64(used)/float64(b.N)/float64(chunks), "cpu-ns/chunk")
	b.ReportMetric(float64(opening.Milliseconds())/float64(b.N), "open-ms")
}
