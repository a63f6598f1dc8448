package flashcache

const (
	// cellsMin is where tables start; below cellsSmall they never shrink, since
	// their occupancy varies too much and they cost nothing.
	cellsMin   = 64
	cellsSmall = 4096
	// A table grows when it is fullPercent full, to be at fitPercent, and shrinks
	// there when it is below sparsePercent.
	fullPercent   = 90
	fitPercent    = 86
	sparsePercent = 82
)

// table is a hash table with linear probing whose cells are in order of their
// tags: a search ends at the first greater one, and a resize is one pass. There
// is no wrap: cells behind the last home take what overflows.
type table struct {
	cells []cell
	homes int // cells that a tag may call home
	n     int // in use
}

// home is where the search for a tag begins.
func (t *table) home(tag uint32) int { return int(uint64(tag) * uint64(t.homes) >> 32) }

// find returns the cell of a key, or nil.
func (t *table) find(k key) *cell {
	if t.n == 0 {
		return nil
	}
	for i := t.home(k.tag); i < len(t.cells); i++ {
		c := &t.cells[i]
		w := c.word()
		if w == 0 || c.tag > k.tag {
			return nil
		}
		if c.tag == k.tag && w.more() == k.more {
			return c
		}
	}
	return nil
}

// add puts in a key that is not there. It reports whether the table had to be
// made anew.
func (t *table) add(k key, w word) (resized bool) {
	if t.n*100 >= t.homes*fullPercent {
		t.resize()
		resized = true
	}
	for !t.insert(makeCell(k.tag, w)) {
		t.resize()
		resized = true
	}
	t.n++
	return resized
}

// insert shifts greater cells up to the next free one. It reports false where
// there is none.
func (t *table) insert(c cell) bool {
	i := t.home(c.tag)
	for i < len(t.cells) && t.cells[i].word() != 0 && t.cells[i].tag <= c.tag {
		i++
	}
	free := i
	for free < len(t.cells) && t.cells[free].word() != 0 {
		free++
	}
	if free == len(t.cells) {
		return false
	}
	copy(t.cells[i+1:free+1], t.cells[i:free])
	t.cells[i] = c
	return true
}

// delete empties a cell of the table and moves back those that it had displaced.
func (t *table) delete(c *cell) {
	i := t.home(c.tag)
	for &t.cells[i] != c {
		i++
	}
	end := i + 1
	for end < len(t.cells) && t.cells[end].word() != 0 && t.home(t.cells[end].tag) < end {
		end++
	}
	copy(t.cells[i:], t.cells[i+1:end])
	t.cells[end-1] = cell{}
	t.n--
}

func (t *table) sparse() bool { return t.homes > cellsSmall && t.n*100 < t.homes*sparsePercent }

// resize makes the table fit what is in it and one more.
func (t *table) resize() {
	homes := max((t.n+1)*100/fitPercent, cellsMin)
	if homes == t.homes { // it overflowed at the end
		homes += homes / 8
	}
	for !t.rebuild(homes) {
		homes += homes / 8
	}
}

// rebuild gives the table so many homes. It reports false where the cells do not
// fit.
func (t *table) rebuild(homes int) bool {
	to := table{cells: make([]cell, homes+overflowCells(homes)), homes: homes, n: t.n}
	next := 0
	for _, c := range t.cells {
		if c.word() == 0 {
			continue
		}
		next = max(next, to.home(c.tag))
		if next == len(to.cells) {
			return false
		}
		to.cells[next] = c
		next++
	}
	*t = to
	return true
}

// overflowCells is room behind the last home, for the longest run that chance
// makes at fullPercent. A table that needs more is resized.
func overflowCells(homes int) int { return min(homes/4, 256) }
