package flashcache

import (
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

const (
	testRegion  = 16 << 10
	testRegions = 64
)

// tiny is a cache of 64 regions of 16 KiB, so that tests go round it soon.
func tiny(fs vfs.FS) Options {
	return Options{
		FS: fs, Size: dataStart + testRegions*testRegion, RegionBytes: testRegion, Pool: [16]byte{1}, Domain: [16]byte{2},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// fingerprint and sealed are chunk i of a test.
func fingerprint(i int) id.Fingerprint {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i))
	var fp id.Fingerprint
	rand.NewChaCha8(seed).Read(fp[:])
	return fp
}

func sealed(i int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(i))
	seed[31] = 1
	rng := rand.NewChaCha8(seed)
	p := make([]byte, id.Unit*(1+rng.Uint64()%40))
	rng.Read(p)
	return p
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustOpen opens a cache and waits until it is loaded.
func mustOpen(t testing.TB, opts Options) *Cache {
	t.Helper()
	c, err := Open("cache", opts)
	ok(t, err)
	t.Cleanup(func() { c.Close() })
	await(t, "loading", func() bool { return !c.loading.Load() })
	return c
}

// await waits for what another goroutine does soon.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// mustPut offers a chunk until it is taken.
func (c *Cache) mustPut(t testing.TB, i int) {
	t.Helper()
	await(t, "room for a chunk", func() bool {
		c.Put(fingerprint(i), sealed(i))
		return c.Contains(fingerprint(i))
	})
}

// settled reports whether nothing waits to be written or evicted.
func (c *Cache) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	open := 0
	for _, b := range c.open {
		if b != nil {
			open++
		}
	}
	return len(c.idle)+open == buffersCount && len(c.free) >= freeRegions
}

// got reports whether the cache has chunk i. Other bytes than the chunk's end the
// test.
func (c *Cache) got(t testing.TB, i int) bool {
	t.Helper()
	p, ok := c.Get(fingerprint(i), []byte("before"))
	if ok && string(p) != "before"+string(sealed(i)) {
		t.Fatalf("chunk %d comes back as other bytes", i)
	}
	return ok
}

// logged is a Logger's output.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.text.String()), "\n")
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
