package spindle

import (
	"fmt"
	"slices"
)

// extent is a run of blocks of one slab.
type extent struct{ start, n uint32 }

func (e extent) end() uint32 { return e.start + e.n }

// freeMap is the free blocks of one slab: first fit, because the low end of a
// slab then stays dense and its high end stays whole.
type freeMap struct {
	list    []extent // ascending; no two touch
	blocks  uint32   // their sum
	longest uint32   // no extent is longer; may be too high
}

func newFreeMap(e extent) freeMap {
	return freeMap{list: []extent{e}, blocks: e.n, longest: e.n}
}

// take removes the first n blocks that lie together.
func (m *freeMap) take(n uint32) (extent, bool) {
	if n > m.longest {
		return extent{}, false
	}
	longest := uint32(0)
	for i, e := range m.list {
		if e.n >= n {
			return m.cut(i, n), true
		}
		longest = max(longest, e.n)
	}
	m.longest = longest
	return extent{}, false
}

// takeSome removes the first free blocks, at most n of them.
func (m *freeMap) takeSome(n uint32) (extent, bool) {
	if len(m.list) == 0 {
		return extent{}, false
	}
	return m.cut(0, min(n, m.list[0].n)), true
}

// cut removes n blocks from the front of extent i.
func (m *freeMap) cut(i int, n uint32) extent {
	e := extent{m.list[i].start, n}
	m.list[i].start += n
	m.list[i].n -= n
	if m.list[i].n == 0 {
		m.list = slices.Delete(m.list, i, i+1)
	}
	m.blocks -= n
	return e
}

// takeAll removes everything.
func (m *freeMap) takeAll() []extent {
	all := m.list
	*m = freeMap{}
	return all
}

// claim removes exactly e and reports whether all of it was free.
func (m *freeMap) claim(e extent) bool {
	i := m.above(e.start) - 1
	if e.n == 0 || i < 0 || uint64(e.start)+uint64(e.n) > uint64(m.list[i].end()) {
		return false
	}
	whole := m.list[i]
	var rest []extent
	if e.start > whole.start {
		rest = append(rest, extent{whole.start, e.start - whole.start})
	}
	if e.end() < whole.end() {
		rest = append(rest, extent{e.end(), whole.end() - e.end()})
	}
	m.list = slices.Replace(m.list, i, i+1, rest...)
	m.blocks -= e.n
	return true
}

// put gives e back. It panics if part of it is free already: two fragments
// would have shared blocks.
func (m *freeMap) put(e extent) {
	i := m.above(e.start)
	if i > 0 && m.list[i-1].end() > e.start || i < len(m.list) && e.end() > m.list[i].start {
		panic(fmt.Sprintf("blocks %d+%d freed twice", e.start, e.n))
	}
	m.blocks += e.n
	lo, hi := i, i
	if i > 0 && m.list[i-1].end() == e.start {
		lo--
		e = extent{m.list[lo].start, m.list[lo].n + e.n}
	}
	if i < len(m.list) && m.list[i].start == e.end() {
		e.n += m.list[i].n
		hi++
	}
	m.list = slices.Replace(m.list, lo, hi, e)
	m.longest = max(m.longest, e.n)
}

// above returns the number of extents that start at or below block.
func (m *freeMap) above(block uint32) int {
	i, _ := slices.BinarySearchFunc(m.list, block, func(e extent, b uint32) int {
		if e.start <= b {
			return -1
		}
		return 1
	})
	return i
}

// slotMap is which entries of a slab's table are taken. The lowest free one is
// given out, so that opening a slab reads a short table.
type slotMap struct {
	words []uint64 // bit set: taken; grows as needed
	low   int      // no word below it has a free bit
}

func (m *slotMap) take() uint32 {
	for ; m.low < len(m.words); m.low++ {
		if w := m.words[m.low]; ^w != 0 {
			break
		}
	}
	slot := uint32(m.low) * 64
	if m.low < len(m.words) {
		for w := m.words[m.low]; w&1 != 0; w >>= 1 {
			slot++
		}
	}
	m.mark(slot)
	return slot
}

func (m *slotMap) mark(slot uint32) {
	for int(slot/64) >= len(m.words) {
		m.words = append(m.words, 0)
	}
	m.words[slot/64] |= 1 << (slot % 64)
}

func (m *slotMap) put(slot uint32) {
	m.words[slot/64] &^= 1 << (slot % 64)
	m.low = min(m.low, int(slot/64))
}
