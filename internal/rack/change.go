package rack

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// A pool's nodes change in steps, each one transaction of its registry that makes a new
// version of rows and layouts. Between two of them every host must have learnt the version,
// and then every node must have been told it: so no host meets a layout that it does not
// know, and no node keeps a segment without knowing that it does.

// change is what is known of a change that is under way.
type change struct {
	*roll
	hosts map[string]uint64  // the version of the layouts that each host has learnt
	told  map[id.Node]uint64 // that each node was told
	// spindles is how many each node has: those that it got since it came are to be used.
	spindles map[id.Node]int
}

// spindleNumbers is how many numbers of spindles a pool has.
const spindleNumbers = 1 << 16

// step is what a change needs next: one of its fields.
type step struct {
	waits  string // for whom
	tell   []id.Node
	commit *roll
	grow   bool // nodes have spindles without numbers
}

// rests reports whether nothing is to be done: what is left of a rebalance can be looked at.
func (s *step) rests() bool {
	return s.waits == "" && len(s.tell) == 0 && s.commit == nil && !s.grow
}

// next decides. The zero step: nothing is to be done.
func (c *change) next() (step, error) {
	v := c.layouts.Version
	if waits := c.late(); waits != "" {
		return step{waits: waits}, nil
	}
	var untold []id.Node
	for i := range c.nodes {
		if n := &c.nodes[i]; n.State != NodeOut && c.told[n.Number] < v {
			untold = append(untold, n.Number)
		}
	}
	if len(untold) > 0 {
		return step{tell: untold}, nil
	}
	if !c.layouts.Any(stripe.Coming) {
		return step{grow: c.grown()}, nil
	}
	// Everybody knows the lists that are coming.
	out := &roll{nodes: slices.Clone(c.nodes)}
	for i := range out.nodes {
		if out.nodes[i].State == NodeJoining {
			out.nodes[i].State = NodeIn
		}
	}
	var err error
	out.layouts, err = c.layouts.Switch(out.placed)
	return step{commit: out}, err
}

// late names the hosts that have not learnt of the layouts, empty if all have.
func (c *change) late() string {
	var late []string
	for _, h := range slices.Sorted(maps.Keys(c.hosts)) {
		if c.hosts[h] < c.layouts.Version {
			late = append(late, h)
		}
	}
	if len(late) == 0 {
		return ""
	}
	return "hosts that have not learnt of it yet, or whose program is older: " + strings.Join(late, ", ")
}

// grown reports whether a node has got spindles that new segments are to use.
func (c *change) grown() bool {
	return slices.ContainsFunc(c.nodes, func(n NodeRow) bool { return c.more(&n) > 0 })
}

// more is how many spindles a node has that have no numbers yet.
func (c *change) more(n *NodeRow) int {
	if n.State != NodeIn {
		return 0
	}
	return max(c.spindles[n.Number]-n.Numbers().Count(), 0)
}

// grow returns what the registry shall say then. Errors are for an operator.
func (c *change) grow(empty func(id.Layout) bool) (*roll, error) {
	nodes := slices.Clone(c.nodes)
	for i := range nodes {
		n := &nodes[i]
		more := c.more(n)
		if more == 0 {
			continue
		}
		first := (&Membership{Nodes: nodes}).next()
		if more > spindleNumbers-first || len(n.Later) == laterMax {
			return nil, fmt.Errorf("data node %s has %d spindles more than the pool can give numbers: %d were given out", n.Name, more, first)
		}
		n.Later = append(slices.Clone(n.Later), datanode.SpindleRange{First: id.Spindle(first), Spindles: more})
	}
	return c.with(nodes, empty)
}

// placed tells a spindle's node and whether that is being drained.
func (p *roll) placed(s id.Spindle) (id.Node, bool) {
	n := (&Membership{Nodes: p.nodes}).node(s)
	if n == nil {
		return 0, false
	}
	return n.Number, n.State == NodeDraining
}

