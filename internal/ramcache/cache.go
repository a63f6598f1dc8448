package ramcache

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"plinth/internal/id"
)

const (
	// PageBytes is what chunks are kept in: the smallest chunk, so that a read
	// of a part of a large one needs no more than that.
	PageBytes = 4 << 10
	// BytesMin is the smallest cache.
	BytesMin = 1 << 20

	shardsMax     = 256
	shardPagesMin = 64 // a shard's small queue must hold some
	memosPerPage  = 2
)

// Cache is a cache of pages with a table for memos. [New] makes one; nil is one
// that keeps nothing.
type Cache struct {
	mem    []byte
	shards []shard // a power of two
	memos  table
	space  atomic.Uint64 // the last given to a Memo
}

// New makes a cache that takes so many bytes of memory, BytesMin at least.
func New(bytes int64) (*Cache, error) {
	if bytes < BytesMin {
		return nil, fmt.Errorf("a RAM cache of %d bytes: it has %d at least", bytes, BytesMin)
	}
	c := &Cache{}
	count := 1
	for count < shardsMax && bytes/PageBytes/int64(2*count) >= shardPagesMin {
		count *= 2
	}
	pages := pagesOf(bytes / int64(count))
	sets := count * pages * memosPerPage / setEntries
	mem, err := unix.Mmap(-1, 0, count*shardBytes(pages)+setsBytes(sets), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for the RAM cache: %w", bytes, err)
	}
	c.mem = mem
	c.shards = make([]shard, count)
	for i := range c.shards {
		c.shards[i].carve(&mem, pages)
	}
	c.memos.sets, c.memos.count = carve[set](&mem, sets), uint64(sets)
	return c, nil
}

// pagesOf returns the number of pages of a shard of so many bytes, with its share
// of the memos.
func pagesOf(bytes int64) int {
	n := int(bytes) / (PageBytes + 44 + memosPerPage*setBytes/setEntries)
	for n > 1 && int64(shardBytes(n)+setsBytes(n*memosPerPage/setEntries)) > bytes {
		n -= max(1, n/1024)
	}
	return n
}

// carve takes n values off the front of mem, which begins at a cache line and does
// so after it. T has no pointers: Go does not look there.
func carve[T any](mem *[]byte, n int) []T {
	if n == 0 {
		return nil
	}
	out := unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(*mem))), n)
	*mem = (*mem)[lined(n*int(unsafe.Sizeof(out[0]))):]
	return out
}

// lined rounds up to cache lines.
func lined(bytes int) int { return (bytes + 63) &^ 63 }

// Close gives the memory back. Later calls find nothing, and put nothing. It may
// be called again.
func (c *Cache) Close() error {
	if c == nil {
		return nil
	}
	for i := range c.shards {
		c.shards[i].close()
	}
	c.memos.close()
	mem := c.mem
	if c.mem = nil; mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// Get fills dst with the bytes of a chunk from byte off on, if all of them are
// here. Dst may be partly written in either case.
func (c *Cache) Get(dst []byte, fp *id.Fingerprint, off int) bool {
	if c == nil {
		return false
	}
	for len(dst) > 0 {
		page, at := off/PageBytes, off%PageBytes
		n := min(len(dst), PageBytes-at)
		h := hash(fp, page)
		if !c.shard(h).get(dst[:n], uint32(h), fp, uint8(page), at) {
			return false
		}
		dst, off = dst[n:], off+n
	}
	return true
}

// Put keeps the plaintext of a chunk, whose length is a multiple of PageBytes and
// at most 256 times as much.
func (c *Cache) Put(fp *id.Fingerprint, plain []byte) {
	for page := 0; c != nil && len(plain) >= PageBytes; page++ {
		h := hash(fp, page)
		c.shard(h).put(plain[:PageBytes], uint32(h), fp, uint8(page))
		plain = plain[PageBytes:]
	}
}

func (c *Cache) shard(h uint64) *shard { return &c.shards[int(h>>32)&(len(c.shards)-1)] }

// hash spreads pages over shards by its upper half and over a shard's table by its
// lower one. Fingerprints are keyed hashes: nobody chooses them.
func hash(fp *id.Fingerprint, page int) uint64 {
	lo, hi := binary.LittleEndian.Uint64(fp[:]), binary.LittleEndian.Uint64(fp[8:])
	return mix(lo ^ mix(hi+uint64(page)))
}

func mix(x uint64) uint64 {
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}

// Stats counts since New.
type Stats struct {
	BytesMax int64  `json:"bytes_max"` // of pages
	Bytes    int64  `json:"bytes"`
	Hits     uint64 `json:"hits"` // pages that were asked for and here
	Misses   uint64 `json:"misses"`
	Puts     uint64 `json:"puts"`
	// MemoHits and MemoMisses count LBAs of which a memo knew, and did not.
	MemoHits   uint64 `json:"memo_hits"`
	MemoMisses uint64 `json:"memo_misses"`
}

// Stats returns the cache's counters.
func (c *Cache) Stats() Stats {
	var out Stats
	if c == nil {
		return out
	}
	for i := range c.shards {
		c.shards[i].tell(&out)
	}
	c.memos.tell(&out)
	return out
}
