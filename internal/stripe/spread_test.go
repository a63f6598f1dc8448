package stripe

import (
	"slices"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

func nodesOf(nodes, each int) [][]id.Spindle {
	var all [][]id.Spindle
	for n := range nodes {
		var of []id.Spindle
		for s := range each {
			of = append(of, id.Spindle(n*each+s))
		}
		all = append(all, of)
	}
	return all
}

func TestSpreadLayouts(t *testing.T) {
	for _, c := range []struct {
		g           Geometry
		nodes, each int
		spare       int // at most so many of a stripe on one node there; 0: none are spare
	}{
		{Geometry{4, 2}, 3, 4, 3}, {Geometry{1, 1}, 2, 2, 2}, {Geometry{8, 2}, 5, 4, 3}, {Geometry{8, 2}, 6, 12, 0}, {Geometry{4, 2}, 10, 12, 0},
	} {
		nodes := nodesOf(c.nodes, c.each)
		l, err := MakeSpreadLayouts(c.g, nodes, 7)
		if err != nil {
			t.Fatal(err)
		}
		if (c.spare > 0) != l.Any(Spare) {
			t.Errorf("%s over %d nodes: %v", c.g, c.nodes, l.Kinds)
		}
		without := make([]int, c.nodes)
		roles := make([]map[id.Spindle]int, c.g.Width())
		for i := range roles {
			roles[i] = make(map[id.Spindle]int)
		}
		for i, list := range l.Lists {
			most := c.g.M
			if l.Kind(id.Layout(i)) == Spare {
				most = c.spare
			}
			on := make([]int, c.nodes)
			for role, s := range list {
				on[int(s)/c.each]++
				if l.Kind(id.Layout(i)) == Usual {
					roles[role][s]++
				}
			}
			if slices.Max(on) > most {
				t.Fatalf("%s over %d nodes: list %d has %v on the nodes", c.g, c.nodes, i, on)
			}
			for n, k := range on {
				if k == 0 {
					without[n]++
				}
			}
		}
		if slices.Min(without) < withoutLists {
			t.Errorf("%s over %d nodes: %v lists without each node", c.g, c.nodes, without)
		}
		for role, uses := range roles {
			low, high := len(l.Lists), 0
			for _, n := range uses {
				low, high = min(low, n), max(high, n)
			}
			if len(uses) != c.nodes*c.each || high > 2*low+2 {
				t.Errorf("%s over %d nodes: fragment %d is on a spindle %d to %d times, on %d spindles", c.g, c.nodes, role, low, high, len(uses))
			}
		}
		back, err := UnmarshalLayouts(l.Marshal())
		if err != nil || !slices.Equal(back.Kinds, l.Kinds) || len(back.Lists) != len(l.Lists) {
			t.Errorf("came back as %v, %v", back, err)
		}
	}
	for _, c := range []struct {
		g           Geometry
		nodes, each int
	}{{Geometry{4, 2}, 2, 12}, {Geometry{8, 2}, 5, 1}, {Geometry{8, 2}, 30, 4}} {
		if _, err := MakeSpreadLayouts(c.g, nodesOf(c.nodes, c.each), 1); err == nil {
			t.Errorf("%s over %d nodes of %d spindles", c.g, c.nodes, c.each)
		}
	}
}

// New segments are spread while all nodes are there, and go on without one.
func TestSpareLayoutsAreTakenWhereANodeIsAway(t *testing.T) {
	l, err := MakeSpreadLayouts(Geometry{4, 2}, nodesOf(3, 4), 1)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStore(nil, l, Options{})
	if err != nil {
		t.Fatal(err)
	}
	usual := len(l.of(Usual))
	for range 3 * len(l.Lists) {
		if n, ok := s.pick(l, nil, nil); !ok || int(n) >= usual {
			t.Fatalf("layout %d, %t", n, ok)
		}
	}
	var away []datanode.SpindleStatus
	for i := range 4 {
		away = append(away, datanode.SpindleStatus{Spindle: id.Spindle(4 + i), State: datanode.SpindleAbsent})
	}
	s.UpdateHealth(away)
	seen := make(map[id.Layout]bool)
	for range 3 * len(l.Lists) {
		n, ok := s.pick(l, nil, nil)
		if !ok || int(n) < usual {
			t.Fatalf("layout %d, %t", n, ok)
		}
		seen[n] = true
	}
	if len(seen) != withoutLists {
		t.Errorf("%d layouts without the node are used", len(seen))
	}
}
