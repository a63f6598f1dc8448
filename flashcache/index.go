package flashcache

import (
	"sync"

	"plinth/internal/id"
)

const (
	placeBits = 40
	unitsBits = 13
	freqBits  = 2
	moreBits  = 64 - placeBits - unitsBits - freqBits // of the fingerprint, beside the tag

	freqMax = 1<<freqBits - 1

	// shardBytes of the cache make a shard of the index: a shard of 2 KiB chunks
	// has 64 k entries, so that growing one holds it for less than a millisecond.
	shardBytes = 128 << 20
	shardsMin  = 64 // so that cores seldom meet
	shardsMax  = 1 << 17

	// What the index takes in RAM, for Stats.
	cellBytes        = 12
	ghostBytes       = 1
	shardHeaderBytes = 128
)

// place is where a sealed chunk begins, in units of 16 bytes from the start of
// the cache.
type place uint64

func makePlace(offset int64) place { return place(offset / id.Unit) }

func (p place) offset() int64 { return int64(p) * id.Unit }

// word is what the index says of a chunk: place, length, how often it was got
// since it was placed (up to 3), and 9 bits of its fingerprint. 0 is none.
type word uint64

func makeWord(p place, units int, freq int, more uint16) word {
	return word(p) | word(units)<<placeBits | word(freq)<<(placeBits+unitsBits) | word(more)<<(64-moreBits)
}

func (w word) place() place { return place(w & (1<<placeBits - 1)) }
func (w word) units() int   { return int(w >> placeBits & (1<<unitsBits - 1)) }
func (w word) freq() int    { return int(w >> (placeBits + unitsBits) & freqMax) }
func (w word) more() uint16 { return uint16(w >> (64 - moreBits)) }

func (w word) withFreq(freq int) word {
	return w&^(freqMax<<(placeBits+unitsBits)) | word(freq)<<(placeBits+unitsBits)
}

// cell is an entry of the index, of 12 bytes: 32 bits of the fingerprint and a
// word in halves.
type cell struct{ tag, low, high uint32 }

func (c *cell) word() word { return word(c.high)<<32 | word(c.low) }

func makeCell(tag uint32, w word) cell { return cell{tag, uint32(w), uint32(w >> 32)} }

// key is what the index makes of a fingerprint. Fingerprints are keyed hashes:
// their bits are as good as any hash of them.
type key struct {
	shard uint32
	tag   uint32
	more  uint16
	ghost uint64
}

func makeKey(fp *id.Fingerprint) key {
	return key{le.Uint32(fp[:4]), le.Uint32(fp[4:8]), le.Uint16(fp[8:10]) >> (16 - moreBits), le.Uint64(fp[8:16])}
}

// index maps fingerprints to places. All methods may be called concurrently.
type index struct {
	shards []shard
	mask   uint32
}

func newIndex(g geometry) *index {
	n := shardsMin
	for n < shardsMax && int64(n)*shardBytes < g.bytes {
		n *= 2
	}
	return &index{make([]shard, n), uint32(n - 1)}
}

// shard is a part of the index: an open-addressed table whose cells are in order
// of tags, and the ghosts of what was evicted.
type shard struct {
	mu sync.Mutex
	table
	ghosts []uint8

	hits, misses int64
	_            [32]byte // two shards do not share a cache line
}

func (x *index) lock(k key) *shard {
	s := &x.shards[k.shard&x.mask]
	s.mu.Lock()
	return s
}

// get looks a chunk up for a reader, and counts that.
func (x *index) get(k key) (word, bool) {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c == nil {
		s.misses++
		return 0, false
	}
	s.hits++
	w := c.word()
	if f := w.freq(); f < freqMax {
		*c = makeCell(c.tag, w.withFreq(f+1))
	}
	return w, true
}

// at returns how often the chunk at p was got, if the index has it there.
func (x *index) at(k key, p place) (freq int, ok bool) {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c == nil || c.word().place() != p {
		return 0, false
	}
	return c.word().freq(), true
}

// known reports whether the chunk is there, or else whether it was not long ago.
func (x *index) known(k key) (there, ghost bool) {
	s := x.lock(k)
	defer s.mu.Unlock()
	if s.find(k) != nil {
		return true, false
	}
	return false, s.isGhost(k)
}

// put adds a chunk or says where it is now.
func (x *index) put(k key, w word) {
	s := x.lock(k)
	defer s.mu.Unlock()
	if c := s.find(k); c != nil {
		*c = makeCell(k.tag, w)
		return
	}
	s.add(k, w)
}

// restore adds a chunk that a region's table has, unless newer says that another
// place of it is the right one.
func (x *index) restore(k key, w word, newer func(place) bool) {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c == nil {
		s.add(k, w)
	} else if !newer(c.word().place()) {
		*c = makeCell(k.tag, w)
	}
}

// move changes the place of a chunk that is at from.
func (x *index) move(k key, from place, w word) bool {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c == nil || c.word().place() != from {
		return false
	}
	*c = makeCell(k.tag, w)
	return true
}

// remove takes a chunk out that is at p, and remembers its ghost if asked to.
func (x *index) remove(k key, p place, ghost bool) bool {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c == nil || c.word().place() != p {
		return false
	}
	s.delete(c)
	s.fit()
	if ghost {
		s.addGhost(k)
	}
	return true
}

// forget takes a chunk out, wherever it is.
func (x *index) forget(k key) bool {
	s := x.lock(k)
	defer s.mu.Unlock()
	c := s.find(k)
	if c != nil {
		s.delete(c)
	}
	return c != nil
}

// forgetRange takes out all chunks at places from first to before end. It walks
// the whole index, a shard at a time: for a region whose table is lost.
func (x *index) forgetRange(first, end place) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		for j := 0; j < len(s.cells); {
			if w := s.cells[j].word(); w != 0 && w.place() >= first && w.place() < end {
				s.delete(&s.cells[j]) // another cell may be at j now
			} else {
				j++
			}
		}
		s.mu.Unlock()
	}
}

// clear gives the index's memory back.
func (x *index) clear() {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		s.table, s.ghosts = table{}, nil
		s.mu.Unlock()
	}
}

// add adds a chunk that is not there. The shard is locked.
func (s *shard) add(k key, w word) {
	if s.table.add(k, w) {
		s.refit()
	}
}

// fit makes the table smaller where too little of it is in use.
func (s *shard) fit() {
	if s.sparse() {
		s.table.resize()
		s.refit()
	}
}

// refit gives the ghosts room in proportion to the table; those that there were
// are forgotten.
func (s *shard) refit() { s.ghosts = make([]uint8, len(s.cells)) }

// A ghost is 8 bits of a fingerprint at a place that others of its bits choose: one
// that comes later takes the place of one that was there, and one chunk of 255 is
// taken for a ghost that is none. More ghosts are worth more than better ones.

func (s *shard) isGhost(k key) bool {
	return len(s.ghosts) > 0 && s.ghosts[k.ghostAt(len(s.ghosts))] == k.ghostTag()
}

func (s *shard) addGhost(k key) {
	if len(s.ghosts) > 0 {
		s.ghosts[k.ghostAt(len(s.ghosts))] = k.ghostTag()
	}
}

func (k key) ghostAt(n int) int { return int(uint64(uint32(k.ghost>>16)) * uint64(n) >> 32) }

// ghostTag is never 0, which is no ghost.
func (k key) ghostTag() uint8 { return uint8(max(k.ghost>>56, 1)) }
