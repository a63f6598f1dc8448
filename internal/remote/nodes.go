package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/datanode/wire"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// othersTime is how long a session waits for nodes that it can begin without.
const othersTime = 2 * time.Second

// nodes is the data nodes of a session: one, or a rack of several.
type nodes struct {
	datanode.Node // as the host sees them
	// client is the one node's, or that of the node with the registry: the session ends
	// with it. nil: the registry stands beside the nodes.
	client *wire.Client
	rack   *rack.Rack // nil: one node
	links  []*nodeLink
	// registry is the number of the node with the registry, at where it was reached.
	registry id.Node
	at       []string
	// make says how the pool is made if it is not there.
	make host.NewPool
}

// Nodes implements datanode.Several; nil where there is one node.
func (n *nodes) Nodes(ctx context.Context) ([]datanode.NodeInfo, error) {
	if n.rack == nil {
		return nil, nil
	}
	return n.rack.Nodes(ctx)
}

// Returned implements datanode.Several.
func (n *nodes) Returned() time.Time {
	if n.rack == nil {
		return time.Time{}
	}
	return n.rack.Returned()
}

// Keeper implements datanode.Several.
func (n *nodes) Keeper(l id.Layout) id.Node {
	if n.rack == nil {
		return 0
	}
	return n.rack.Keeper(l)
}

// broken reports whether the session has ended, or will at once.
func (n *nodes) broken() bool {
	for _, end := range n.ends() {
		select {
		case <-end:
			return true
		default:
		}
	}
	return false
}

// ends are closed, one of them, before a call returns after which the session cannot go
// on.
func (n *nodes) ends() [2]<-chan struct{} {
	var all [2]<-chan struct{}
	if n.client != nil {
		all[0] = n.client.Broken()
	}
	if n.rack != nil {
		all[1] = n.rack.Broken()
	}
	return all
}

// where returns the addresses at which the nodes were found, in their order; nil: one node.
func (n *nodes) where() [][]string {
	if n.rack == nil {
		return nil
	}
	var all [][]string
	for _, l := range n.links {
		all = append(all, *l.at.Load())
	}
	if n.client == nil {
		return all
	}
	return slices.Insert(all, int(n.registry), n.at)
}

// close ends all calls.
func (n *nodes) close() {
	if n.client != nil {
		_ = n.client.Close() // it has no errors of its own
	}
	for _, l := range n.links {
		l.cancel()
	}
	if n.rack != nil {
		_ = n.rack.Close()
	}
	for _, l := range n.links {
		l.close()
	}
}

// join makes a rack of a pool's nodes. It waits for the one with the registry, and for
// all if the pool is still to be made.
func (a *Agent) join(dial context.Context, m *rack.Membership, found []*caller) (_ *nodes, err error) {
	n := &nodes{make: host.NewPool{Rows: m.Rows()}}
	clients := make([]*wire.Client, len(m.Nodes)) // as they were reached
	paths := make([][][]string, len(m.Nodes))
	for i := range m.Nodes {
		paths[i] = [][]string{m.Nodes[i].Addresses}
	}
	for _, c := range found {
		if c.Reached {
			number := m.Named(c.Name).Number
			clients[number], paths[number] = c.client, [][]string{c.paths}
			continue
		}
		for i := range paths { // any that was not reached may be there
			paths[i] = append(paths[i], c.paths)
		}
	}
	defer func() {
		if err != nil {
			n.close()
			for _, c := range clients {
				if c != nil {
					_ = c.Close()
				}
			}
		}
	}()
	need := func(i id.Node) (err error) {
		if clients[i] == nil {
			clients[i], paths[i], err = a.find(dial, &m.Nodes[i], paths[i])
		}
		return err
	}
	registry := a.registryNode()
	if m.Registry != nil {
		at := *m.Registry
		if err := need(at); err != nil {
			return nil, fmt.Errorf("data node %s, which has the pool's registry: %w", m.Nodes[at].Name, err)
		}
		n.client, n.registry, n.at = clients[at], at, paths[at][0]
		registry = n.client
	}
	layouts, err := host.Layouts(dial, registry)
	if err != nil {
		return nil, err
	}
	if layouts == nil {
		if layouts, err = a.make(dial, m, clients, need); err != nil {
			return nil, err
		}
		n.make.Layouts = layouts
	} else if err := m.Lost(givenOf(found)); err != nil {
		return nil, err
	}
	return n, a.link(dial, n, m, layouts, clients, paths)
}

func givenOf(found []*caller) []rack.Given {
	var all []rack.Given
	for _, c := range found {
		all = append(all, c.Given)
	}
	return all
}

// find dials a node of a pool, at each of its addresses in turn, and returns those, where
// it was found first.
func (a *Agent) find(ctx context.Context, n *rack.NodeRow, paths [][]string) (*wire.Client, [][]string, error) {
	for i := 0; ; i++ {
		at := i % len(paths)
		c, err := dialNode(ctx, a.opts.Node, n.Name, paths[at])
		switch {
		case err == nil:
			return c, slices.Concat(paths[at:], paths[:at]), nil
		case ctx.Err() != nil, i >= len(paths) && !errors.Is(err, datanode.ErrUnreachable):
			return nil, paths, err
		}
	}
}

// make has every node know what it is in a pool that is being made.
func (a *Agent) make(ctx context.Context, m *rack.Membership, clients []*wire.Client, need func(id.Node) error) (*stripe.Layouts, error) {
	for i := range m.Nodes {
		if err := need(id.Node(i)); err != nil {
			return nil, fmt.Errorf("data node %s, which the pool that is being made needs: %w", m.Nodes[i].Name, err)
		}
	}
	for i := range m.Nodes {
		if err := m.Tell(ctx, id.Node(i), clients[i]); err != nil {
			return nil, fmt.Errorf("data node %s: %w", m.Nodes[i].Name, err)
		}
	}
	return m.Layouts()
}

// link begins to keep the nodes and joins them. It waits a while for those that were
// not reached.
func (a *Agent) link(ctx context.Context, n *nodes, m *rack.Membership, layouts *stripe.Layouts, clients []*wire.Client, paths [][][]string) error {
	var members []rack.Member
	opts := a.opts.Node
	opts.UnreachableAfter = linkUnreachableAfter
	for i := range m.Nodes {
		row := &m.Nodes[i]
		member := rack.Member{Number: row.Number, First: row.First, Spindles: row.Spindles}
		if m.Registry != nil && row.Number == *m.Registry {
			member.Node = n.client
		} else {
			if clients[i] != nil { // the link's has other options
				_ = clients[i].Close()
			}
			l := newLink(row, m, paths[i], opts)
			n.links = append(n.links, l)
			member.Node, member.Run = l, l.run
		}
		members = append(members, member)
	}
	others, cancel := context.WithTimeout(ctx, othersTime)
	defer cancel()
	for _, l := range n.links {
		select {
		case <-l.first:
		case <-others.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var err error
	n.rack, err = rack.New(members, rack.Options{Layouts: layouts, Registry: a.registryNode(), Logger: a.log})
	n.Node = n.rack
	return err
}

// registryNode is the registry beside the nodes, nil if there is none.
func (a *Agent) registryNode() datanode.RegistryNode {
	if a.registry == nil {
		return nil
	}
	return a.registry
}
