package host_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/rack/racktest"
)

// awaitNode waits until hosts see a data node so, nil: not any more.
func (s *shelves) awaitNode(name string, want func(*datanode.NodeInfo) bool, hosts ...*member) {
	s.rack.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		all, seen := true, []datanode.NodeInfo{}
		for _, m := range hosts {
			nodes, err := m.Nodes(s.rack.Context())
			s.ok(err)
			seen = append(seen, nodes...)
			i := slices.IndexFunc(nodes, func(n datanode.NodeInfo) bool { return n.Name == name })
			switch {
			case want == nil:
				all = all && i < 0
			default:
				all = all && i >= 0 && want(&nodes[i])
			}
		}
		if all {
			return
		}
		if time.Now().After(deadline) {
			s.rack.Fatalf("data node %s does not become as it shall: %+v", name, seen)
		}
	}
}

func isIn(n *datanode.NodeInfo) bool { return n.State == "in" && n.Waits == "" }

// refused wants an error for an operator.
func (s *shelves) refused(err error, text string) {
	s.rack.Helper()
	if !errors.Is(err, host.ErrNodes) || !strings.Contains(err.Error(), text) {
		s.rack.Errorf("%v, want refused, with %q", err, text)
	}
}

// TestSimHostAddNode has a fourth node come while two hosts run, one of which is served
// meanwhile.
func TestSimHostAddNode(t *testing.T) {
	s := openShelvesOf(t, true)
	a, content := s.begin()
	old := bytes.Clone(content)
	b := s.on("b")
	b.create("two", content[:1<<20])
	s.inSync(3)
	ctx := t.Context()

	n := s.Stranger(5)
	name, at := racktest.Name(n), []string{s.Address(n)}
	s.refused(a.AddNode(ctx, "dn9", at), "it is data node dn3")
	s.refused(a.AddNode(ctx, "dn1", []string{s.Address(1)}), "one of the pool's already")
	s.refused(a.AddNode(ctx, "", []string{s.Address(1)}), "one of a pool's already")
	s.refused(a.AddNode(ctx, name, nil), "at which addresses")
	s.ok(a.AddNode(ctx, name, at))
	s.awaitNode(name, isIn, a, b)
	s.refused(b.AddNode(ctx, name, at), "one of the pool's already")

	copy(content[2<<20:], noise(2, 4<<20))
	a.writeAt("one", content[2<<20:6<<20], 2<<20)
	a.has("one", content)
	b.writeAt("two", content[3<<20:4<<20], 0)
	s.ok(a.Quiesce(ctx))
	s.ok(b.Quiesce(ctx))
	a.has("one", content)
	a.has("one@s", old)
	b.has("two", content[3<<20:4<<20])
	if stored, segments := s.Stored(n); stored == 0 || segments == 0 {
		t.Errorf("%d bytes and %d segments are at the new node", stored, segments)
	}
	s.inSync(3)
	// Its own registry says what it keeps.
	s.Stop(n)
	a.has("one", content)
	s.Start(n)
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

// drained has hosts pass until nothing is left on a node that is being drained.
func (s *shelves) drained(name string, hosts ...*member) {
	s.rack.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		for _, m := range hosts {
			s.ok(m.Quiesce(s.rack.Context()))
			s.ok(m.Sweep(s.rack.Context()))
		}
		nodes, err := hosts[0].Nodes(s.rack.Context())
		s.ok(err)
		i := slices.IndexFunc(nodes, func(n datanode.NodeInfo) bool { return n.Name == name })
		if i < 0 {
			s.rack.Fatalf("data node %s is not there: %+v", name, nodes)
		}
		if l := nodes[i].Leaving; nodes[i].Waits == "" && l != nil && l.Empty() {
			return
		}
		if time.Now().After(deadline) {
			s.rack.Fatalf("data node %s is not drained: %+v, %v", name, nodes[i], nodes[i].Leaving)
		}
	}
}

