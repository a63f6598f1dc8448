package blockmap

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plinth/internal/id"
)

const (
	// regionBits: a region is 2^14 LBAs, 64 MiB of 4 KiB chunks.
	regionBits = 14
	// regionsBits: 2^20 regions, 64 TiB of such chunks, in two times 128 KiB.
	regionsBits = 20
	// To learn of holes takes askTime and one step more, of askRows and of what Pebble
	// has of deleted rows in so many regions: askRegions at first, which doubles.
	askTime       = 50 * time.Microsecond
	askRegions    = 16
	askRegionsMax = 256
	askRows       = 256
)

// holes remembers regions in which a map shows nothing: a look-up there needs no
// table. What it knows is true but while an Apply that changes it is under way.
type holes struct {
	bits  uint // of a region: regionBits, but in tests
	known atomic.Pointer[regions]

	mu      sync.Mutex // of who changes known
	changes uint64     // of the map, as in recent
}

// regions is made when something is learnt.
type regions struct {
	empty regionSet
	asked regionSet // there is no use in asking: it is empty, or something was there
}

// show reports that the map is known to show nothing in n LBAs, at least one.
func (h *holes) show(first id.LBA, n int) bool {
	known := h.known.Load()
	if known == nil {
		return false
	}
	for r := first >> h.bits; r <= (first+id.LBA(n)-1)>>h.bits; r++ {
		if !known.empty.has(r) {
			return false
		}
	}
	return true
}

// ask returns the first LBA of lba's region, if it should be learnt whether it is
// empty, and what the map's changes are. It does so once.
func (h *holes) ask(lba id.LBA) (first id.LBA, changes uint64, ok bool) {
	r := lba >> h.bits
	if known := h.known.Load(); r >= 1<<regionsBits || known != nil && known.asked.has(r) {
		return 0, 0, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.make().asked.set(r, r+1, true)
	return r << h.bits, h.changes, true
}

// make returns what is known. h.mu is held.
func (h *holes) make() *regions {
	if h.known.Load() == nil {
		h.known.Store(new(regions))
	}
	return h.known.Load()
}

// learn notes that the map showed nothing from first to end when there were that
// many changes.
func (h *holes) learn(changes uint64, first, end id.LBA) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changes == changes {
		h.emptied(first, end)
	}
}

// emptied notes that nothing is shown from first to end. h.mu is held.
func (h *holes) emptied(first, end id.LBA) {
	from, to := (first+1<<h.bits-1)>>h.bits, end>>h.bits
	known := h.make()
	known.empty.set(from, to, true)
	known.asked.set(from, to, true)
}

// changed corrects what a batch has changed.
func (h *holes) changed(b *Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes++
	if b.Mark.Rollback != 0 {
		h.known.Store(nil)
	}
	known := h.known.Load()
	if len(b.Trims) > 0 {
		known = h.make()
	}
	if known == nil {
		return // and whoever is about to learn is refused
	}
	// What a batch puts is above its trims, and must not seem to be empty meanwhile.
	puts := slices.ContainsFunc(b.Updates, func(u Update) bool { return !u.Zero() })
	for _, t := range b.Trims {
		if puts {
			known.asked.set(t.First>>h.bits, t.End>>h.bits, false)
		} else {
			h.emptied(t.First, t.End)
		}
	}
	for i := range b.Updates {
		if u := &b.Updates[i]; !u.Zero() {
			r := u.LBA >> h.bits
			known.empty.set(r, r+1, false)
			known.asked.set(r, r+1, true)
		}
	}
}

// learnHoles looks, where that is worth it, whether the regions from lba's on are
// empty. What cannot be read is not learnt.
func (m *Map) learnHoles(lba id.LBA) {
	first, changes, ok := m.holes.ask(lba)
	start := time.Now()
	for n := id.LBA(askRegions); ok; n = min(2*n, askRegionsMax) {
		end := first + n<<m.holes.bits
		c, err := m.cursor(first, end)
		if err != nil {
			return
		}
		c.rows = askRows
		at := c.reached(c.next())
		if c.close() != nil {
			return
		}
		m.holes.learn(changes, first, at)
		if at < end || time.Since(start) > askTime {
			return
		}
		first, changes, ok = m.holes.ask(end)
	}
}

// regionSet is a set of regions.
type regionSet [1 << regionsBits / 64]atomic.Uint64

// has reports whether the set has a region.
func (s *regionSet) has(r id.LBA) bool {
	return r < 1<<regionsBits && s[r/64].Load()&(1<<(r%64)) != 0
}

// set puts regions from first to end into the set, or takes them out.
func (s *regionSet) set(first, end id.LBA, in bool) {
	for end = min(end, 1<<regionsBits); first < end; {
		mask := ^uint64(0) << (first % 64)
		if last := first | 63; last >= end {
			mask &= 1<<(end%64) - 1
		}
		if word := &s[first/64]; in && word.Load()&mask != mask {
			word.Or(mask)
		} else if !in && word.Load()&mask != 0 {
			word.And(^mask)
		}
		first = first&^63 + 64
	}
}
