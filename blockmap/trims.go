package blockmap

import (
	"slices"
	"sort"

	"plinth/internal/id"
)

// trims is an index of the trims that a view shows: disjoint, in rising order,
// each with the newest generation that covers it. What overlaps collapses when
// it is inserted, so a look-up costs the same however many trims there were. A
// value is immutable: readers keep it while a newer one takes its place.
//
// An insertion copies the index. Large trims are rare, and 10,000 that do not
// touch cost 240 KB.
type trims []trim

// gen returns the newest generation of a trim over lba; 0 hides nothing.
func (x trims) gen(lba id.LBA) id.Gen {
	i := x.after(lba)
	if i == len(x) || x[i].First > lba {
		return 0
	}
	return x[i].gen
}

// after returns the index of the first trim that ends after lba.
func (x trims) after(lba id.LBA) int {
	return sort.Search(len(x), func(i int) bool { return x[i].End > lba })
}

// insert returns the index with t, whose generation is at least that of every
// trim in it.
func (x trims) insert(t trim) trims {
	from := x.after(t.First)
	to := from
	for to < len(x) && x[to].First < t.End {
		to++
	}
	out := make(trims, 0, len(x)+2)
	out = append(out, x[:from]...)
	if from < to && x[from].First < t.First {
		left := x[from]
		left.End = t.First
		out = append(out, left)
	}
	out = append(out, t)
	if from < to && x[to-1].End > t.End {
		right := x[to-1]
		right.First = t.End
		out = append(out, right)
	}
	return append(out, x[to:]...)
}

// buildTrims returns the index of rows in any order, as if they were inserted by
// rising generation, in O(n log n): it sweeps over their borders with a heap of
// the trims that cover the place.
func buildTrims(rows []trim) trims {
	slices.SortFunc(rows, func(a, b trim) int {
		if a.First < b.First {
			return -1
		}
		if a.First > b.First {
			return 1
		}
		return 0
	})
	var out trims
	var open trimHeap
	at := id.LBA(0)
	for len(rows) > 0 || len(open) > 0 {
		if len(open) == 0 {
			at = rows[0].First
		}
		for len(rows) > 0 && rows[0].First <= at {
			open.push(rows[0])
			rows = rows[1:]
		}
		top := open[0]
		if top.End <= at {
			open.pop()
			continue
		}
		end := top.End
		if len(rows) > 0 {
			end = min(end, rows[0].First)
		}
		if n := len(out); n > 0 && out[n-1].End == at && out[n-1].gen == top.gen {
			out[n-1].End = end
		} else {
			out = append(out, trim{Extent{at, end}, top.gen})
		}
		at = end
	}
	return out
}

// trimHeap has the newest generation on top.
type trimHeap []trim

func (h *trimHeap) push(t trim) {
	*h = append(*h, t)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up].gen >= s[i].gen {
			return
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

func (h *trimHeap) pop() {
	s := *h
	n := len(s) - 1
	s[0] = s[n]
	s = s[:n]
	*h = s
	for i := 0; ; {
		child := 2*i + 1
		if child >= n {
			return
		}
		if child+1 < n && s[child+1].gen > s[child].gen {
			child++
		}
		if s[i].gen >= s[child].gen {
			return
		}
		s[i], s[child] = s[child], s[i]
		i = child
	}
}