// TestSimHostDrainNode has a node of four emptied while two hosts run, after it was begun and
// given up once; it is taken out, and comes back as a new one.
func TestSimHostDrainNode(t *testing.T) {
	s := openShelvesOf(t, true)
	ctx := t.Context()
	a, content := s.begin()
	old := bytes.Clone(content)
	b := s.on("b")
	two := noise(5, 2<<20)
	b.create("two", two)
	s.inSync(3)
	s.refused(a.DrainNode(ctx, "dn1"), "the 2 nodes that are left, with [4 4] spindles, do not carry stripes of 4+2 with at most 2 fragments on a node")
	s.refused(a.DrainNode(ctx, "dn0"), "has the pool's registry")
	s.refused(a.DrainNode(ctx, "dn7"), "no data node dn7")
	s.refused(a.RemoveNode(ctx, "dn1", nil), "drain it first")

	n := s.Stranger(4)
	s.ok(a.AddNode(ctx, "", []string{s.Address(n)}))
	s.awaitNode("dn3", isIn, a, b)
	copy(content[1<<20:], noise(2, 2<<20))
	a.writeAt("one", content[1<<20:3<<20], 1<<20)
	s.ok(a.Quiesce(ctx))
	copy(content[4<<20:], noise(3, 1<<20))
	a.writeAt("one", content[4<<20:5<<20], 4<<20) // in the log alone

	// It is begun, and given up.
	s.ok(b.DrainNode(ctx, "dn1"))
	s.awaitNode("dn1", func(n *datanode.NodeInfo) bool { return n.State == "draining" }, a, b)
	s.refused(a.DrainNode(ctx, "dn1"), "is being drained already")
	s.refused(a.DrainNode(ctx, "dn2"), "do not carry stripes")
	s.ok(a.Sweep(ctx))
	a.has("one", content)
	s.ok(a.AddNode(ctx, "dn1", nil))
	s.awaitNode("dn1", isIn, a, b)
	a.has("one", content)
	s.inSync(3)

	s.ok(a.DrainNode(ctx, "dn1"))
	s.awaitNode("dn1", func(n *datanode.NodeInfo) bool { return n.State == "draining" && n.Waits == "" }, a, b)
	if err := a.RemoveNode(ctx, "dn1", nil); !errors.Is(err, host.ErrNodes) {
		t.Errorf("a node that is not empty: %v", err)
	}
	copy(content[5<<20:], noise(4, 1<<20))
	a.writeAt("one", content[5<<20:6<<20], 5<<20)
	b.writeAt("two", two[:1<<20], 0)
	s.drained("dn1", a, b)
	a.has("one", content)
	a.has("one@s", old)
	b.has("two", two)
	if bytes, segments := s.Stored(1); bytes != 0 || segments != 0 {
		t.Errorf("%d bytes and %d segments are at the node that was drained", bytes, segments)
	}
	s.inSync(3)
	s.ok(a.RemoveNode(ctx, "dn1", nil))
	s.awaitNode("dn1", nil, a, b)
	s.ok(a.RemoveNode(ctx, "dn1", []string{s.Address(1)})) // it knows already
	s.refused(a.AddNode(ctx, "dn1", nil), "at which addresses")
	s.Away(1)
	a.has("one", content)
	copy(content[6<<20:], noise(6, 1<<20))
	a.writeAt("one", content[6<<20:7<<20], 6<<20)
	s.ok(b.Close())
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) { // until a has what b had
		s.ok(a.Sweep(ctx))
		d, err := a.Disk("two")
		s.ok(err)
		if d.State == "ok" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", d)
		}
	}
	a.settled()
	s.ok(a.Close())
	c := s.on("c")
	c.has("one", content)
	c.has("one@s", old)
	c.has("two", two)

	// It comes back, with another number.
	s.Back(1)
	s.ok(c.AddNode(ctx, "dn1", []string{s.Address(1)}))
	s.awaitNode("dn1", func(n *datanode.NodeInfo) bool { return n.State == "in" && n.Number == 4 }, c)
	for round := byte(0); ; round++ { // chance says which node keeps a segment
		copy(content[2<<20:], noise(7+round, 2<<20))
		c.writeAt("one", content[2<<20:4<<20], 2<<20)
		c.settled()
		s.inSync(3)
		stored, segments := s.Stored(1)
		if stored > 0 && segments > 0 {
			break
		}
		if round == 20 {
			t.Fatalf("%d bytes and %d segments are at the node that came back", stored, segments)
		}
	}
	s.Away(2)
	c.has("one", content)
	c.has("one@s", old)
	s.Back(2)
}

