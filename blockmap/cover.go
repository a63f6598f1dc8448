package blockmap

import (
	"cmp"
	"slices"

	"plinth/internal/id"
)

// coverTrim is a trim as a sweep meets it.
type coverTrim struct {
	trim
	needed bool // it hides something from somebody
}

// cover is the trims over a place that moves on, of rows of trims. Of those
// that all viewers see alike, only the newest over each place counts: nobody
// sees another.
type cover struct {
	all   []coverTrim  // in order of First
	later int          // index of the first that was not reached
	over  []*coverTrim // the place, by rising generation
	end   id.LBA       // the least End of those
	byGen map[id.Gen][]*coverTrim
}

// newCover returns the cover in front of all LBAs. ends are the generations at
// which viewers' views begin or end, rising.
func newCover(rows []trim, ends []id.Gen) *cover {
	alike := map[int][]trim{}
	for _, t := range rows {
		n := countUpTo(ends, t.gen)
		alike[n] = append(alike[n], t)
	}
	c := &cover{byGen: map[id.Gen][]*coverTrim{}}
	for _, of := range alike {
		for _, t := range buildTrims(of) {
			c.all = append(c.all, coverTrim{trim: t})
		}
	}
	slices.SortFunc(c.all, func(a, b coverTrim) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.gen, b.gen))
	})
	for i := range c.all {
		t := &c.all[i]
		c.byGen[t.gen] = append(c.byGen[t.gen], t)
	}
	return c
}

// at returns the trims over an LBA, which is above that of the last call. The
// slice is the cover's.
func (c *cover) at(lba id.LBA) []*coverTrim {
	if len(c.over) > 0 && c.end <= lba {
		c.over = slices.DeleteFunc(c.over, func(t *coverTrim) bool { return t.End <= lba })
		c.end = LBAMax
		for _, t := range c.over {
			c.end = min(c.end, t.End)
		}
	}
	for ; c.later < len(c.all) && c.all[c.later].First <= lba; c.later++ {
		t := &c.all[c.later]
		if t.End <= lba {
			continue
		}
		if len(c.over) == 0 {
			c.end = LBAMax
		}
		c.end = min(c.end, t.End)
		at, _ := slices.BinarySearchFunc(c.over, t.gen, func(o *coverTrim, gen id.Gen) int { return cmp.Compare(o.gen, gen) })
		c.over = slices.Insert(c.over, at, t)
	}
	return c.over
}

// needs reports whether a row of a trim is needed at any LBA.
func (c *cover) needs(row trim) bool {
	of := c.byGen[row.gen] // disjoint and rising
	at, _ := slices.BinarySearchFunc(of, row.First, func(t *coverTrim, lba id.LBA) int {
		if t.End <= lba {
			return -1
		}
		return 1
	})
	for ; at < len(of) && of[at].First < row.End; at++ {
		if of[at].needed {
			return true
		}
	}
	return false
}
