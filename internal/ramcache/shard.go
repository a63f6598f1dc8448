package ramcache

import (
	"sync"
	"unsafe"

	"plinth/internal/id"
)

const (
	// smallShare of the pages are the small queue.
	smallShare = 10
	// freqMax bounds how often a page may be passed over for having been read.
	freqMax = 3
)

// shard is a share of the pages, in S3-FIFO's queues.
type shard struct {
	mu    sync.Mutex
	data  []byte
	pages []page
	used  uint32 // pages that were ever taken
	// table finds pages: open addressing with linear probing, at most half full;
	// 0 is empty, else the page's number plus 1. Every page in a queue is in it.
	table       []uint32
	small, main queue
	// ghosts are names of pages that left the small queue, by their hash; the
	// newest at each place. One that left longer ago than the main queue is long
	// counts no more.
	ghosts             []ghost
	left               uint32 // pages that have left the small queue so far
	hits, misses, puts uint64
	_                  [64]byte // the next shard's mutex is in another cache line
}

type page struct {
	fp   id.Fingerprint
	page uint8
	freq uint8
}

type ghost struct{ hash, left uint32 }

// shardBytes is the memory of a shard of n pages.
func shardBytes(n int) int {
	return lined(n*PageBytes) + lined(n*int(unsafe.Sizeof(page{}))) + lined(4*tableSize(n)) + 2*lined(4*n) + lined(8*ghostCount(n))
}

func tableSize(n int) int {
	size := 2
	for size < 2*n {
		size *= 2
	}
	return size
}

func ghostCount(n int) int { return tableSize(n) / 2 }

func (s *shard) carve(mem *[]byte, n int) {
	s.data = carve[byte](mem, n*PageBytes)
	s.pages = carve[page](mem, n)
	s.table = carve[uint32](mem, tableSize(n))
	s.small.ring = carve[uint32](mem, n)
	s.main.ring = carve[uint32](mem, n)
	s.ghosts = carve[ghost](mem, ghostCount(n))
}

func (s *shard) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.pages, s.table, s.ghosts, s.used = nil, nil, nil, nil, 0
	s.small, s.main = queue{}, queue{}
}

// get copies a page's bytes from byte at on.
func (s *shard) get(dst []byte, h uint32, fp *id.Fingerprint, part uint8, at int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(h, fp, part)
	if !ok {
		s.misses++
		return false
	}
	s.hits++
	if p := &s.pages[i]; p.freq < freqMax {
		p.freq++
	}
	copy(dst, s.data[int(i)*PageBytes+at:])
	return true
}

// put copies a page in, unless it is here.
func (s *shard) put(plain []byte, h uint32, fp *id.Fingerprint, part uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pages) == 0 {
		return
	}
	if _, ok := s.find(h, fp, part); ok {
		return
	}
	s.puts++
	i := s.room()
	s.pages[i] = page{fp: *fp, page: part}
	copy(s.data[int(i)*PageBytes:][:PageBytes], plain)
	s.enter(h, i)
	g := s.ghosts[int(h)&(len(s.ghosts)-1)]
	if g.hash == h && g.left != 0 && s.left-g.left <= uint32(len(s.pages)) {
		s.main.push(i)
	} else {
		s.small.push(i)
	}
}

// find returns a page's number.
func (s *shard) find(h uint32, fp *id.Fingerprint, part uint8) (uint32, bool) {
	if len(s.table) == 0 {
		return 0, false
	}
	mask := uint32(len(s.table) - 1)
	for at := h & mask; s.table[at] != 0; at = (at + 1) & mask {
		if i := s.table[at] - 1; s.pages[i].page == part && s.pages[i].fp == *fp {
			return i, true
		}
	}
	return 0, false
}

// enter puts page i, which is not there, into the table.
func (s *shard) enter(h, i uint32) {
	mask := uint32(len(s.table) - 1)
	at := h & mask
	for s.table[at] != 0 {
		at = (at + 1) & mask
	}
	s.table[at] = i + 1
}

// remove takes page i out of the table, and closes the gap: pages behind it move
// to where a search that begins at their hash meets no hole. It returns its hash.
func (s *shard) remove(i uint32) uint32 {
	mask := uint32(len(s.table) - 1)
	h := s.hash(i)
	at := h & mask
	for s.table[at] != i+1 {
		at = (at + 1) & mask
	}
	gap := at
	for at = (gap + 1) & mask; s.table[at] != 0; at = (at + 1) & mask {
		if home := s.hash(s.table[at]-1) & mask; (at-home)&mask >= (at-gap)&mask {
			s.table[gap] = s.table[at]
			gap = at
		}
	}
	s.table[gap] = 0
	return h
}

func (s *shard) hash(i uint32) uint32 {
	p := &s.pages[i]
	return uint32(hash(&p.fp, int(p.page)))
}

// room returns a page to fill, which is in no queue.
func (s *shard) room() uint32 {
	if int(s.used) < len(s.pages) {
		s.used++
		return s.used - 1
	}
	for {
		if s.main.n > 0 && int(s.small.n) <= len(s.pages)/smallShare {
			i := s.main.pop()
			if p := &s.pages[i]; p.freq > 0 {
				p.freq--
				s.main.push(i)
				continue
			}
			s.remove(i)
			return i
		}
		i := s.small.pop()
		if p := &s.pages[i]; p.freq > 0 {
			p.freq = 0
			s.main.push(i)
			continue
		}
		if s.left++; s.left == 0 {
			s.left = 1 // 0 is no ghost
		}
		h := s.remove(i)
		s.ghosts[int(h)&(len(s.ghosts)-1)] = ghost{h, s.left}
		return i
	}
}

func (s *shard) tell(out *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out.BytesMax += int64(len(s.pages)) * PageBytes
	out.Bytes += int64(s.used) * PageBytes
	out.Hits += s.hits
	out.Misses += s.misses
	out.Puts += s.puts
}

// queue is a ring of pages, which never holds more than there are.
type queue struct {
	ring     []uint32
	first, n uint32
}

func (q *queue) push(i uint32) {
	at := q.first + q.n
	if at >= uint32(len(q.ring)) {
		at -= uint32(len(q.ring))
	}
	q.ring[at] = i
	q.n++
}

func (q *queue) pop() uint32 {
	i := q.ring[q.first]
	if q.first++; int(q.first) == len(q.ring) {
		q.first = 0
	}
	q.n--
	return i
}
