package host_test

import (
	"bytes"
	"testing"

	"plinth/datanode"
	"plinth/internal/rack/racktest"
)

// TestSimHostAddSpindle has nodes get spindles while two hosts run, with a node that comes in
// between: they have numbers behind all others, and new segments use them.
func TestSimHostAddSpindle(t *testing.T) {
	s := openShelvesOf(t, true)
	ctx := t.Context()
	a, content := s.begin()
	old := bytes.Clone(content)
	b := s.on("b")
	b.create("two", content[:1<<20])
	s.inSync(3)
	dn1, dn2 := racktest.Name(1), racktest.Name(2)
	s.refused(a.AddSpindle(ctx, ""), "say which data node")
	s.refused(a.AddSpindle(ctx, "dn9"), "no data node dn9")
	used := func(count int) func(*datanode.NodeInfo) bool {
		return func(n *datanode.NodeInfo) bool { return n.Spindles == count && n.SpindlesComing == 0 && n.Waits == "" }
	}
	s.ok(a.AddSpindle(ctx, dn1)) // 12
	s.awaitNode(dn1, used(5), a, b)
	n := s.Stranger(4) // 13 to 16
	name := racktest.Name(n)
	s.ok(a.AddNode(ctx, name, []string{s.Address(n)}))
	s.awaitNode(name, isIn, a, b)
	s.ok(b.AddSpindle(ctx, dn1)) // 17, or 18
	s.ok(a.AddSpindle(ctx, dn2))
	s.awaitNode(dn1, used(6), a, b)
	s.awaitNode(dn2, used(5), a, b)

	copy(content[2<<20:], noise(2, 4<<20))
	a.writeAt("one", content[2<<20:6<<20], 2<<20)
	b.writeAt("two", content[3<<20:4<<20], 0)
	s.ok(a.Quiesce(ctx))
	s.ok(b.Quiesce(ctx))
	st, err := a.cut.Status(ctx)
	s.ok(err)
	if len(st.Spindles) != 19 {
		t.Fatalf("%d spindles: %+v", len(st.Spindles), st.Spindles)
	}
	seen, later := map[int]bool{}, int64(0)
	for _, sp := range st.Spindles {
		seen[int(sp.Spindle)] = true
		if sp.Spindle == 12 || sp.Spindle > 16 {
			later += sp.Fragments
		}
	}
	if len(seen) != 19 || later == 0 {
		t.Errorf("%d fragments are on later spindles; all are %v", later, seen)
	}
	a.has("one", content)
	a.has("one@s", old)
	b.has("two", content[3<<20:4<<20])
	// A node's own registry says what it keeps, those later spindles included.
	for _, node := range []int{1, 2} {
		s.Stop(node)
		a.has("one", content)
		s.Start(node)
	}
	s.inSync(3)
	s.ok(b.Close())
	s.ok(a.Close())
	c := s.on("c")
	c.has("one", content)
	c.has("one@s", old)
	c.settled()
	for away := 1; away < 4; away++ {
		s.Away(away)
		c.has("one", content)
		s.Back(away)
	}
	s.ok(c.Close())
}
