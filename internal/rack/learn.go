package rack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/stripe"
)

// roll is what a pool's registry says of its nodes and layouts, of one instant.
type roll struct {
	nodes     []NodeRow // by number
	revisions []uint64  // of their rows
	layouts   *stripe.Layouts
	revision  uint64 // of the layouts
}

// ErrNoRows is returned by what changes the nodes of a pool whose registry has no rows of
// them.
var ErrNoRows = errors.New("the pool is not one of several data nodes")

// ReadRoll reads the pool's nodes and layouts in its registry: nodes is nil where there are
// no rows.
func ReadRoll(ctx context.Context, registry datanode.RegistryNode) (nodes []NodeRow, layouts *stripe.Layouts, err error) {
	p, err := readRoll(ctx, registry)
	if err != nil {
		return nil, nil, err
	}
	return p.nodes, p.layouts, nil
}

// readRoll reads again where something changed meanwhile: rows change with the layouts.
func readRoll(ctx context.Context, registry datanode.RegistryNode) (*roll, error) {
	for {
		before, err := registry.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: layoutsKey})
		if err != nil {
			return nil, fmt.Errorf("read the stripe layouts: %w", err)
		}
		p := &roll{revision: before.Revision}
		if p.layouts, err = stripe.UnmarshalLayouts(before.Value); err != nil {
			return nil, err
		}
		err = eachEntry(ctx, registry, nodePrefix, func(e *datanode.RegistryEntry) error {
			row, err := ParseNode(e.Value)
			if err == nil && int(row.Number) != len(p.nodes) {
				err = fmt.Errorf("%s of the registry is of node %d, and %d were before it", e.Key, row.Number, len(p.nodes))
			}
			p.nodes, p.revisions = append(p.nodes, row), append(p.revisions, e.Revision)
			return err
		})
		if err != nil {
			return nil, err
		}
		after, err := registry.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: layoutsKey})
		if err != nil {
			return nil, err
		}
		if after.Revision == before.Revision {
			return p, nil
		}
	}
}

// membership is what nodes are told of it.
func (p *roll) membership(registry *id.Node) *Membership {
	return &Membership{Geometry: p.layouts.Geometry, Registry: registry, Nodes: p.nodes, Version: p.layouts.Version}
}

func (r *Rack) registryNumber() *id.Node {
	if r.opts.Registry != nil {
		return nil
	}
	return &r.members()[0].Number
}

// Learn takes over what the pool's registry says of nodes and layouts, which it returns:
// new nodes become members, others leave, and logs are kept accordingly. Calls under way
// go on with what was before.
func (r *Rack) Learn(ctx context.Context) (*stripe.Layouts, error) {
	r.learning.Lock()
	defer r.learning.Unlock()
	old := r.now.Load()
	p, err := readRoll(ctx, r.RegistryNode)
	if err != nil {
		return nil, err
	}
	if p.layouts.Version < old.layouts.Version || p.layouts.Geometry != old.layouts.Geometry {
		return nil, datanode.Errorf(datanode.ErrCorrupt, "stripe layouts of version %d, %s, follow version %d, %s",
			p.layouts.Version, p.layouts.Geometry, old.layouts.Version, old.layouts.Geometry)
	}
	if p.nodes == nil {
		return p.layouts, nil
	}
	r.reserving.Lock() // so that a new member is told all
	next, err := r.follow(ctx, old, p)
	if err == nil {
		r.now.Store(next)
	}
	r.reserving.Unlock()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	logs := make([]*diskLog, 0, len(r.logs))
	for _, l := range r.logs {
		logs = append(logs, l)
	}
	r.mu.Unlock()
	for _, l := range logs {
		l.step(logset.Changed{Options: r.logOptions(l.disk)})
	}
	for _, m := range old.members {
		if !slices.Contains(next.members, m) && r.opts.Leave != nil {
			r.opts.Leave(m.Number)
		}
	}
	return p.layouts, nil
}

// follow makes what a rack is made of from what it was and what the registry says.
func (r *Rack) follow(ctx context.Context, old *current, p *roll) (*current, error) {
	m := p.membership(r.registryNumber())
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("the pool's data nodes: %w", err)
	}
	for _, s := range p.layouts.Spindles() {
		if n := m.node(s); n == nil || n.State == NodeOut {
			return nil, fmt.Errorf("spindle %d of the layouts is no node's", s)
		}
	}
	next := &current{layouts: p.layouts}
	for _, row := range p.nodes {
		at := slices.IndexFunc(old.members, func(m *member) bool { return m.Number == row.Number })
		switch {
		case row.State == NodeOut:
		case at >= 0:
			o := old.members[at]
			numbers := row.Numbers()
			o.ranges.Store(&numbers)
			o.mu.Lock()
			o.state = row.State
			o.mu.Unlock()
			next.members = append(next.members, o)
		case r.opts.Join == nil:
			return nil, fmt.Errorf("data node %s came to the pool, and this program cannot reach it", row.Name)
		default:
			n := r.newMember(r.opts.Join(m, p.layouts, row))
			n.state = row.State
			for host, bytes := range r.reserved {
				// It is forced; who does not answer is told later, as after a restart.
				_ = n.call(ctx, r.opts.CallTime, func(ctx context.Context) error {
					return n.Node.Reserve(ctx, &datanode.ReserveRequest{Host: host, Bytes: bytes, Force: true})
				})
			}
			r.log.Info("a data node has come to the pool", "node", row.Name, "number", row.Number)
			next.members = append(next.members, n)
		}
	}
	return next, nil
}

// begins notes that fragments of a new segment are written, published that it is published
// or given up.
func (r *Rack) begins(s id.Segment) {
	r.unpublishedMu.Lock()
	defer r.unpublishedMu.Unlock()
	if r.unpublished[s] == nil {
		r.unpublished[s] = make(chan struct{})
	}
}

func (r *Rack) published(s id.Segment) {
	r.unpublishedMu.Lock()
	defer r.unpublishedMu.Unlock()
	if done := r.unpublished[s]; done != nil {
		close(done)
		delete(r.unpublished, s)
	}
}

// Settle returns when every segment of which fragments were written before is published, or
// given up: from then on what lies in a layout that gets nothing new can be counted.
func (r *Rack) Settle(ctx context.Context) error {
	r.unpublishedMu.Lock()
	all := slices.Collect(maps.Values(r.unpublished))
	r.unpublishedMu.Unlock()
	for _, done := range all {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
