package stripe

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"plinth/internal/id"
)

const (
	// combinationsMax: up to so many, every set of k+m spindles is a layout.
	combinationsMax = 512
	// selectionLists is how many sets are drawn when there are more.
	selectionLists = 256
	// rotationsMax: up to so many lists, every set is used once per rotation,
	// so that each spindle has each role exactly equally often.
	rotationsMax = 1024
	// lossesMax bounds the sets of failed spindles that a selection is tested
	// against. Beyond it (12 of 64 spindles, 4 lost) a set of failed spindles
	// leaves so many combinations that a drawn selection has one of them.
	lossesMax = 1 << 17
)

// MakeLayouts returns layouts of g over the given spindles, which are distinct:
// all combinations of k+m of them where these are at most 512, a balanced
// selection otherwise. Each spindle is in equally many layouts and has each role
// in equally many, as far as numbers allow. After the loss of any m spindles
// some layout has none of them, where the spindles suffice and LayoutsMax
// allows. The same arguments give the same layouts.
func MakeLayouts(g Geometry, spindles []id.Spindle, version uint64) (*Layouts, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	n, width := len(spindles), g.Width()
	if n < width {
		return nil, fmt.Errorf("geometry %s needs %d spindles, there are %d", g, width, n)
	}
	// A fixed seed: chance only has to be fair, and reproducible.
	rng := rand.New(rand.NewPCG(1, 2))
	var sets [][]int
	if binomial(n, width, combinationsMax) <= combinationsMax {
		sets = combinations(n, width)
	} else {
		sets = selection(rng, n, width)
		sets = coverLosses(rng, sets, n, width, g.M)
	}
	// Shuffled, so that writers who go through the layouts in order do not load
	// the same spindles many times in a row.
	rng.Shuffle(len(sets), func(i, j int) { sets[i], sets[j] = sets[j], sets[i] })

	lists := assignRoles(sets, n, width)
	l := &Layouts{Version: version, Geometry: g}
	for _, list := range lists {
		out := make([]id.Spindle, width)
		for role, member := range list {
			out[role] = spindles[member]
		}
		l.Lists = append(l.Lists, out)
	}
	return l, l.Validate()
}

// binomial returns n choose k, or some number above limit.
func binomial(n, k, limit int) int {
	k = min(k, n-k)
	c := 1
	for i := 1; i <= k; i++ {
		c = c * (n - k + i) / i // exact: a binomial at every step
		if c > limit {
			return limit + 1
		}
	}
	return c
}

// combinations returns all sets of size numbers below n, in order.
func combinations(n, size int) [][]int {
	var all [][]int
	eachCombination(n, size, func(c []int) bool {
		all = append(all, slices.Clone(c))
		return true
	})
	return all
}

// eachCombination calls f with every set of size numbers below n, ascending,
// until it reports false. f does not keep its argument.
func eachCombination(n, size int, f func([]int) bool) {
	c := make([]int, size)
	for i := range c {
		c[i] = i
	}
	for {
		if !f(c) {
			return
		}
		i := size - 1
		for i >= 0 && c[i] == n-size+i {
			i--
		}
		if i < 0 {
			return
		}
		c[i]++
		for j := i + 1; j < size; j++ {
			c[j] = c[j-1] + 1
		}
	}
}

// selection draws sets that take the least used members each time, chosen by
// lot among equals: each member is in as many sets as any other, or one more.
func selection(rng *rand.Rand, n, width int) [][]int {
	uses := make([]int, n)
	sets := make([][]int, selectionLists)
	for i := range sets {
		sets[i] = leastUsed(uses, rng.Perm(n), width)
		for _, member := range sets[i] {
			uses[member]++
		}
	}
	return sets
}

// leastUsed returns the width least used of members, of equals the first, and
// reorders members.
func leastUsed(uses, members []int, width int) []int {
	slices.SortStableFunc(members, func(a, b int) int { return uses[a] - uses[b] })
	return members[:width:width]
}

// coverLosses adds sets until the loss of any m members leaves one whole.
func coverLosses(rng *rand.Rand, sets [][]int, n, width, m int) [][]int {
	if n-m < width || binomial(n, m, lossesMax) > lossesMax {
		return sets
	}
	uses := make([]int, n)
	hit := make([][LayoutsMax / 64]uint64, n) // per member: the sets it is in
	note := func(i int) {
		for _, member := range sets[i] {
			uses[member]++
			hit[member][i/64] |= 1 << (i % 64)
		}
	}
	for i := range sets {
		note(i)
	}
	eachCombination(n, m, func(lost []int) bool {
		var all [LayoutsMax / 64]uint64
		for _, member := range lost {
			for w := range all {
				all[w] |= hit[member][w]
			}
		}
		for i := range sets {
			if all[i/64]&(1<<(i%64)) == 0 {
				return true
			}
		}
		rest := slices.DeleteFunc(rng.Perm(n), func(member int) bool { return slices.Contains(lost, member) })
		sets = append(sets, leastUsed(uses, rest, width))
		note(len(sets) - 1)
		return len(sets) < LayoutsMax
	})
	return sets
}

// assignRoles turns sets into lists, whose order says who holds which fragment.
func assignRoles(sets [][]int, n, width int) [][]int {
	var lists [][]int
	if len(sets)*width <= rotationsMax {
		for r := range width {
			for _, set := range sets {
				lists = append(lists, slices.Concat(set[r:], set[:r]))
			}
		}
		return lists
	}
	return oneEach(sets, n, width)
}

// oneEach turns each set into one list, so that members have roles equally often.
func oneEach(sets [][]int, n, width int) [][]int {
	var lists [][]int
	// Each role goes to the member that had it least often,
	// and another role chooses first each time.
	counts := make([][]int, width) // by role, by member
	for role := range counts {
		counts[role] = make([]int, n)
	}
	for i, set := range sets {
		rest := slices.Clone(set)
		list := make([]int, width)
		for j := range width {
			role := (i + j) % width
			best := 0
			for at, member := range rest {
				if counts[role][member] < counts[role][rest[best]] {
					best = at
				}
			}
			list[role] = rest[best]
			counts[role][rest[best]]++
			rest = slices.Delete(rest, best, best+1)
		}
		lists = append(lists, list)
	}
	return lists
}
