package rack

import (
	"fmt"
	"slices"

	"plinth/internal/id"
)

// Given is a data node that a host was given, and what came of it.
type Given struct {
	Address string // as it was given
	Reached bool
	// What a node that was reached says: the name in its certificate, whether its own
	// registry has a pool, and what that has under datanode.MemberKey, nil: nothing.
	Name   string
	Pool   bool
	Number id.Node
	Member *Membership
	// Rejoins: it was made anew for a pool that has lost it.
	Rejoins bool
}

// Identify tells which pool of several nodes the given ones are, nil if that is still to
// be made, or if it is a pool of one node. Errors are for an operator: the nodes are not
// those of one pool, in its order. One that has left the pool is passed over.
func Identify(given []Given) (*Membership, error) {
	var pool *Given
	for i := range given {
		g := &given[i]
		if !g.Reached {
			continue
		}
		for _, o := range given[:i] {
			if o.Reached && o.Name == g.Name {
				return nil, fmt.Errorf("--node %s and %s are the same data node, %s: give each once", o.Address, g.Address, g.Name)
			}
		}
		if g.Member != nil && (pool == nil || g.Member.newer(pool.Member)) {
			pool = g // others were told of a change less
		}
	}
	if pool == nil {
		return nil, identifyNew(given)
	}
	m := pool.Member
	given = slices.DeleteFunc(slices.Clone(given), func(g Given) bool { return g.Reached && m.left(g.Name) })
	if n := m.there(); len(given) > n {
		return nil, fmt.Errorf("the pool has %d data nodes (%s), and %d were given: leave the others out, or add them with plinth node add", n, m.names(), len(given))
	}
	last := -1
	for _, g := range given {
		switch {
		case !g.Reached:
			continue
		case m.Named(g.Name) == nil:
			return nil, fmt.Errorf("data node %s (%s) is not one of the pool's, which are %s: leave it out, or add it with plinth node add", g.Name, g.Address, m.names())
		case g.Member == nil && g.Pool:
			return nil, fmt.Errorf("data node %s (%s) has a pool of its own, of one node: it cannot be one of the pool's nodes", g.Name, g.Address)
		case g.Member == nil: // the pool is not made yet, or Lost
		case !m.Same(g.Member):
			return nil, fmt.Errorf("data nodes %s and %s do not agree about the nodes of their pool (%s; %s): one of them is another pool's, or was put back from an old copy", pool.Name, g.Name, m.names(), g.Member.names())
		case int(g.Number) >= len(m.Nodes) || m.Nodes[g.Number].Name != g.Name:
			return nil, fmt.Errorf("data node %s (%s) has the directory of %s: the directories of two nodes were swapped", g.Name, g.Address, m.name(g.Number))
		}
		number := int(m.Named(g.Name).Number)
		if number <= last {
			return nil, fmt.Errorf("the pool's data nodes are, in this order, %s: give --node in this order, or name any one of them", m.names())
		}
		last = number
	}
	return m, nil
}

// identifyNew checks nodes of which none says that it is one of several.
func identifyNew(given []Given) error {
	if len(given) == 1 {
		return nil
	}
	for _, g := range given {
		switch {
		case !g.Reached:
			return fmt.Errorf("data node %s does not answer: all that are given must, to make a pool of them", g.Address)
		case g.Pool:
			return fmt.Errorf("data node %s (%s) has a pool of its own, of one node: other nodes cannot be added to that yet; give it alone", g.Name, g.Address)
		}
	}
	return nil
}

// Lost tells which nodes of a pool that is made have nothing of it, nil if none has.
func (m *Membership) Lost(given []Given) error {
	for _, g := range given {
		if g.Reached && g.Member == nil && !g.Rejoins && !m.left(g.Name) {
			return fmt.Errorf("data node %s (%s) has lost what it had of the pool, or its directory is another one: put that back, or make one with plinth datanode --rejoin if its drives are lost", g.Name, g.Address)
		}
	}
	return nil
}
