package flashcache

import "sync/atomic"

// counters are what the Cache counts; hits and misses are in the index's shards.
type counters struct {
	put, putBytes, known, dropped atomic.Int64
	late, strangers               atomic.Int64
	evicted, reinserted, written  atomic.Int64
	discarded, damaged            atomic.Int64
	regions                       [queues]atomic.Int64
}

// Stats is what a Cache has and did since Open.
type Stats struct {
	CapacityBytes int64 `json:"capacity_bytes"`
	// UsedBytes is what regions take that are written.
	UsedBytes int64 `json:"used_bytes"`
	Chunks    int64 `json:"chunks"`
	// IndexBytes of RAM are the index's, BufferBytes those of regions not yet
	// written.
	IndexBytes  int64 `json:"index_bytes"`
	BufferBytes int64 `json:"buffer_bytes"`

	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	// Puts are the chunks that were taken, of PutBytes. Known were there already,
	// Dropped not taken because buffers were full or the index was being loaded.
	Puts     int64 `json:"puts"`
	PutBytes int64 `json:"put_bytes"`
	Known    int64 `json:"known"`
	Dropped  int64 `json:"dropped"`
	// Evicted chunks left; ReinsertedBytes were written again instead.
	// WrittenBytes is all that went to the device.
	Evicted         int64 `json:"evicted"`
	ReinsertedBytes int64 `json:"reinserted_bytes"`
	WrittenBytes    int64 `json:"written_bytes"`
	// Discarded chunks did not verify. Damaged counts records and tables of regions
	// that were not what the index took them for.
	Discarded int64 `json:"discarded"`
	Damaged   int64 `json:"damaged"`

	// Loading: what was cached before Open is still being found.
	Loading bool `json:"loading"`
	// Failure is why the cache is off, or empty.
	Failure string `json:"failure,omitempty"`
}

// Stats returns the counters. They need not be of one instant.
func (c *Cache) Stats() Stats {
	n := &c.counts
	s := Stats{
		CapacityBytes: int64(c.super.regions()) * int64(c.super.regionBytes),
		UsedBytes:     (n.regions[small].Load() + n.regions[main].Load()) * int64(c.super.regionBytes),
		Puts:          n.put.Load(), PutBytes: n.putBytes.Load(), Known: n.known.Load(), Dropped: n.dropped.Load(),
		Evicted: n.evicted.Load(), ReinsertedBytes: n.reinserted.Load(), WrittenBytes: n.written.Load(),
		Discarded: n.discarded.Load(), Damaged: n.damaged.Load() + n.strangers.Load(),
		Loading: c.loading.Load(),
	}
	c.index.stats(&s)
	none := n.late.Load() + n.strangers.Load() // the index had them, and Get did not return them
	s.Hits, s.Misses = s.Hits-none, s.Misses+none
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.buffers {
		s.BufferBytes += int64(len(c.buffers[i].data))
	}
	if c.failure != nil {
		s.Failure = c.failure.Error()
	}
	return s
}

// stats adds up the shards.
func (x *index) stats(s *Stats) {
	for i := range x.shards {
		sh := &x.shards[i]
		sh.mu.Lock()
		s.Chunks += int64(sh.n)
		s.IndexBytes += int64(len(sh.cells))*cellBytes + int64(len(sh.ghosts))*ghostBytes + shardHeaderBytes
		s.Hits += sh.hits
		s.Misses += sh.misses
		sh.mu.Unlock()
	}
}
