package disk

import (
	"slices"
	"sort"
)

// extent is a half-open run: of chunks in a layer, of bytes in a chunk.
type extent struct{ first, end int64 }

// extents is a set of numbers as sorted, disjoint, not touching runs.
type extents []extent

// find returns the index of the first run that ends above x.
func (s extents) find(x int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].end > x })
}

func (s extents) contains(x int64) bool {
	i := s.find(x)
	return i < len(s) && s[i].first <= x
}

// covers reports whether all of [first, end) is in the set.
func (s extents) covers(first, end int64) bool {
	i := s.find(first)
	return i < len(s) && s[i].first <= first && end <= s[i].end
}

// add puts [first, end) in, merging it with the runs it overlaps or touches.
func (s extents) add(first, end int64) extents {
	if first >= end {
		return s
	}
	i := sort.Search(len(s), func(i int) bool { return s[i].end >= first })
	j := i
	for j < len(s) && s[j].first <= end {
		j++
	}
	if i < j {
		first, end = min(first, s[i].first), max(end, s[j-1].end)
	}
	return slices.Replace(s, i, j, extent{first, end})
}

// split divides s into what lies in other and what does not. Neither s nor
// other changes.
func (s extents) split(other extents) (in, out extents) {
	for _, e := range s {
		for i := other.find(e.first); i < len(other) && other[i].first < e.end; i++ {
			o := other[i]
			if e.first < o.first {
				out = append(out, extent{e.first, o.first})
			}
			in = append(in, extent{max(e.first, o.first), min(e.end, o.end)})
			e.first = min(e.end, o.end)
		}
		if e.first < e.end {
			out = append(out, e)
		}
	}
	return in, out
}
