package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/datanode/wire"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// othersTime is how long a session waits for nodes that it can begin without.
const othersTime = 2 * time.Second

// nodes is the data nodes of a session: one, or a rack of several.
type nodes struct {
	datanode.Node // as the host sees them
	host.Changing // the rack, or what changes a pool of one node
	// client is the one node's, or that of the node with the registry: the session ends
	// with it. nil: the registry stands beside the nodes.
	client *wire.Client
	rack   *rack.Rack // nil: one node

	mu     sync.Mutex
	closed bool
	links  []*nodeLink // by number, but for the one with the registry
	known  pool
	// registry is the number of the node with the registry, at where it was reached.
	registry id.Node
	at       []string
	// make says how the pool is made if it is not there.
	make host.NewPool
}

var _ host.Members = (*nodes)(nil)

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

// DescribeLayout implements datanode.Several.
func (n *nodes) DescribeLayout(ctx context.Context, after id.Segment) (*datanode.DescribeSegmentsReply, error) {
	if n.rack == nil {
		return n.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
	}
	return n.rack.DescribeLayout(ctx, after)
}

// Answers implements datanode.Several.
func (n *nodes) Answers(s id.Spindle) bool { return n.rack == nil || n.rack.Answers(s) }

// errOneNode is what a pool of one node answers that is asked for others.
var errOneNode = fmt.Errorf("%w: the pool is one of one data node, and cannot get others", rack.ErrRefused)

// AddNode is host.Members, and so are the others.
func (n *nodes) AddNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error {
	if n.rack == nil {
		return errOneNode
	}
	return n.rack.AddNode(ctx, name, addresses, hosts)
}

func (n *nodes) DrainNode(ctx context.Context, name string, hosts map[string]uint64) error {
	if n.rack == nil {
		return errOneNode
	}
	return n.rack.DrainNode(ctx, name, hosts)
}

func (n *nodes) RemoveNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error {
	if n.rack == nil {
		return errOneNode
	}
	return n.rack.RemoveNode(ctx, name, addresses, hosts)
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
	for _, l := range n.all() {
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
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	links := n.all()
	for _, l := range links {
		l.cancel()
	}
	if n.rack != nil {
		_ = n.rack.Close()
	}
	for _, l := range links {
		l.close()
	}
}

func (n *nodes) all() []*nodeLink {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.links)
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
		if row := m.Named(c.Name); c.Reached && row == nil {
			a.log.Warn("a data node that was given has left the pool: it need not be given any more", "node", c.Name)
			_ = c.client.Close()
			continue
		}
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
	} else if m, layouts, err = rollOf(dial, m, registry); err != nil {
		return nil, err
	}
	for i := len(clients); i < len(m.Nodes); i++ {
		clients, paths = append(clients, nil), append(paths, [][]string{m.Nodes[i].Addresses})
	}
	return n, a.link(dial, n, m, layouts, clients, paths)
}

// rollOf reads what the registry says of the pool's nodes: what they say themselves may be
// from before a change.
func rollOf(ctx context.Context, m *rack.Membership, registry datanode.RegistryNode) (*rack.Membership, *stripe.Layouts, error) {
	rows, layouts, err := rack.ReadRoll(ctx, registry)
	if err != nil {
		return nil, nil, err
	}
	now := *m
	now.Nodes, now.Version = rows, layouts.Version
	if len(rows) < len(m.Nodes) || !now.Same(m) {
		return nil, nil, errors.New("the data nodes and the pool's registry do not agree about the pool's nodes: one of them is another pool's, or was put back from an old copy")
	}
	return &now, layouts, nil
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
	layouts, err := m.Layouts()
	if err != nil {
		return nil, err
	}
	for i := range m.Nodes {
		if err := m.Tell(ctx, id.Node(i), clients[i], layouts); err != nil {
			return nil, fmt.Errorf("data node %s: %w", m.Nodes[i].Name, err)
		}
	}
	return layouts, nil
}

// link begins to keep the nodes and joins them. It waits a while for those that were
// not reached.
func (a *Agent) link(ctx context.Context, n *nodes, m *rack.Membership, layouts *stripe.Layouts, clients []*wire.Client, paths [][][]string) error {
	var members []rack.Member
	n.known.set(m, layouts)
	for i := range m.Nodes {
		row := &m.Nodes[i]
		if clients[i] != nil && (m.Registry == nil || row.Number != *m.Registry) { // the link's has other options
			_ = clients[i].Close()
		}
		switch {
		case row.State == rack.NodeOut:
		case m.Registry != nil && row.Number == *m.Registry:
			members = append(members, memberOf(row, n.client, nil))
		default:
			members = append(members, a.keep(n, row, paths[i]))
		}
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
	n.rack, err = rack.New(members, rack.Options{
		Layouts: layouts, Registry: a.registryNode(), Logger: a.log, Meet: a.meet,
		Join: func(m *rack.Membership, layouts *stripe.Layouts, row rack.NodeRow) rack.Member {
			n.known.set(m, layouts)
			member := a.keep(n, &row, [][]string{row.Addresses})
			select { // or else it would be taken for away
			case <-member.Node.(*nodeLink).first:
			case <-time.After(othersTime):
			}
			return member
		},
		Leave: n.leave,
	})
	n.Node, n.Changing = n.rack, n.rack
	return err
}

func memberOf(row *rack.NodeRow, node datanode.Replica, run func() logset.Boot) rack.Member {
	return rack.Member{Number: row.Number, Name: row.Name, Node: node, Run: run, Spindles: row.Numbers(), State: row.State}
}

// keep begins to keep a node.
func (a *Agent) keep(n *nodes, row *rack.NodeRow, paths [][]string) rack.Member {
	opts := a.opts.Node
	opts.UnreachableAfter = linkUnreachableAfter
	l := newLink(row, &n.known, paths, opts)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		l.cancel()
	}
	n.links = append(n.links, l)
	return memberOf(row, l, l.run)
}

// leave ends that.
func (n *nodes) leave(number id.Node) {
	n.mu.Lock()
	at := slices.IndexFunc(n.links, func(l *nodeLink) bool { return l.number == number })
	if at < 0 {
		n.mu.Unlock()
		return
	}
	l := n.links[at]
	n.links = slices.Delete(n.links, at, at+1)
	n.mu.Unlock()
	l.close()
}

// meet dials a data node that is none of the pool's.
func (a *Agent) meet(ctx context.Context, name string, addresses []string) (*rack.Met, error) {
	ctx, cancel := context.WithTimeout(ctx, linkDialTime)
	defer cancel()
	c := &caller{Given: rack.Given{Address: addresses[0]}, paths: addresses}
	if err := a.dialOne(ctx, c); err != nil {
		return nil, err
	}
	st, err := c.client.Status(ctx)
	if err == nil && name != "" && c.Name != name {
		err = fmt.Errorf("it is data node %s, not %s", c.Name, name)
	}
	if err != nil {
		_ = c.client.Close()
		return nil, err
	}
	return &rack.Met{
		Given: c.Given, Node: c.client, Spindles: len(st.Spindles), Segments: int64(st.Index.Segments),
		Close: func() { _ = c.client.Close() },
	}, nil
}

// registryNode is the registry beside the nodes, nil if there is none.
func (a *Agent) registryNode() datanode.RegistryNode {
	if a.registry == nil {
		return nil
	}
	return a.registry
}
