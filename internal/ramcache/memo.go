package ramcache

import (
	"iter"
	"sync"
	"sync/atomic"
	"unsafe"

	"plinth/internal/id"
)

// Memo remembers what one map says. [Cache.NewMemo] makes one. One whose map is
// gone needs no end: what it knows is never found again and is overwritten.
type Memo struct {
	table *table
	cache *Cache
	// space is part of the key of all that is known; a new one forgets it. None is
	// used twice.
	space atomic.Uint64
	// changes counts the map's changes. It rises after the map has the change and
	// before the entries that it concerns are corrected; Put compares it under the
	// lock of the entry. So an answer of before the change is refused, or it was
	// put before the correction, which finds it.
	changes atomic.Uint64
	used    atomic.Bool // something was ever put
}

// Ticket says as of when a map is asked.
type Ticket struct{ space, changes uint64 }

// NewMemo returns a memo of a map, which knows nothing; of no cache, one that
// learns nothing.
func (c *Cache) NewMemo() *Memo {
	m := &Memo{}
	if c != nil {
		m.table, m.cache = &c.memos, c
		m.space.Store(c.space.Add(1))
	}
	return m
}

// Get returns the fingerprint of what the map has at lba, zero for zeros; false if
// it is not known.
func (m *Memo) Get(lba id.LBA) (id.Fingerprint, bool) {
	if m.table == nil {
		return id.Fingerprint{}, false
	}
	return m.table.get(m.space.Load(), lba)
}

// Each calls f for the LBAs that are known, zeros left out, in no order; what comes
// or goes meanwhile may be missing. It looks at the whole table, and f is called
// under a lock of it.
func (m *Memo) Each(f func(id.LBA)) {
	if m.used.Load() {
		m.table.each(m.space.Load(), f)
	}
}

// Ticket is drawn before the map is asked.
func (m *Memo) Ticket() Ticket { return Ticket{m.space.Load(), m.changes.Load()} }

// Put remembers what the map said at lba, unless it may have changed since the
// ticket was drawn.
func (m *Memo) Put(t Ticket, lba id.LBA, fp *id.Fingerprint) {
	if m.table != nil {
		m.table.put(m, t, lba, fp)
	}
}

// Changed tells what the map says now of LBAs of which it said something else. See
// the package's invariants 2 and 3.
func (m *Memo) Changed(changes iter.Seq2[id.LBA, *id.Fingerprint]) {
	if m.table == nil {
		return
	}
	m.changes.Add(1)
	space := m.space.Load()
	for lba, fp := range changes {
		m.table.correct(space, lba, fp)
	}
}

// Forget tells that the map may say something else now of any LBA.
func (m *Memo) Forget() {
	if m.table != nil {
		m.space.Store(m.cache.space.Add(1))
		m.changes.Add(1)
	}
}

// table is the memory of all memos of a cache: a key has its set, in which it may be
// any entry.
type table struct {
	sets  []set
	count uint64 // of sets, until close
	locks [256]tableLock
}

type tableLock struct {
	mu           sync.Mutex
	hand         uint32
	hits, misses uint64
	_            [40]byte
}

const (
	// setEntries is how many entries a key may have: with half of the table in use
	// a set of 4 has no room for 4 % of the keys, one of 8 for 1 %.
	setEntries = 8
	setBytes   = int(unsafe.Sizeof(set{}))
)

type set [setEntries]entry

// entry is what a memo knows of an LBA; space 0 is none.
type entry struct {
	fp    id.Fingerprint
	space uint64
	// lba's highest bit says that it was read since the hand passed.
	lba uint64
}

const readBit = 1 << 63

func setsBytes(n int) int { return lined(n * setBytes) }

func (t *table) close() {
	for i := range t.locks {
		t.locks[i].mu.Lock()
		defer t.locks[i].mu.Unlock()
	}
	t.sets = nil
}

// lock locks a key's set and returns it. Sets that share a lock lie apart.
func (t *table) lock(space uint64, lba id.LBA) (*tableLock, *set) {
	n := mix(mix(space)+uint64(lba)) >> 32 * t.count >> 32
	l := &t.locks[n%uint64(len(t.locks))]
	l.mu.Lock()
	if t.sets == nil {
		return l, &set{} // closed: finds nothing, and what is put is lost
	}
	return l, &t.sets[n]
}

func (s *set) find(space uint64, lba id.LBA) *entry {
	for i := range s {
		if e := &s[i]; e.space == space && e.lba&^readBit == uint64(lba) {
			return e
		}
	}
	return nil
}

func (t *table) get(space uint64, lba id.LBA) (id.Fingerprint, bool) {
	l, s := t.lock(space, lba)
	defer l.mu.Unlock()
	e := s.find(space, lba)
	if e == nil {
		l.misses++
		return id.Fingerprint{}, false
	}
	l.hits++
	e.lba |= readBit
	return e.fp, true
}

func (t *table) put(m *Memo, tk Ticket, lba id.LBA, fp *id.Fingerprint) {
	l, s := t.lock(tk.space, lba)
	defer l.mu.Unlock()
	if m.changes.Load() != tk.changes {
		return
	}
	e := s.find(tk.space, lba)
	if e == nil {
		e = s.find(0, 0) // never used
	}
	for e == nil {
		l.hand++
		if v := &s[l.hand%setEntries]; v.lba&readBit == 0 {
			e = v
		} else {
			v.lba &^= readBit
		}
	}
	*e = entry{*fp, tk.space, uint64(lba)}
	if !m.used.Load() {
		m.used.Store(true)
	}
}

func (t *table) each(space uint64, f func(id.LBA)) {
	for i := range t.locks {
		t.locks[i].mu.Lock()
		for n := i; n < len(t.sets); n += len(t.locks) {
			for j := range t.sets[n] {
				if e := &t.sets[n][j]; e.space == space && e.fp != (id.Fingerprint{}) {
					f(id.LBA(e.lba &^ readBit))
				}
			}
		}
		t.locks[i].mu.Unlock()
	}
}

func (t *table) correct(space uint64, lba id.LBA, fp *id.Fingerprint) {
	l, s := t.lock(space, lba)
	defer l.mu.Unlock()
	if e := s.find(space, lba); e != nil {
		e.fp = *fp
	}
}

func (t *table) tell(out *Stats) {
	for i := range t.locks {
		l := &t.locks[i]
		l.mu.Lock()
		out.MemoHits += l.hits
		out.MemoMisses += l.misses
		l.mu.Unlock()
	}
}
