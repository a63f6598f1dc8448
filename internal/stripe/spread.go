package stripe

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"plinth/internal/id"
)

const (
	// spreadLists is how many layouts are drawn over all nodes, withoutLists how many
	// without each.
	spreadLists  = 512
	withoutLists = 64
)

// MakeSpreadLayouts returns layouts of g over the spindles of several nodes, which are
// distinct: no node has more than m of a stripe, so that the loss of one loses
// nothing. Without each node there are some too: where the others are too few for
// that, these are spare, and hold as few on one node as they can. Each spindle is in
// about equally many and has each role about equally often. The same arguments give
// the same layouts.
func MakeSpreadLayouts(g Geometry, nodes [][]id.Spindle, version uint64) (*Layouts, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	d := drawer{rng: rand.New(rand.NewPCG(1, 3)), width: g.Width()}
	var spindles []id.Spindle
	for n, of := range nodes {
		for range of {
			d.nodes = append(d.nodes, n)
		}
		spindles = append(spindles, of...)
	}
	if len(nodes)*(withoutLists)+spreadLists > LayoutsMax {
		return nil, fmt.Errorf("%d nodes: at most %d", len(nodes), (LayoutsMax-spreadLists)/withoutLists)
	}
	d.uses = make([]int, len(spindles))
	usual := d.draw(spreadLists, g.M, -1)
	if usual == nil {
		return nil, fmt.Errorf("geometry %s with at most %d of a stripe on one node needs more nodes or spindles than %d with %d", g, g.M, len(nodes), len(spindles))
	}
	var spare [][]int
	for n := range nodes {
		if sets := d.draw(withoutLists, g.M, n); sets != nil {
			usual = append(usual, sets...)
			continue
		}
		for most := g.M + 1; most <= d.width; most++ {
			if sets := d.draw(withoutLists, most, n); sets != nil {
				spare = append(spare, sets...)
				break
			}
		}
	}
	d.rng.Shuffle(len(usual), func(i, j int) { usual[i], usual[j] = usual[j], usual[i] })
	l := &Layouts{Version: version, Geometry: g}
	if len(spare) > 0 {
		l.Kinds = slices.Concat(make([]Kind, len(usual)), slices.Repeat([]Kind{Spare}, len(spare)))
	}
	for _, sets := range [][][]int{usual, spare} {
		for _, list := range oneEach(sets, len(spindles), d.width) {
			out := make([]id.Spindle, d.width)
			for role, member := range list {
				out[role] = spindles[member]
			}
			l.Lists = append(l.Lists, out)
		}
	}
	return l, l.Validate()
}

// drawer draws sets of spindles.
type drawer struct {
	rng   *rand.Rand
	width int
	nodes []int // by spindle
	uses  []int
}

// draw returns sets with at most so many spindles on a node and none on another one,
// the least used each time; nil if there are none.
func (d *drawer) draw(count, most, without int) [][]int {
	var sets [][]int
	for range count {
		members := d.rng.Perm(len(d.nodes))
		slices.SortStableFunc(members, func(a, b int) int { return d.uses[a] - d.uses[b] })
		on := make(map[int]int)
		var set []int
		for _, m := range members {
			if n := d.nodes[m]; n != without && on[n] < most && len(set) < d.width {
				on[n]++
				set = append(set, m)
			}
		}
		if len(set) < d.width {
			return nil
		}
		for _, m := range set {
			d.uses[m]++
		}
		sets = append(sets, set)
	}
	return sets
}
