package rack_test

import (
	"slices"
	"strings"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// of returns the rows of nodes with so many spindles each.
func of(spindles ...int) (rows []rack.NodeRow) {
	for i, n := range spindles {
		rows = append(rows, rack.NodeRow{Name: "dn" + string(rune('1'+i)), Addresses: []string{"10.0.0.1:10811"}, Spindles: n})
	}
	return rows
}

func TestGeometryOfNodes(t *testing.T) {
	for _, c := range []struct {
		spindles   []int
		want, gets string // empty: the default; an error
	}{
		{[]int{4, 4}, "", "1+1"},
		{[]int{4, 4, 4}, "", "4+2"},
		{[]int{2, 2, 2}, "", "4+2"},
		{[]int{4, 4, 1}, "", "2+1"}, // 4+2 wants two on each
		{[]int{4, 4, 4, 4}, "", "4+2"},
		{[]int{12, 12, 12, 12, 12}, "", "8+2"},
		{[]int{1, 1, 1, 1, 1}, "", "2+1"},
		{[]int{12, 12}, "2+1", ""},
		{[]int{12, 12}, "4+2", ""},
		{[]int{12, 12}, "2+2", "2+2"},
		{[]int{4, 4, 4}, "8+2", ""},
		{[]int{4, 4, 4}, "2+1", "2+1"},
		{[]int{4, 4, 4}, "6+3", "6+3"},
	} {
		var want stripe.Geometry
		if c.want != "" {
			var err error
			if want, err = stripe.ParseGeometry(c.want); err != nil {
				t.Fatal(err)
			}
		}
		m, err := rack.NewMembership(want, of(c.spindles...), new(id.Node))
		if err != nil || c.gets == "" {
			if (err == nil) != (c.gets != "") {
				t.Errorf("%v, %q: %v", c.spindles, c.want, err)
			}
			continue
		}
		if m.Geometry.String() != c.gets {
			t.Errorf("%v, %q: %s, want %s", c.spindles, c.want, m.Geometry, c.gets)
		}
		l, err := m.Layouts()
		if err != nil {
			t.Errorf("%v, %q: %v", c.spindles, c.want, err)
			continue
		}
		for i, list := range l.Lists {
			if l.Kind(id.Layout(i)) != stripe.Usual {
				continue
			}
			on := make(map[id.Node]int)
			for _, s := range list {
				for _, n := range m.Nodes {
					if s >= n.First && int(s) < int(n.First)+n.Spindles {
						on[n.Number]++
					}
				}
			}
			for n, count := range on {
				if count > m.Geometry.M {
					t.Fatalf("%v, %q: layout %d has %d fragments on node %d", c.spindles, c.want, i, count, n)
				}
			}
		}
	}
}

// three returns a pool's nodes, and each as a host that has reached it sees it.
func three(t *testing.T) (*rack.Membership, []rack.Given) {
	t.Helper()
	m, err := rack.NewMembership(stripe.Geometry{}, of(4, 4, 4), new(id.Node))
	if err != nil {
		t.Fatal(err)
	}
	var all []rack.Given
	for _, n := range m.Nodes {
		all = append(all, rack.Given{Address: "at-" + n.Name, Reached: true, Name: n.Name, Number: n.Number, Member: m})
	}
	all[0].Pool = true
	return m, all
}

func TestIdentify(t *testing.T) {
	m, all := three(t)
	other, err := rack.NewMembership(stripe.Geometry{}, of(4, 4, 5), new(id.Node))
	if err != nil {
		t.Fatal(err)
	}
	with := func(g rack.Given, change func(*rack.Given)) rack.Given { change(&g); return g }
	a, b, c := all[0], all[1], all[2]
	away := rack.Given{Address: "away"}
	empty := func(name string) rack.Given { return rack.Given{Address: "at-" + name, Reached: true, Name: name} }
	alone := with(empty("dn9"), func(g *rack.Given) { g.Pool = true })
	for _, x := range []struct {
		given []rack.Given
		is    bool   // the pool of three
		want  string // in the error
	}{
		{[]rack.Given{a, b, c}, true, ""},
		{[]rack.Given{b}, true, ""},
		{[]rack.Given{a, c}, true, ""},
		{[]rack.Given{away, b, c}, true, ""},
		{[]rack.Given{a, empty("dn2"), empty("dn3")}, true, ""}, // it was being made
		{[]rack.Given{alone}, false, ""},
		{[]rack.Given{empty("dn1")}, false, ""},
		{[]rack.Given{empty("dn1"), empty("dn2")}, false, ""},
		{[]rack.Given{away}, false, ""},
		{[]rack.Given{empty("dn1"), away}, false, "all that are given must"},
		{[]rack.Given{empty("dn1"), empty("dn1")}, false, "the same data node"},
		{[]rack.Given{a, b, b}, false, "the same data node"},
		{[]rack.Given{empty("dn1"), alone}, false, "give it alone"},
		{[]rack.Given{a, b, alone}, false, "not one of the pool's"},
		{[]rack.Given{a, b, empty("dn9")}, false, "not one of the pool's"},
		{[]rack.Given{a, with(alone, func(g *rack.Given) { g.Name = "dn2" })}, false, "a pool of its own"},
		{[]rack.Given{a, c, b}, false, "in this order"},
		{[]rack.Given{c, away, a}, false, "in this order"},
		{[]rack.Given{a, b, c, away}, false, "leave the others out"},
		{[]rack.Given{a, with(b, func(g *rack.Given) { g.Member = other })}, false, "do not agree"},
		{[]rack.Given{a, with(b, func(g *rack.Given) { g.Number = 2 }), with(c, func(g *rack.Given) { g.Number = 1 })}, false, "were swapped"},
	} {
		got, err := rack.Identify(x.given)
		switch {
		case x.want == "" && (err != nil || (got == m) != x.is || got != m && got != nil):
			t.Errorf("%+v: %v, %v", x.given, got, err)
		case x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)):
			t.Errorf("%+v: %v, want %q", x.given, err, x.want)
		}
	}
	if err := m.Lost([]rack.Given{a, away, c}); err != nil {
		t.Error(err)
	}
	if err := m.Lost([]rack.Given{a, with(empty("dn2"), func(g *rack.Given) { g.Rejoins = true }), c}); err != nil {
		t.Error(err)
	}
	if err := m.Lost([]rack.Given{a, empty("dn2"), c}); err == nil {
		t.Error("a node that has nothing of the pool is taken")
	}
}