// sound has hosts destage, pass and reclaim, and sees that verify finds nothing.
func (s *shelves) sound(hosts ...*member) {
	s.rack.Helper()
	for range 2 {
		for _, m := range hosts {
			s.ok(m.Quiesce(s.rack.Context()))
			s.ok(m.Sweep(s.rack.Context()))
			_, err := m.Reclaim(s.rack.Context(), host.ReclaimOptions{Full: true})
			s.ok(err)
		}
	}
	for _, m := range hosts {
		report, err := m.Verify(s.rack.Context(), host.VerifyOptions{})
		s.ok(err)
		if len(report.Findings) > 0 {
			s.rack.Fatalf("host %s: verify: %+v", m.name, report.Findings)
		}
	}
}

// drainedSpindle waits until hosts have moved all that lies on a spindle, and nothing is left there.
func (s *shelves) drainedSpindle(n id.Spindle, hosts ...*member) {
	s.rack.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		for _, m := range hosts {
			s.ok(m.Quiesce(s.rack.Context())) // with checkpoints, as the background has them
			s.ok(m.Sweep(s.rack.Context()))
		}
		st, err := hosts[0].Status(s.rack.Context())
		s.ok(err)
		if d := st.Draining; len(d) == 1 && d[0].Spindle == n && d[0].Segments != nil && *d[0].Segments == 0 && st.Node.Spindles[n].Fragments == 0 {
			if !slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, "is drained: its drive can be replaced") }) {
				s.rack.Errorf("warnings are %q", st.Warnings)
			}
			return
		}
		if time.Now().After(deadline) {
			s.rack.Fatalf("spindle %d is not empty: %+v, %+v", n, st.Draining, st.Node.Spindles[n])
		}
	}
}

// TestSimDrainSpindle has a spindle emptied while two hosts run: what lies there is moved, also
// maps, nothing new goes there, and it is used again when it is not drained any more, or is
// another drive.
func TestSimDrainSpindle(t *testing.T) {
	const n = 5
	ctx := t.Context()
	s := openShelves(t)
	a, content := s.begin()
	old := bytes.Clone(content)
	b := s.on("b")
	b.create("two", content)
	copy(content[1<<20:], noise(2, 2<<20))
	a.writeAt("one", content[1<<20:3<<20], 1<<20)
	s.sound(a, b)
	fragments := func() int64 {
		t.Helper()
		st, err := a.Status(ctx)
		s.ok(err)
		return st.Node.Spindles[n].Fragments
	}
	if fragments() == 0 {
		t.Error("nothing lies on the spindle: the test shows nothing")
	}
	s.refused(a.DrainSpindle(ctx, 99, true), "there is no spindle 99")
	s.refused(a.DrainSpindle(ctx, n, false), "is not being drained")
	s.ok(a.DrainSpindle(ctx, n, true))
	s.refused(b.DrainSpindle(ctx, n, true), "is being drained already")
	s.ok(b.DrainSpindle(ctx, 4, true))
	s.refused(a.DrainSpindle(ctx, 6, true), "does not carry stripes of 4+2") // one is left there
	s.ok(a.DrainSpindle(ctx, 4, false))
	s.drainedSpindle(n, a, b)
	copy(content[4<<20:], noise(3, 2<<20))
	for off := int64(4 << 20); off < 6<<20; off += 256 << 10 {
		a.writeAt("one", content[off:off+256<<10], off)
		s.ok(a.Quiesce(ctx))
	}
	if got := fragments(); got != 0 {
		t.Errorf("%d new fragments lie on a spindle that is drained", got)
	}
	a.has("one", content)
	a.has("one@s", old)
	b.has("two", old)
	s.sound(a, b)

	s.ok(b.Close()) // it is drained for who comes later, too
	b = s.on("b")
	s.drainedSpindle(n, a, b)
	s.ok(b.DrainSpindle(ctx, n, false))
	for i := byte(0); fragments() == 0; i++ {
		if i == 100 {
			t.Fatal("a spindle that is not drained any more gets nothing")
		}
		copy(content[6<<20:], noise(10+i, 256<<10))
		a.writeAt("one", content[6<<20:6<<20+256<<10], 6<<20)
		s.ok(a.Quiesce(ctx))
	}

	s.ok(a.DrainSpindle(ctx, n, true))
	s.drainedSpindle(n, a, b)
	s.Stop(1)
	s.Replace(1, n-4)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.ok(a.Quiesce(ctx))
		if st, err := a.Status(ctx); err == nil && len(st.Draining) == 0 && st.Node.Spindles[n].State == datanode.SpindleOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a new drive is drained as the one before was")
		}
	}
	a.has("one", content)
	s.sound(a, b)
}