// with returns what the registry shall say when nodes have changed, with lists over those
// that take new segments.
func (p *roll) with(nodes []NodeRow, empty func(id.Layout) bool) (out *roll, err error) {
	out = &roll{nodes: nodes}
	m := &Membership{Geometry: p.layouts.Geometry, Nodes: nodes}
	if out.layouts, err = p.layouts.Prepare(m.spindles(NodeIn, NodeJoining), empty); err != nil {
		return nil, err
	}
	return out, m.validate()
}

// add returns what the registry shall say to have a node take part: a new one, or one that
// is being drained. Errors are for an operator.
func (p *roll) add(n NodeRow, empty func(id.Layout) bool) (*roll, error) {
	nodes := slices.Clone(p.nodes)
	if has := (&Membership{Nodes: nodes}).Named(n.Name); has != nil {
		if has.State != NodeDraining {
			return nil, fmt.Errorf("data node %s is one of the pool's already, with number %d: plinth node ls shows how far it is", n.Name, has.Number)
		}
		has.State = NodeIn
		return p.with(nodes, empty)
	}
	next := (&Membership{Nodes: nodes}).next()
	n.Number, n.First, n.State = nodes[len(nodes)-1].Number+1, id.Spindle(next), NodeJoining
	if next+n.Spindles > spindleNumbers {
		return nil, fmt.Errorf("the pool has used up its numbers of spindles: %d were given out", next)
	}
	return p.with(append(nodes, n), empty)
}

// drain returns what the registry shall say to have a node emptied.
func (p *roll) drain(name string, registry *id.Node, empty func(id.Layout) bool) (*roll, error) {
	nodes := slices.Clone(p.nodes)
	m := &Membership{Nodes: nodes}
	n := m.Named(name)
	switch {
	case n == nil:
		return nil, fmt.Errorf("the pool has no data node %s, it has %s", name, m.names())
	case registry != nil && *registry == n.Number:
		return nil, fmt.Errorf("data node %s has the pool's registry, which cannot move to another node: only a pool whose registry is in etcd can do without its first node", name)
	case n.State == NodeDraining:
		return nil, fmt.Errorf("data node %s is being drained already: plinth node ls shows how far that is", name)
	case n.State == NodeJoining:
		return nil, fmt.Errorf("data node %s has not joined yet: wait until plinth node ls shows it as in", name)
	}
	n.State = NodeDraining
	left := m.spindles(NodeIn, NodeJoining)
	out, err := p.with(nodes, empty)
	if err != nil {
		var each []int
		for _, of := range left {
			each = append(each, len(of))
		}
		g := p.layouts.Geometry
		return nil, fmt.Errorf("data node %s cannot be drained: the %d nodes that are left, with %v spindles, do not carry stripes of %s with at most %d fragments on a node: add a node first (%w)",
			name, len(left), each, g, g.M, err)
	}
	return out, nil
}

// remove returns what the registry shall say when a node that was drained is taken out.
// left is what is still there.
func (p *roll) remove(name string, left *Leaving) (*roll, error) {
	nodes := slices.Clone(p.nodes)
	m := &Membership{Geometry: p.layouts.Geometry, Nodes: nodes}
	n := m.Named(name)
	switch {
	case n == nil:
		return nil, fmt.Errorf("the pool has no data node %s, it has %s", name, m.names())
	case n.State != NodeDraining:
		return nil, fmt.Errorf("data node %s is %s: drain it first, with plinth node drain %s", name, n.State, name)
	case p.layouts.Any(stripe.Coming):
		return nil, fmt.Errorf("data node %s may still get new segments: a change of the pool's nodes is under way, see plinth node ls", name)
	case !left.Empty():
		return nil, fmt.Errorf("data node %s is not empty: %s", name, left)
	}
	n.State = NodeOut
	out := &roll{nodes: nodes}
	var err error
	out.layouts, err = p.layouts.Drop(n.Numbers().Has)
	if err == nil {
		err = m.validate()
	}
	return out, err
}
