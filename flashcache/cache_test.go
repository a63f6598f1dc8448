package flashcache

import (
	"bytes"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

func TestPutThenGet(t *testing.T) {
	c := mustOpen(t, tiny(vfs.NewMem()))
	for i := range 100 { // a few regions
		if c.got(t, i) || c.Contains(fingerprint(i)) {
			t.Fatalf("chunk %d is there before it was put", i)
		}
		c.mustPut(t, i)
		if !c.got(t, i) {
			t.Fatalf("chunk %d is not there", i)
		}
	}
	for i := range 100 {
		if !c.got(t, i) {
			t.Errorf("chunk %d is not there any more", i)
		}
	}
	c.Put(fingerprint(1), sealed(1))
	c.Discard(fingerprint(2))
	if c.got(t, 2) {
		t.Error("a discarded chunk is there")
	}
	s := c.Stats()
	if s.Chunks != 99 || s.Hits != 200 || s.Misses != 101 || s.Puts != 100 || s.Known != 1 || s.Discarded != 1 {
		t.Errorf("stats are %+v", s)
	}
}

func TestChunksOfImpossibleLengthsAreDropped(t *testing.T) {
	c := mustOpen(t, tiny(vfs.NewMem()))
	for i, n := range []int{0, 1, 17, testRegion, SealedBytesMax + id.Unit} {
		c.Put(fingerprint(i), make([]byte, n))
		if c.Contains(fingerprint(i)) {
			t.Errorf("a chunk of %d bytes is taken", n)
		}
	}
	if s := c.Stats(); s.Dropped != 5 || s.Puts != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestGetAllocatesNothing(t *testing.T) {
	c := mustOpen(t, tiny(vfs.NewMem()))
	for i := range 200 {
		c.mustPut(t, i)
	}
	dst := make([]byte, 0, 4096+Slack)
	i := 0
	if n := testing.AllocsPerRun(200, func() {
		c.Get(fingerprint0, dst)
		c.Contains(fingerprint0)
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var fingerprint0 = fingerprint(0)

func TestWarmAfterClose(t *testing.T) {
	fs := vfs.NewMem()
	c := mustOpen(t, tiny(fs))
	for i := range 500 {
		c.mustPut(t, i)
	}
	c.Discard(fingerprint(499)) // in a buffer: it will be back
	ok(t, c.Close())
	ok(t, c.Close())
	if c.got(t, 1) || c.Contains(fingerprint(1)) {
		t.Error("a closed cache has chunks")
	}
	c.Put(fingerprint(1), sealed(1))

	c = mustOpen(t, tiny(fs))
	for i := range 500 {
		if !c.got(t, i) {
			t.Fatalf("chunk %d is lost", i)
		}
	}
	if n := c.Stats().Chunks; n != 500 {
		t.Errorf("%d chunks", n)
	}
}

func TestOtherOwnersFindNothing(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"pool":    func(o *Options) { o.Pool[3]++ },
		"domain":  func(o *Options) { o.Domain[3]++ },
		"size":    func(o *Options) { o.Size += testRegion },
		"regions": func(o *Options) { o.RegionBytes /= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			opts := tiny(vfs.NewMem())
			c := mustOpen(t, opts)
			for i := range 300 {
				c.mustPut(t, i)
			}
			ok(t, c.Close())
			var log logged
			other := opts
			other.Logger = log.logger()
			change(&other)
			for range 2 { // it stays empty
				c = mustOpen(t, other)
				if s := c.Stats(); s.Chunks != 0 || s.UsedBytes != 0 {
					t.Errorf("%d chunks are there", s.Chunks)
				}
				ok(t, c.Close())
			}
			if lines := log.lines(); len(lines) != 1 || !bytes.Contains([]byte(lines[0]), []byte("emptied")) {
				t.Errorf("the log says %q", lines)
			}
			if c = mustOpen(t, opts); c.Stats().Chunks != 0 {
				t.Error("the first owner's chunks are back")
			}
		})
	}
}

// A cache far smaller than what goes through it gives back what was put, keeps to
// its limits, and does not write too much.
func TestEviction(t *testing.T) {
	c := mustOpen(t, tiny(vfs.NewMem()))
	const chunks = 20000
	for i := range chunks {
		c.mustPut(t, i)
		if h := i % 40; !c.got(t, h) { // hot ones
			c.mustPut(t, h)
		}
	}
	await(t, "evictions", c.settled)
	there := 0
	for i := range chunks {
		if c.got(t, i) {
			there++
		}
	}
	s := c.Stats()
	if s.Chunks != int64(there) || there < 1000 || s.Evicted == 0 || s.ReinsertedBytes == 0 {
		t.Errorf("%d chunks are there; stats are %+v", there, s)
	}
	if s.UsedBytes > s.CapacityBytes {
		t.Errorf("%d bytes used of %d", s.UsedBytes, s.CapacityBytes)
	}
	// Chunks of 344 bytes on average: headers take 10 %, reinsertion the rest.
	if a := float64(s.WrittenBytes) / float64(s.PutBytes); a > 1.2 {
		t.Errorf("write amplification is %.3f", a)
	}
	hot := 0
	for h := range 40 {
		if c.got(t, h) {
			hot++
		}
	}
	if hot < 38 {
		t.Errorf("%d of 40 hot chunks are there", hot)
	}
}
