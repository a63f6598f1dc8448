package flashcache

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"plinth/internal/id"
)

// Cache is an open cache. [Open] makes one.
type Cache struct {
	dev   *device
	super *superblock
	index *index
	log   *slog.Logger
	fresh bool // was made by this Open: nothing is in it
	// settings do not change; tests set them before the first Put.
	settings settings

	// off is set when the device failed, and by Close.
	off     atomic.Bool
	loading atomic.Bool
	counts  counters
	work    sync.WaitGroup
	wake    chan struct{} // to the writer: a buffer is full, or Close was called
	reading sync.RWMutex  // held by who reads the device, and by Close when it closes that

	// buffers never move; each has its own mu, taken after that of the Cache.
	buffers [buffersCount]buffer

	mu      sync.Mutex
	open    [queues]*buffer
	full    []*buffer // to be written, in order
	idle    []*buffer
	free    []int  // regions to be written next
	seq     uint64 // of the newest region
	credit  int64  // bytes that may be reinserted
	closing bool
	failure error // why the cache is off
	closed  chan struct{}

	// The writer's own:
	queues  [queues][]int // written regions, oldest first
	scratch scratch
}

// Get appends the sealed chunk to dst. It allocates nothing where dst has room for
// it and Slack more, and reads the device at most once. It returns false for
// what is not cached and for what looks wrong; what it returns must be verified
// all the same, and Discard told if it does not. Any number of calls may run at once.
func (c *Cache) Get(fp id.Fingerprint, dst []byte) (sealed []byte, ok bool) {
	if c.off.Load() {
		return dst, false
	}
	k := makeKey(&fp)
	w, ok := c.index.get(k)
	if !ok {
		return dst, false
	}
	n := w.units() * id.Unit
	end := len(dst) + n
	dst = slices.Grow(dst, n+fingerprintBytes)
	offset, region := w.place().offset(), c.super.region(w.place())
	got, buffered := c.copyFrom(dst, region, int(offset-c.super.offset(region)), n+fingerprintBytes)
	if !buffered {
		got = dst[:end+fingerprintBytes]
		if !c.read(got[len(dst):], offset) {
			return dst, false
		}
	}
	// The region may have been evicted meanwhile and written anew: then the index
	// had let go of the chunk before.
	if _, same := c.index.at(k, w.place()); !same {
		c.counts.late.Add(1)
		return dst, false
	}
	if id.Fingerprint(got[end:]) != fp {
		c.counts.strangers.Add(1)
		c.index.remove(k, w.place(), false)
		return dst, false
	}
	return got[:end], true
}

// read reads from the device, which stays open meanwhile.
func (c *Cache) read(p []byte, offset int64) bool {
	c.reading.RLock()
	defer c.reading.RUnlock()
	if c.off.Load() {
		return false
	}
	if _, err := c.dev.file.ReadAt(p, offset); err != nil {
		c.fail("read", err)
		return false
	}
	return true
}

// Put offers a sealed chunk to the cache, which copies it. It never waits for the
// device: where buffers are full, and where the chunk's length is none of a
// sealed chunk, it drops the offer and counts it. A chunk that is there stays as
// it is.
func (c *Cache) Put(fp id.Fingerprint, sealed []byte) {
	if c.off.Load() {
		return
	}
	k := makeKey(&fp)
	there, ghost := c.index.known(k)
	if there {
		c.counts.known.Add(1)
		return
	}
	if len(sealed) == 0 || len(sealed)%id.Unit != 0 || len(sealed) > SealedBytesMax {
		c.counts.dropped.Add(1)
		return
	}
	q := small
	if ghost || c.settings.smallPercent == 0 {
		q = main
	}
	e := entry{fp, len(sealed) / id.Unit}
	b, at, ok := c.reserve(q, e, spareBuffers, e.credit(c.settings.writePercent))
	if !ok {
		c.counts.dropped.Add(1)
		return
	}
	b.fill(at, fp, sealed)
	c.index.put(k, c.wordAt(b, at, e, 0, k))
	b.mu.RUnlock()
	c.counts.put.Add(1)
	c.counts.putBytes.Add(int64(len(sealed)))
}

// wordAt is the index's word for a record in a buffer.
func (c *Cache) wordAt(b *buffer, at int, e entry, freq int, k key) word {
	return makeWord(makePlace(c.super.offset(int(b.region.Load()))+int64(at)), e.units, freq, k.more)
}

// Contains reports whether Get would most likely find the chunk. It counts as
// nothing.
func (c *Cache) Contains(fp id.Fingerprint) bool {
	if c.off.Load() {
		return false
	}
	there, _ := c.index.known(makeKey(&fp))
	return there
}

// Discard forgets a chunk, because what Get returned did not verify.
func (c *Cache) Discard(fp id.Fingerprint) {
	if c.off.Load() {
		return
	}
	c.counts.discarded.Add(1)
	c.index.forget(makeKey(&fp))
}

// fail turns the cache off, because the device did not do what it was asked to.
func (c *Cache) fail(op string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		return
	}
	c.failure = err
	c.off.Store(true)
	c.log.Error("flash cache is off: its device failed", "path", c.dev.path, "op", op, "err", err)
	wake(c.wake)
}

// failed reports whether the device failed.
func (c *Cache) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure != nil
}

// Close writes what is buffered, makes it durable, and ends the Cache's
// goroutine. A second call waits for the first. The error is the device's; the
// next Open is the same whatever it is.
func (c *Cache) Close() error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	c.mu.Unlock()
	if !first {
		<-c.closed
		return nil
	}
	wake(c.wake)
	c.work.Wait()
	c.off.Store(true)
	c.reading.Lock() // after the reads that are under way
	err := c.dev.close()
	c.reading.Unlock()
	close(c.closed)
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.failure, err)
}

// wake sends a signal that need not be sent twice.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
