package stripe

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/internal/id"
)

// grown is a pool whose nodes come and go, for TestSimLayoutsGrow.
type grown struct {
	*testing.T
	*Layouts
	each   int
	leaves map[id.Node]bool
	gone   map[id.Node]bool
	nodes  int
}

func (g *grown) of(s id.Spindle) (id.Node, bool) {
	n := id.Node(int(s) / g.each)
	return n, g.leaves[n]
}

// in are the spindles of the nodes that take new segments.
func (g *grown) in() (all [][]id.Spindle) {
	for n, of := range nodesOf(g.nodes, g.each) {
		if !g.leaves[id.Node(n)] && !g.gone[id.Node(n)] {
			all = append(all, of)
		}
	}
	return all
}

// empty says of some lists that nothing lies there.
func (g *grown) empty(l id.Layout) bool { return (uint64(l)+g.Version)%3 > 0 }

// takes makes l the layouts. Every list keeps its spindles unless nothing lay there.
func (g *grown) takes(l *Layouts, err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
	if l.Version != g.Version+1 {
		g.Fatalf("version %d follows %d", l.Version, g.Version)
	}
	for n, list := range g.Lists {
		switch k := g.Kind(id.Layout(n)); {
		case k == Free, k == Coming, k == ComingSpare, g.empty(id.Layout(n)) && k != Usual && k != Spare:
			continue
		}
		if !slices.Equal(list, l.Lists[n]) {
			g.Fatalf("list %d was %v and is %v", n, list, l.Lists[n])
		}
	}
	back, err := UnmarshalLayouts(l.Marshal())
	if err != nil || !slices.Equal(back.Kinds, l.Kinds) || !slices.EqualFunc(back.Lists, l.Lists, slices.Equal) || back.Version != l.Version {
		g.Fatalf("came back as another one: %v", err)
	}
	g.Layouts = l
}

// TestSimLayoutsGrow has nodes come and go, some of them half way.
func TestSimLayoutsGrow(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			made, err := MakeSpreadLayouts(Geometry{4, 2}, nodesOf(3, 4), 1)
			g := &grown{T: t, each: 4, nodes: 3, leaves: make(map[id.Node]bool), gone: make(map[id.Node]bool)}
			if err != nil {
				t.Fatal(err)
			}
			g.Layouts = made
			for range 12 {
				switch n := id.Node(rng.IntN(g.nodes)); {
				case g.leaves[n] && rng.IntN(2) == 0: // it stays after all
					delete(g.leaves, n)
				case g.leaves[n]:
					l, err := g.Drop(func(s id.Spindle) bool { on, _ := g.of(s); return on == n })
					if err != nil { // no list without it is for new segments
						t.Fatal(err)
					}
					delete(g.leaves, n)
					g.gone[n] = true
					g.takes(l, nil)
					continue
				case len(g.in()) > 3 && !g.gone[n] && rng.IntN(2) == 0:
					g.leaves[n] = true
				case g.nodes < 10:
					g.nodes++
				}
				g.takes(g.Prepare(g.in(), g.empty))
				if rng.IntN(4) == 0 { // another change comes between
					continue
				}
				g.takes(g.Switch(g.of))
				g.check()
			}
		})
	}
}

// check wants new segments to be spread over all nodes that stay, and what is on others
// to leave.
func (g *grown) check() {
	g.Helper()
	uses := make(map[id.Spindle]int)
	for n, list := range g.Lists {
		on, leaving, gone := make(map[id.Node]int), false, false
		for _, s := range list {
			node, leaves := g.of(s)
			on[node]++
			leaving, gone = leaving || leaves, gone || g.gone[node]
		}
		k, most := g.Kind(id.Layout(n)), 0
		for _, c := range on {
			most = max(most, c)
		}
		switch {
		case k == Free:
		case gone:
			g.Fatalf("list %d of kind %d has a node that has gone", n, k)
		case leaving != (k == Leaving):
			g.Fatalf("list %d of kind %d, leaving: %t", n, k, leaving)
		case (k == Usual || k == Old) && most > g.Geometry.M:
			g.Fatalf("list %d of kind %d has %d on a node", n, k, most)
		case k == Usual:
			for _, s := range list {
				uses[s]++
			}
		case k == Coming || k == ComingSpare:
			g.Fatalf("list %d is still coming", n)
		}
	}
	low, high, all := len(g.Lists), 0, 0
	for _, of := range g.in() {
		for _, s := range of {
			low, high, all = min(low, uses[s]), max(high, uses[s]), all+1
		}
	}
	if len(uses) != all || high > 2*low {
		g.Fatalf("%d of %d spindles are in %d to %d lists", len(uses), all, low, high)
	}
}

func TestLayoutsDoNotGrowForEver(t *testing.T) {
	l, err := MakeSpreadLayouts(Geometry{16, 4}, nodesOf(5, 8), 1)
	for n := 6; err == nil && n < 20; n++ {
		var next *Layouts
		if next, err = l.Prepare(nodesOf(n, 8), func(id.Layout) bool { return false }); err == nil {
			l, err = next.Switch(func(s id.Spindle) (id.Node, bool) { return id.Node(s / 8), false })
		}
	}
	if err == nil || len(l.Lists) < 4000 || len(l.Marshal()) > GrownBytesMax+100 {
		t.Errorf("%d lists: %v", len(l.Lists), err)
	}
}
