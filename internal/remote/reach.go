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
)

// caller is a node that was given and reached.
type caller struct {
	rack.Given
	client *wire.Client
	paths  []string
	err    error // final: why it was not reached
}

// reach finds the data nodes. dial bounds the wait for those that are needed; errors
// of nodes that can be done without count only with strict.
func (a *Agent) reach(dial context.Context, strict bool) (_ *nodes, err error) {
	found := a.dialGiven(dial)
	defer func() {
		if err != nil {
			for _, c := range found {
				if c.client != nil {
					_ = c.client.Close()
				}
			}
		}
	}()
	given := givenOf(found)
	var hindered error
	for _, c := range found {
		if c.err != nil && (strict || len(found) == 1) && (hindered == nil || !errors.Is(c.err, datanode.ErrUnreachable)) {
			hindered = fmt.Errorf("data node %s: %w", c.Address, c.err)
		}
	}
	final := hindered != nil && !errors.Is(hindered, datanode.ErrUnreachable)
	if final || !slices.ContainsFunc(given, func(g rack.Given) bool { return g.Reached }) {
		if hindered == nil {
			hindered = datanode.Errorf(datanode.ErrUnreachable, "no data node answers")
		}
		return nil, hindered
	}
	m, err := rack.Identify(given)
	if err != nil {
		return nil, err
	}
	if m == nil && len(found) == 1 {
		if a.opts.OpenRegistry != nil {
			return nil, errors.New("--registry is for a pool of several data nodes: name them all to make one; a pool of one node has its registry there")
		}
		return &nodes{Node: found[0].client, Changing: rack.Single{Node: found[0].client}, client: found[0].client, make: host.NewPool{Geometry: a.opts.Geometry}}, nil
	}
	isNew := m == nil
	if isNew {
		if m, err = a.plan(dial, found); err != nil {
			return nil, err
		}
	}
	if err := a.findRegistry(dial, m, isNew); err != nil {
		return nil, err
	}
	return a.join(dial, m, found)
}

// findRegistry opens the registry where that stands beside the nodes. It is made before
// any node knows of the pool: one that is gone later is not made anew.
func (a *Agent) findRegistry(ctx context.Context, m *rack.Membership, isNew bool) (err error) {
	switch {
	case m.Registry != nil && a.opts.OpenRegistry != nil:
		return fmt.Errorf("the pool's registry is at data node %s: leave --registry out", m.Nodes[*m.Registry].Name)
	case m.Registry != nil || a.registry != nil:
		return nil
	case a.opts.OpenRegistry == nil:
		return errors.New("the pool's registry stands beside its data nodes: say where with --registry")
	}
	a.registry, err = a.opts.OpenRegistry(ctx, isNew)
	return err
}

// dialGiven dials the nodes that were given, at once. It returns when all were reached,
// or some and the others do not come for a while.
func (a *Agent) dialGiven(dial context.Context) []*caller {
	ctx, cancel := context.WithCancel(dial)
	defer cancel()
	found := make([]*caller, len(a.paths))
	done := make(chan *caller)
	for i, paths := range a.paths {
		c := &caller{Given: rack.Given{Address: paths[0]}, paths: paths}
		found[i] = c
		go func() {
			c.err = a.dialOne(ctx, c)
			done <- c
		}()
	}
	var others <-chan time.Time
	for range found {
		select {
		case c := <-done:
			if c.Member != nil && others == nil {
				others = time.After(othersTime)
			}
		case <-others:
			cancel()
			others = nil
			<-done
		}
	}
	return found
}

// dialOne dials a node and asks what it is.
func (a *Agent) dialOne(ctx context.Context, c *caller) (err error) {
	opts := a.opts.Node
	opts.Paths = c.paths
	if c.client, err = wire.Dial(ctx, opts); err != nil {
		return err
	}
	c.Name = c.client.Name()
	c.Number, c.Member, err = rack.ReadMember(ctx, c.client)
	if err == nil {
		_, err = host.PoolHeader(ctx, c.client)
		if c.Pool = err == nil; errors.Is(err, host.ErrNoPool) {
			err = nil
		}
	}
	var st *datanode.Status
	if err == nil {
		st, err = c.client.Status(ctx)
	}
	if err != nil {
		_ = c.client.Close()
		c.client = nil
		return err
	}
	c.Reached, c.Rejoins = true, !st.Index.Complete
	return nil
}

// plan makes a pool of the nodes that were given, on paper.
func (a *Agent) plan(ctx context.Context, found []*caller) (*rack.Membership, error) {
	var rows []rack.NodeRow
	for _, c := range found {
		st, err := c.client.Status(ctx)
		if err != nil {
			return nil, fmt.Errorf("data node %s: %w", c.Name, err)
		}
		rows = append(rows, rack.NodeRow{Name: c.Name, Addresses: c.paths, Spindles: len(st.Spindles)})
	}
	var registry *id.Node
	if a.opts.OpenRegistry == nil {
		registry = new(id.Node)
	}
	return rack.NewMembership(a.opts.Geometry, rows, registry)
}
