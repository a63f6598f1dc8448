package blockmap

import (
	"iter"
	"sync"
	"sync/atomic"
	"unsafe"

	"plinth/internal/id"
)

const (
	// runBits: entries are remembered in runs of 8 LBAs, 32 KiB of 4 KiB chunks.
	runBits = 3
	runLBAs = 1 << runBits
	// entriesShare of a cache, one byte in so many, is for entries.
	entriesShare = 4
	// dropsMax is how many LBAs a batch's trims may cover before it is quicker to
	// forget the whole map than to look for each: 64 MiB of such chunks.
	dropsMax = 1 << 14
)

// entries remembers what the maps of a host showed, or were given, of LBAs: a look-up
// there needs no table, and costs the same whatever else is in the map. Each run has
// one place, and of those that want it the last one has it.
type entries struct {
	runs   []run // a power of two
	owners atomic.Uint64
}

// run is some of runLBAs entries of a map.
type run struct {
	mu      sync.Mutex
	owner   uint64
	number  id.LBA
	known   uint8 // which entries are known, a bit each
	entries [runLBAs]Entry
}

// newEntries returns entries that take so many bytes at most, but for one run.
func newEntries(bytes int64) *entries {
	n := int64(1)
	for 2*n*int64(unsafe.Sizeof(run{})) <= bytes {
		n *= 2
	}
	return &entries{runs: make([]run, n)}
}

func (e *entries) bytes() int64 { return int64(len(e.runs)) * int64(unsafe.Sizeof(run{})) }

// at returns the place of a run. Those that follow each other lie so.
func (e *entries) at(owner uint64, number id.LBA) *run {
	const spread = 0x9e3779b97f4a7c15 // 2^64 by the golden ratio: owners lie apart
	return &e.runs[(uint64(number)+owner*spread>>16)&uint64(len(e.runs)-1)]
}

// is reports whether this is the place of a run's entries. r.mu is held.
func (r *run) is(owner uint64, number id.LBA) bool { return r.owner == owner && r.number == number }

// take gives the place to a run. r.mu is held.
func (r *run) take(owner uint64, number id.LBA) {
	if !r.is(owner, number) {
		r.owner, r.number, r.known = owner, number, 0
	}
}

// recent is what entries have of one map.
type recent struct {
	entries *entries
	owner   atomic.Uint64 // stands for the map; with a new one all is forgotten
	// changes counts the map's changes, at their beginning and at their end: it is odd
	// while one is under way. Nothing is got then, and nothing learnt that was read
	// then or before.
	changes atomic.Uint64
}

func newRecent(e *entries) *recent {
	r := &recent{entries: e}
	r.forget()
	return r
}

func (r *recent) forget() { r.owner.Store(r.entries.owners.Add(1)) }

// part is entries from to to of a run.
type part struct {
	number   id.LBA
	from, to int
}

func (p part) first() id.LBA { return p.number<<runBits + id.LBA(p.from) }
func (p part) mask() uint8   { return uint8(1<<p.to - 1<<p.from) }

// parts yields the LBAs from first to end by runs.
func parts(first, end id.LBA) iter.Seq[part] {
	return func(yield func(part) bool) {
		for first < end {
			p := part{number: first >> runBits, from: int(first % runLBAs)}
			p.to = int(min(runLBAs, id.LBA(p.from)+end-first))
			if !yield(p) {
				return
			}
			first += id.LBA(p.to - p.from)
		}
	}
}

// get fills out with the entries of first, first+1, … as of one instant, if it knows
// them all. Else out is undefined, and changes is for learn.
func (r *recent) get(first id.LBA, out []Entry) (changes uint64, ok bool) {
	if changes = r.changes.Load(); changes%2 != 0 {
		return changes, false
	}
	owner := r.owner.Load()
	for p := range parts(first, first+id.LBA(len(out))) {
		at := r.entries.at(owner, p.number)
		at.mu.Lock()
		known := at.is(owner, p.number) && at.known&p.mask() == p.mask()
		if known {
			copy(out[p.first()-first:], at.entries[p.from:p.to])
		}
		at.mu.Unlock()
		if !known {
			return changes, false
		}
	}
	return changes, r.changes.Load() == changes
}

// learn notes what the map showed, read since get returned changes. A change that
// begins when it has been noted corrects it.
func (r *recent) learn(changes uint64, first id.LBA, shown []Entry) {
	owner := r.owner.Load()
	for p := range parts(first, first+id.LBA(len(shown))) {
		at := r.entries.at(owner, p.number)
		at.mu.Lock()
		if changes%2 == 0 && r.changes.Load() == changes {
			at.take(owner, p.number)
			copy(at.entries[p.from:p.to], shown[p.first()-first:])
			at.known |= p.mask()
		}
		at.mu.Unlock()
	}
}

// begin is called before a batch is taken, with end to follow. One at a time.
func (r *recent) begin() { r.changes.Add(1) }

// end corrects what a batch has changed, or, if it failed, may have.
func (r *recent) end(b *Batch, failed bool) {
	defer r.changes.Add(1)
	if failed {
		r.forget()
		return
	}
	trimmed := id.LBA(0)
	for _, t := range b.Trims {
		trimmed += t.End - t.First
	}
	if trimmed > dropsMax || b.Mark.Rollback != 0 {
		r.forget()
	} else {
		for _, t := range b.Trims {
			r.drop(t.First, t.End)
		}
	}
	for i := range b.Updates {
		r.put(&b.Updates[i])
	}
	for i := range b.Patches {
		r.drop(b.Patches[i].LBA, b.Patches[i].LBA+1)
	}
}

func (r *recent) put(u *Update) {
	owner, number := r.owner.Load(), u.LBA>>runBits
	at := r.entries.at(owner, number)
	at.mu.Lock()
	defer at.mu.Unlock()
	at.take(owner, number)
	e := &at.entries[u.LBA%runLBAs]
	if *e = u.Entry; e.Zero() {
		*e = Entry{} // as the map shows it
	}
	at.known |= 1 << (u.LBA % runLBAs)
}

func (r *recent) drop(first, end id.LBA) {
	owner := r.owner.Load()
	for p := range parts(first, end) {
		at := r.entries.at(owner, p.number)
		at.mu.Lock()
		if at.is(owner, p.number) {
			at.known &^= p.mask()
		}
		at.mu.Unlock()
	}
}
