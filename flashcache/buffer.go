package flashcache

import (
	"hash/crc32"
	"sync"
	"sync/atomic"

	"plinth/internal/id"
)

// queue is one of the two orders in which regions are evicted, each first in,
// first out.
type queue uint8

const (
	// small takes chunks that are new: they must be got again before their region
	// leaves it to get into main.
	small queue = iota
	main
	queues
)

// buffersCount is a region open in each queue, and two that are written or wait
// for it: while one is written the next can be filled.
const buffersCount = 4

// buffer is a region in RAM.
type buffer struct {
	// mu is held for reading while bytes are copied in or out, and for writing
	// before the region is written and before the buffer is another one's.
	mu sync.RWMutex
	// region is noRegion while the buffer is idle.
	region atomic.Int64

	// Guarded by Cache.mu while the buffer is open, the writer's afterwards:
	queue   queue
	seq     uint64
	end     int // of the records
	records int

	data []byte // a region; records from its start, the table and the footer at its end
}

const noRegion = -1

// fits reports whether a record of size bytes and its entry have room.
func (b *buffer) fits(size int) bool {
	return b.end+size+(b.records+1)*entryBytes+footerBytes <= len(b.data)
}

// add makes room for a record and returns where. The caller fills it in.
func (b *buffer) add(e entry) (at int) {
	e.put(tableEntry(b.data[:len(b.data)-footerBytes], b.records))
	at = b.end
	b.records++
	b.end += e.recordBytes()
	return at
}

// table returns the entries.
func (b *buffer) table() []byte {
	end := len(b.data) - footerBytes
	return b.data[end-b.records*entryBytes : end]
}

// footer describes the region as it is.
func (b *buffer) footer(incarnation uint64) *footer {
	return &footer{
		incarnation: incarnation, seq: b.seq, region: uint32(b.region.Load()), queue: b.queue, records: b.records,
		tableSum: crc32.Checksum(b.table(), castagnoli),
	}
}

// copyFrom appends bytes of a region to dst while a buffer has it.
func (c *Cache) copyFrom(dst []byte, region, at, n int) ([]byte, bool) {
	for i := range c.buffers {
		b := &c.buffers[i]
		if b.region.Load() != int64(region) {
			continue
		}
		b.mu.RLock()
		there := b.region.Load() == int64(region)
		if there {
			dst = append(dst, b.data[at:at+n]...)
		}
		b.mu.RUnlock()
		if there {
			return dst, true
		}
	}
	return dst, false
}

// reserve takes room for a record in the open buffer of q and adds credit. A new
// buffer is opened only if at least spare others stay idle. It returns with the
// buffer's mu held for reading.
func (c *Cache) reserve(q queue, e entry, spare int, credit int64) (b *buffer, at int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b = c.open[q]
	if b != nil && !b.fits(e.recordBytes()) {
		c.full = append(c.full, b)
		c.open[q] = nil
		b = nil
		wake(c.wake)
	}
	if b == nil {
		if len(c.idle) <= spare || len(c.free) == 0 {
			return nil, 0, false
		}
		b = c.idle[len(c.idle)-1]
		c.idle = c.idle[:len(c.idle)-1]
		c.begin(b, q)
	}
	if !b.fits(e.recordBytes()) {
		return nil, 0, false // longer than a region
	}
	b.mu.RLock()
	c.credit = min(c.credit+credit, creditRegions*int64(c.super.regionBytes))
	return b, b.add(e), true
}

// begin opens an idle buffer for the next free region. c.mu is held.
func (c *Cache) begin(b *buffer, q queue) {
	if b.data == nil {
		b.data = make([]byte, c.super.regionBytes)
	}
	c.seq++
	b.queue, b.seq, b.end, b.records = q, c.seq, 0, 0
	b.region.Store(int64(c.free[0]))
	c.free = c.free[1:]
	c.open[q] = b
	wake(c.wake) // to evict another region
}

// fill writes a record's sealed chunk and fingerprint to where room was reserved.
func (b *buffer) fill(at int, fp id.Fingerprint, sealed []byte) {
	n := copy(b.data[at:], sealed)
	copy(b.data[at+n:], fp[:])
}

// settle waits for who copies into a buffer that is no longer open.
func (b *buffer) settle() {
	b.mu.Lock()
	defer b.mu.Unlock()
}

// retire makes a buffer idle, after who copies out of it.
func (b *buffer) retire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.region.Store(noRegion)
}
