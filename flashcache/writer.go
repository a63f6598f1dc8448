package flashcache

import (
	"errors"

	"plinth/internal/id"
)

const (
	// spareBuffers is left idle by Put for what evictions reinsert.
	spareBuffers = 1
	// freeRegions are evicted ahead, one for each queue, so that a buffer can be
	// opened at any time.
	freeRegions = 2
	// creditRegions bounds how much reinsertion can be saved up for.
	creditRegions = 64
)

// settings are what was chosen by measuring (docs/design/flashcache.md).
type settings struct {
	// smallPercent of the regions are small's when the cache is full; with 0 all is
	// main.
	smallPercent int
	// writePercent bounds what is written for what Put takes: reinsertion gets what
	// headers leave of it.
	writePercent int64
	ghosts       bool
}

// A percent of the 120 is left for regions that are written before they are full.
var settingsDefault = settings{smallPercent: 10, writePercent: 119, ghosts: true}

// scratch is what an eviction works with.
type scratch struct {
	tail    []byte // of a region
	records []record
	freqs   []int8
}

// run is the goroutine of a Cache: it loads the index and then writes.
func (c *Cache) run() {
	defer c.work.Done()
	if err := c.load(); err != nil {
		c.fail("load", err)
	}
	c.loading.Store(false) // Put works, or the cache is off
	for {
		for c.wantsFree() && c.evict() {
		}
		b, end := c.next()
		switch {
		case c.failed():
			c.index.clear()
			return
		case b != nil:
			c.write(b)
		case end:
			return
		default:
			<-c.wake
		}
	}
}

// next takes the next buffer to write; when the cache is closing also those that
// are not full. end says that there will be no more.
func (c *Cache) next() (b *buffer, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		c.off.Store(true) // no Put may open another
		for q, b := range c.open {
			if b != nil && b.records > 0 {
				c.full = append(c.full, b)
			}
			c.open[q] = nil
		}
		c.free = nil
	}
	if len(c.full) == 0 {
		return nil, c.closing
	}
	b = c.full[0]
	c.full = c.full[1:]
	return b, false
}

// write makes a region of a buffer: records and table, a sync, and then the
// footer, which the next sync makes durable. So a footer is never of records that
// a loss of power took.
func (c *Cache) write(b *buffer) {
	b.settle()
	region := int(b.region.Load())
	off := c.super.offset(region)
	f := b.footer(c.super.incarnation)
	end := len(b.data) - footerBytes
	clear(b.data[end:])
	table := end - b.records*entryBytes
	n, err := c.writeParts(off, b.data, b.end, table)
	if err == nil {
		err = c.dev.file.SyncData()
	}
	if err == nil {
		_, err = c.dev.file.WriteAt(f.encode(), off+int64(end))
	}
	if err != nil {
		c.fail("write", err)
		return
	}
	c.counts.written.Add(int64(n))
	c.counts.regions[b.queue].Add(1)
	c.queues[b.queue] = append(c.queues[b.queue], region)
	b.retire()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, b)
}

// writeParts writes a region up to end and from table on, at once if little lies
// between.
func (c *Cache) writeParts(off int64, data []byte, end, table int) (int, error) {
	if table-end < pageBytes {
		return c.dev.file.WriteAt(data, off)
	}
	n, err := c.dev.file.WriteAt(data[:end], off)
	if err != nil {
		return n, err
	}
	m, err := c.dev.file.WriteAt(data[table:], off+int64(table))
	return n + m, err
}

// wantsFree reports whether a region should be evicted.
func (c *Cache) wantsFree() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.free) < freeRegions && !c.closing && c.failure == nil
}

// evict frees the oldest region of small, or of main where small is within its
// share.
func (c *Cache) evict() bool {
	q := main
	if len(c.queues[small])*100 > c.super.regions()*c.settings.smallPercent || len(c.queues[main]) == 0 {
		q = small
	}
	if len(c.queues[q]) == 0 {
		return false
	}
	region := c.queues[q][0]
	c.queues[q] = c.queues[q][1:]
	c.counts.regions[q].Add(-1)
	if !c.empty(region, q) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, region)
	return true
}

// empty takes a region's chunks out of the index, reinserts those that are worth
// it, and clears its footer.
func (c *Cache) empty(region int, q queue) bool {
	_, err := c.readTable(region, &c.scratch)
	records := c.scratch.records
	if err != nil {
		if !errors.Is(err, errDamaged) {
			c.fail("read", err)
			return false
		}
		c.counts.damaged.Add(1)
		c.index.forgetRange(makePlace(c.super.offset(region)), makePlace(c.super.offset(region+1)))
		records = nil
	}
	keep := c.choose(records, q)
	for i := range records {
		r := &records[i]
		freq := int(c.scratch.freqs[i])
		if freq < 0 {
			continue // elsewhere by now
		}
		if keep.take(freq, r.cost()) {
			moved, err := c.reinsert(r, max(freq-1, 0))
			if err != nil {
				c.fail("read", err)
				return false
			}
			if moved {
				continue
			}
		}
		k := makeKey(&r.fp)
		if c.index.remove(k, r.at, c.settings.ghosts && (q == small || freq > 0)) {
			c.counts.evicted.Add(1)
		}
	}
	if _, err := c.dev.file.WriteAt(make([]byte, footerBytes), c.super.offset(region+1)-footerBytes); err != nil {
		c.fail("write", err)
		return false
	}
	return true
}

// keep says which records of a region are reinserted: all that were got more than
// level times, and of those got as often as many as left bytes take.
type keep struct {
	level int
	left  int64
}

func (k *keep) take(freq int, bytes int64) bool {
	if freq != k.level {
		return freq > k.level
	}
	ok := bytes <= k.left
	if ok {
		k.left -= bytes
	}
	return ok
}

// choose notes how often each record was got, -1 if the index has it elsewhere,
// and spends the credit on those that were got most.
func (c *Cache) choose(records []record, q queue) keep {
	c.scratch.freqs = c.scratch.freqs[:0]
	var bytes [freqMax + 1]int64
	for i := range records {
		freq, ok := c.index.at(makeKey(&records[i].fp), records[i].at)
		if !ok {
			freq = -1
		} else {
			bytes[freq] += records[i].cost()
		}
		c.scratch.freqs = append(c.scratch.freqs, int8(freq))
	}
	c.mu.Lock()
	left := max(c.credit, 0)
	c.mu.Unlock()
	level := freqMax
	for level > 1 && bytes[level] <= left {
		left -= bytes[level]
		level--
	}
	return keep{level: level, left: left}
}

// reinsert copies a record to main.
func (c *Cache) reinsert(r *record, freq int) (bool, error) {
	b, at, ok := c.reserve(main, r.entry, 0, -r.cost())
	if !ok {
		return false, nil
	}
	defer b.mu.RUnlock()
	n := r.recordBytes()
	p := b.data[at : at+n]
	if _, err := c.dev.file.ReadAt(p, r.at.offset()); err != nil {
		clear(p)
		return false, err
	}
	if id.Fingerprint(p[n-fingerprintBytes:]) != r.fp {
		return false, nil
	}
	c.counts.reinserted.Add(r.cost())
	k := makeKey(&r.fp)
	return c.index.move(k, r.at, c.wordAt(b, at, r.entry, freq, k)), nil
}

// credit is what a chunk that Put takes allows to reinsert: what its own record
// leaves of the amplification.
func (e *entry) credit(writePercent int64) int64 {
	return int64(e.units)*id.Unit*writePercent/100 - e.cost()
}

// cost is what a record takes from a region.
func (e *entry) cost() int64 { return int64(e.recordBytes() + entryBytes) }
