package ramcache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"plinth/internal/id"
)

func newCache(t testing.TB, bytes int64) *Cache {
	t.Helper()
	c, err := New(bytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// fingerprint is the name of chunk n.
func fingerprint(n uint64) (fp id.Fingerprint) {
	binary.LittleEndian.PutUint64(fp[:], mix(n+1))
	binary.LittleEndian.PutUint64(fp[8:], n)
	return fp
}

// plain is the content of chunk n.
func plain(n uint64, size int) []byte {
	p := make([]byte, size)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n<<16|uint64(i))
	}
	return p
}

// TestContent puts many more chunks of several sizes than fit and gets parts of
// them from several goroutines: what is found is right, and some is found.
func TestContent(t *testing.T) {
	for _, size := range []int64{BytesMin, 4 << 20} {
		c := newCache(t, size)
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(worker), 1))
				dst := make([]byte, 64<<10)
				for range 1_000 {
					n := uint64(rng.ExpFloat64() * 100)
					bytesOf := PageBytes << (n % 5)
					fp := fingerprint(n)
					off := rng.IntN(bytesOf)
					got := dst[:1+rng.IntN(bytesOf-off)]
					want := plain(n, bytesOf)
					if c.Get(got, &fp, off) {
						if !bytes.Equal(got, want[off:off+len(got)]) {
							t.Errorf("chunk %d: %d bytes at %d are wrong", n, len(got), off)
							return
						}
					} else {
						c.Put(&fp, want)
					}
				}
			})
		}
		wg.Wait()
		s := c.Stats()
		if s.Hits == 0 || s.Misses == 0 || s.Bytes != s.BytesMax || s.BytesMax > size || s.BytesMax < size*95/100 {
			t.Errorf("of %d bytes: %+v", size, s)
		}
		for i := range c.shards {
			c.shards[i].check(t)
		}
	}
}

// check compares the shard's queues with its table.
func (s *shard) check(t *testing.T) {
	if s.small.n+s.main.n != s.used {
		t.Fatalf("%d pages are in queues, %d in use", s.small.n+s.main.n, s.used)
	}
	in := 0
	for _, i := range s.table {
		if i != 0 {
			in++
		}
	}
	for i := range s.used {
		p := &s.pages[i]
		if at, ok := s.find(s.hash(i), &p.fp, p.page); !ok || at != i {
			t.Fatalf("page %d is not found", i)
		}
	}
	if in != int(s.used) {
		t.Fatalf("%d pages are in the table, %d in use", in, s.used)
	}
}

func TestBytes(t *testing.T) {
	if _, err := New(BytesMin - 1); err == nil {
		t.Error("a cache that is too small was made")
	}
	for bytes := int64(BytesMin); bytes < 20<<30; bytes = bytes*3/2 + 12345 {
		c := newCache(t, bytes)
		if n := int64(len(c.mem)); n > bytes || n < bytes*98/100 {
			t.Errorf("%d bytes of memory for %d", n, bytes)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestClose closes a cache in use.
func TestClose(t *testing.T) {
	c := newCache(t, BytesMin)
	m := c.NewMemo()
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for worker := range 4 {
		wg.Go(func() {
			p := plain(1, PageBytes)
			for i := range uint64(2_000) {
				fp := fingerprint(i % 100)
				if c.Get(p, &fp, 0); i == 1000 {
					started <- struct{}{}
				}
				c.Put(&fp, p)
				m.Put(m.Ticket(), id.LBA(worker), &fp)
				m.Get(id.LBA(worker))
			}
		})
	}
	<-started
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	fp := fingerprint(1)
	if c.Put(&fp, plain(1, PageBytes)); c.Get(make([]byte, 1), &fp, 0) {
		t.Error("a closed cache has something")
	}
}

func TestNone(t *testing.T) {
	var c *Cache
	fp := fingerprint(1)
	c.Put(&fp, plain(1, PageBytes))
	m := c.NewMemo()
	m.Put(m.Ticket(), 1, &fp)
	m.Forget()
	if _, ok := m.Get(1); ok || c.Get(make([]byte, 1), &fp, 0) || c.Stats() != (Stats{}) || c.Close() != nil {
		t.Error("no cache has something")
	}
}
