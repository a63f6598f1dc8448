package ramcache

import (
	"container/list"
	"math/rand/v2"
	"testing"
)

// cacheOf is a policy under test: get reports whether chunk n was there, and puts
// it if not.
type cacheOf interface{ get(n uint64) bool }

// shardCache is the policy of this package.
type shardCache struct{ shard }

func (s *shardCache) get(n uint64) bool {
	fp := fingerprint(n)
	h := uint32(hash(&fp, 0))
	if s.shard.get(nil, h, &fp, 0, 0) {
		return true
	}
	s.put(nil, h, &fp, 0)
	return false
}

// lru and sieve are what it was chosen over.
type lru struct {
	max   int
	order list.List
	at    map[uint64]*list.Element
}

func (l *lru) get(n uint64) bool {
	if e := l.at[n]; e != nil {
		l.order.MoveToFront(e)
		return true
	}
	if l.order.Len() == l.max {
		delete(l.at, l.order.Remove(l.order.Back()).(uint64))
	}
	l.at[n] = l.order.PushFront(n)
	return false
}

type sieve struct {
	max   int
	order list.List
	hand  *list.Element
	at    map[uint64]*list.Element
}

type sieveEntry struct {
	n       uint64
	visited bool
}

func (s *sieve) get(n uint64) bool {
	if e := s.at[n]; e != nil {
		e.Value.(*sieveEntry).visited = true
		return true
	}
	for s.order.Len() == s.max {
		if s.hand == nil {
			s.hand = s.order.Back()
		}
		e := s.hand
		s.hand = e.Prev()
		if v := e.Value.(*sieveEntry); v.visited {
			v.visited = false
		} else {
			delete(s.at, v.n)
			s.order.Remove(e)
		}
	}
	s.at[n] = s.order.PushFront(&sieveEntry{n: n})
	return false
}

// traces are what is read, chunk by chunk, of a disk with ten times as many chunks
// as the cache has pages.
var traces = []struct {
	name string
	next func(r *rand.Rand, chunks int) func(i int) uint64
}{
	{"skewed", func(r *rand.Rand, chunks int) func(int) uint64 {
		z := rand.NewZipf(r, 1.1, 20, uint64(chunks-1))
		return func(int) uint64 { return z.Uint64() }
	}},
	{"skewed, with scans of the disk", func(r *rand.Rand, chunks int) func(int) uint64 {
		z := rand.NewZipf(r, 1.1, 20, uint64(chunks-1))
		return func(i int) uint64 {
			if i/chunks%4 == 3 {
				return uint64(i % chunks)
			}
			return z.Uint64()
		}
	}},
	{"skewed, beside a scan", func(r *rand.Rand, chunks int) func(int) uint64 {
		z := rand.NewZipf(r, 1.1, 20, uint64(chunks-1))
		return func(i int) uint64 {
			if i%2 == 1 {
				return uint64(chunks + i/2)
			}
			return z.Uint64()
		}
	}},
	{"what is hot drifts", func(r *rand.Rand, chunks int) func(int) uint64 {
		z := rand.NewZipf(r, 1.1, 20, uint64(chunks-1))
		return func(i int) uint64 { return (z.Uint64() + uint64(i/200)) % uint64(chunks) }
	}},
	{"a loop a little larger than the cache", func(r *rand.Rand, chunks int) func(int) uint64 {
		return func(i int) uint64 { return uint64(i % (chunks * 12 / 100)) }
	}},
}

// TestEviction compares hits with those of others on synthetic traces, and holds
// that a scan costs less than it does LRU.
func TestEviction(t *testing.T) {
	const pages, chunks, reads = 2000, 20_000, 400_000
	for _, trace := range traces {
		ours := &shardCache{}
		mem := make([]byte, shardBytes(pages)+64)
		ours.carve(&mem, pages)
		hits := [3]int{}
		for j, c := range []cacheOf{ours, &lru{max: pages, at: map[uint64]*list.Element{}}, &sieve{max: pages, at: map[uint64]*list.Element{}}} {
			next := trace.next(rand.New(rand.NewPCG(1, 2)), chunks)
			for i := range reads {
				if c.get(next(i)) {
					hits[j]++
				}
			}
		}
		t.Logf("%-40s S3-FIFO %.1f %%, LRU %.1f %%, SIEVE %.1f %%", trace.name,
			float64(hits[0])*100/reads, float64(hits[1])*100/reads, float64(hits[2])*100/reads)
		if hits[0] < hits[1]*97/100 {
			t.Errorf("%s: fewer hits than LRU has", trace.name)
		}
	}
}
