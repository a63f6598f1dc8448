package rack

import (
	"fmt"
	"maps"
	"slices"
	"strings"

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
}

// step is what a change needs next: one of its fields.
type step struct {
	waits  string // for whom
	tell   []id.Node
	commit *roll
}

// next decides. The zero step: nothing is to be done.
func (c *change) next() (step, error) {
	v := c.layouts.Version
	var late []string
	for _, h := range slices.Sorted(maps.Keys(c.hosts)) {
		if c.hosts[h] < v {
			late = append(late, h)
		}
	}
	if len(late) > 0 {
		return step{waits: "hosts that have not learnt of it yet, or whose program is older: " + strings.Join(late, ", ")}, nil
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
		return step{}, nil
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
	last := &nodes[len(nodes)-1]
	n.Number, n.First, n.State = last.Number+1, last.First+id.Spindle(last.Spindles), NodeJoining
	if int(last.First)+last.Spindles+n.Spindles > 1<<16 {
		return nil, fmt.Errorf("the pool has used up its numbers of spindles: %d were given out", int(last.First)+last.Spindles)
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
	out.layouts, err = p.layouts.Drop(func(s id.Spindle) bool { return s >= n.First && int(s) < int(n.First)+n.Spindles })
	if err == nil {
		err = m.validate()
	}
	return out, err
}
