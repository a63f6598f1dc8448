package flashcache

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"plinth/internal/id"
)

// BenchmarkGet gets chunks of half of 4 KiB from a real file that the page cache
// holds.
func BenchmarkGet(b *testing.B) {
	const chunks, bytes = 50_000, 2208
	opts := Options{Size: 256 << 20}
	c, err := Open(filepath.Join(b.TempDir(), "cache"), opts)
	ok(b, err)
	b.Cleanup(func() { c.Close() })
	await(b, "loading", func() bool { return !c.loading.Load() })
	names := make([]id.Fingerprint, chunks)
	for i := range names {
		names[i] = fingerprint(i)
		await(b, "taking a chunk", func() bool {
			c.Put(names[i], make([]byte, bytes))
			return c.Contains(names[i])
		})
	}
	rng := rand.New(rand.NewPCG(1, 1))
	dst := make([]byte, 0, bytes+Slack)
	b.SetBytes(bytes)
	b.ReportAllocs()
	for b.Loop() {
		if _, found := c.Get(names[rng.IntN(chunks)], dst); !found {
			b.Fatal("a chunk is gone")
		}
	}
}
