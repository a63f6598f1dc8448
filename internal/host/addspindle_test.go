package host_test

import (
	"bytes"
	"testing"
	"time"

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

// TestSimHostRebalance has spindles come to a pool that holds much, and what it holds spread over
// them, while one of the hosts writes.
func TestSimHostRebalance(t *testing.T) {
	s := openShelvesOf(t, true)
	ctx := t.Context()
	a, content := s.begin()
	old := bytes.Clone(content)
	b := s.on("b")
	b.create("two", content[:1<<20])
	s.inSync(3)
	s.refused(a.Rebalance(ctx, true), "nothing lies where new segments do not go")
	s.refused(a.Rebalance(ctx, false), "no rebalance is under way")
	for node := range 3 {
		s.ok(a.AddSpindle(ctx, racktest.Name(node)))
		s.awaitNode(racktest.Name(node), func(n *datanode.NodeInfo) bool { return n.Spindles == 5 && n.SpindlesComing == 0 }, a, b)
	}
	onNew := func() (fragments int64) {
		st, err := a.cut.Status(ctx)
		s.ok(err)
		for _, sp := range st.Spindles[12:] {
			fragments += sp.Fragments
		}
		return fragments
	}
	before := onNew()
	s.ok(b.Rebalance(ctx, true))
	s.refused(a.Rebalance(ctx, true), "is under way")
	s.ok(a.Rebalance(ctx, false))
	s.ok(a.Rebalance(ctx, true))
	for deadline, round := time.Now().Add(2*time.Minute), 0; ; round = (round + 1) % 64 {
		copy(content[round<<16:], noise(byte(round), 1<<16))
		a.writeAt("one", content[round<<16:(round+1)<<16], int64(round)<<16)
		for _, m := range []*member{a, b} {
			s.ok(m.Quiesce(ctx))
			s.ok(m.Sweep(ctx))
		}
		st, err := a.Status(ctx)
		s.ok(err)
		if st.Rebalance == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pool is not balanced: %+v", st.Rebalance)
		}
	}
	s.refused(a.Rebalance(ctx, false), "no rebalance is under way")
	if n := onNew(); n <= before {
		t.Errorf("%d fragments are on the new spindles, %d were there before", n, before)
	}
	a.has("one", content)
	a.has("one@s", old)
	b.has("two", old[:1<<20])
	s.ok(b.Close())
	a.settled()
	s.ok(a.Close())
	c := s.on("c")
	c.has("one", content)
	c.has("one@s", old)
	c.settled()
	s.ok(c.Close())
}