func FuzzParseMember(f *testing.F) {
	m, err := rack.NewMembership(stripe.Geometry{}, of(4, 4, 4), new(id.Node))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Marshal(2))
	f.Add([]byte(`{"version":1,"number":1,"ec":"1+1","nodes":[{"number":0,"name":"a","addresses":["x"],"first":0,"spindles":2,"state":"in"},{"number":1,"name":"b","addresses":["y"],"first":2,"spindles":2,"state":"out"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		number, m, err := rack.ParseMember(b)
		if err != nil {
			return
		}
		again, o, err := rack.ParseMember(m.Marshal(number))
		if err != nil || again != number || !m.Same(o) {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	m, err := rack.NewMembership(stripe.Geometry{}, of(4, 4, 4), nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range m.Rows() {
		f.Add(p.Value)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := rack.ParseNode(b)
		if err == nil && (n.Name == "" || n.Spindles < 1 || !slices.Contains([]rack.NodeState{rack.NodeIn, rack.NodeDraining, rack.NodeOut}, n.State)) {
			t.Fatalf("%s: %+v", b, n)
		}
	})
}

// After a change some nodes know of it and others do not yet; one that has left may still be
// given, and believe what it was told last.
func TestIdentifyAfterAChange(t *testing.T) {
	m, all := three(t)
	now := *m
	now.Version, now.Nodes = 7, slices.Clone(m.Nodes)
	now.Nodes[1].State = rack.NodeOut
	last := &m.Nodes[2]
	now.Nodes = append(now.Nodes, rack.NodeRow{
		Number: 3, Name: "dn4", Addresses: last.Addresses, First: last.First + id.Spindle(last.Spindles), Spindles: 4, State: rack.NodeIn,
	})
	back, is, err := rack.ParseMember(now.Marshal(3))
	if err != nil || back != 3 || !is.Same(m) || is.Version != 7 {
		t.Fatalf("%d, %+v, %v", back, is, err)
	}
	a, b, c := all[0], all[1], all[2]
	d := rack.Given{Address: "at-dn4", Reached: true, Name: "dn4", Number: 3, Member: &now}
	forgot := rack.Given{Address: "at-dn2", Reached: true, Name: "dn2"}
	for _, given := range [][]rack.Given{{a, c, d}, {d}, {a, b, c, d}, {a, forgot, c, d}} {
		got, err := rack.Identify(given)
		if err != nil || got != &now {
			t.Errorf("%+v: %+v, %v", given, got, err)
		}
		if err := now.Lost(given); err != nil {
			t.Error(err)
		}
	}
	if got, err := rack.Identify([]rack.Given{a, c}); err != nil || got != m { // the registry says the rest
		t.Errorf("%+v, %v", got, err)
	}
}

// Spindles that a node got later have numbers behind all others, and who does not know of them
// is told that a newer program wrote it.
func TestLaterSpindles(t *testing.T) {
	m, _ := three(t)
	was := m.Marshal(1)
	later := *m
	later.Nodes = slices.Clone(m.Nodes)
	later.Nodes[1].Later = datanode.SpindleRanges{{First: 12, Spindles: 2}}
	later.Nodes[0].Later = datanode.SpindleRanges{{First: 14, Spindles: 1}}
	number, read, err := rack.ParseMember(later.Marshal(1))
	if err != nil || number != 1 || !read.Same(&later) || !read.Same(m) || !m.Same(read) {
		t.Fatalf("%d, %+v, %v", number, read, err)
	}
	if !strings.Contains(string(was), `{"version":1,`) || !strings.Contains(string(later.Marshal(1)), `{"version":2,`) {
		t.Errorf("%s, %s", was, later.Marshal(1))
	}
	own := read.Nodes[1].Numbers()
	if got := own.All(); !slices.Equal(got, []id.Spindle{4, 5, 6, 7, 12, 13}) || own.String() != "4 to 7, 12 to 13" {
		t.Errorf("%v: %v", own, got)
	}
	for local, s := range own.All() {
		back, has := own.Local(s)
		if to, ok := own.Global(id.Spindle(local)); !has || !ok || to != s || int(back) != local {
			t.Errorf("spindle %d is %d there, and %d again", s, back, to)
		}
	}
	if _, ok := own.Global(6); ok || own.Has(8) || own.Has(14) || own.Count() != 6 {
		t.Errorf("%v has others", own)
	}
	for what, change := range map[string]func(rows []rack.NodeRow){
		"a gap":           func(rows []rack.NodeRow) { rows[0].Later[0].First = 15 },
		"a number twice":  func(rows []rack.NodeRow) { rows[0].Later[0].First = 13 },
		"none":            func(rows []rack.NodeRow) { rows[0].Later[0].Spindles = 0 },
		"too many":        func(rows []rack.NodeRow) { rows[0].Later[0].Spindles = 1 << 20 },
		"of another node": func(rows []rack.NodeRow) { rows[0].Later[0].First = 2 },
	} {
		bad := later
		bad.Nodes = slices.Clone(later.Nodes)
		bad.Nodes[0].Later = slices.Clone(later.Nodes[0].Later)
		change(bad.Nodes)
		if _, _, err := rack.ParseMember(bad.Marshal(1)); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	other := later
	other.Nodes = slices.Clone(later.Nodes)
	other.Nodes[1].Later = datanode.SpindleRanges{{First: 12, Spindles: 3}}
	if later.Same(&other) {
		t.Error("two pools are the same")
	}
}
