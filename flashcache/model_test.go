package flashcache

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

// Random calls against a map of what is in the cache for sure or perhaps, through
// evictions and restarts.
func TestModel(t *testing.T) {
	evicted := int64(0)
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		fs := vfs.NewMem()
		c := mustOpen(t, tiny(fs))
		gone := map[int]bool{} // discarded, and not put since
		before := int64(0)     // chunks at the last Open
		for step := range 15000 {
			i := rng.IntN(8000)
			if rng.IntN(3) > 0 {
				i %= 500
			}
			switch n := rng.IntN(100); {
			case n < 50:
				if got := c.got(t, i); got && gone[i] {
					t.Fatalf("seed %d, step %d: discarded chunk %d is back", seed, step, i)
				} else if !got {
					c.mustPut(t, i)
					delete(gone, i)
				}
			case n < 90:
				await(t, "a chunk that was put", func() bool { // it may be evicted at once, if it is old
					c.mustPut(t, i)
					return c.got(t, i)
				})
				delete(gone, i)
			case n < 99:
				c.Discard(fingerprint(i))
				gone[i] = true
			case rng.IntN(10) == 0:
				await(t, "evictions", c.settled)
				kept := c.Stats().Chunks
				evicted += c.Stats().Evicted
				ok(t, c.Close())
				c = mustOpen(t, tiny(fs))
				// Discarded chunks come back, and count as put by nobody.
				if before = c.Stats().Chunks; before < kept {
					t.Fatalf("seed %d, step %d: %d chunks of %d are back", seed, step, before, kept)
				}
				clear(gone)
			}
		}
		await(t, "evictions", c.settled)
		there := int64(0)
		for i := range 8000 {
			if c.got(t, i) {
				there++
			}
		}
		s := c.Stats()
		if s.Chunks != there || s.Damaged != 0 || s.Failure != "" {
			t.Errorf("seed %d: %d chunks are there, stats are %+v", seed, there, s)
		}
		if more := before + s.Puts - s.Evicted; more < there || more > there+s.Discarded {
			t.Errorf("seed %d: %d + %d - %d chunks, of which %d at most discarded, are not %d", seed, before, s.Puts, s.Evicted, s.Discarded, there)
		}
		evicted += s.Evicted
		ok(t, c.Close())
	}
	if evicted == 0 {
		t.Error("nothing was ever evicted")
	}
}

// All calls at once, and Close among them.
func TestConcurrentCalls(t *testing.T) {
	fs := vfs.NewMem()
	const chunks = 6000
	var all [chunks][]byte
	var fps [chunks]id.Fingerprint
	for i := range all {
		all[i], fps[i] = sealed(i), fingerprint(i)
	}
	for round := range 4 {
		c := mustOpen(t, tiny(fs))
		var work sync.WaitGroup
		for n := range 8 {
			work.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(n)))
				buf := make([]byte, 0, 1024)
				for range 4000 {
					i := min(rng.IntN(chunks), rng.IntN(chunks))
					switch got, ok := c.Get(fps[i], buf); {
					case ok && string(got) != string(all[i]):
						t.Errorf("chunk %d comes back as other bytes", i)
					case !ok:
						c.Put(fps[i], all[i])
					case rng.IntN(50) == 0:
						c.Discard(fps[i])
					case rng.IntN(50) == 0:
						c.Contains(fps[i])
						c.Stats()
					}
				}
				if n == 0 && round%2 == 0 {
					ok(t, c.Close())
				}
			})
		}
		work.Wait()
		if s := c.Stats(); s.Failure != "" || s.Damaged != 0 {
			t.Errorf("stats are %+v", s)
		}
		ok(t, c.Close())
	}
}
