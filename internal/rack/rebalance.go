package rack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// A rebalance makes the lists that get nothing new leave, so that the owners of disks move
// what lies there to lists over all spindles. When nothing is left they are as before. A
// change of the nodes calls it off.

// Rebalance has what lies where new segments do not go moved to where they do, or with on unset
// calls that off. Errors that wrap ErrRefused are for an operator.
func (r *Rack) Rebalance(ctx context.Context, on bool) error {
	p, err := readRoll(ctx, r.RegistryNode)
	if err != nil {
		return err
	}
	next, err := rebalance(p.layouts, on, draining(p.nodes), p.placed)
	if err != nil {
		return err
	}
	return r.commit(ctx, p, &roll{nodes: p.nodes, layouts: next})
}

// Rebalance is Rack.Rebalance.
func (s Single) Rebalance(ctx context.Context, on bool) error {
	l, revision, err := s.read(ctx)
	if err != nil {
		return err
	}
	next, err := rebalance(l, on, "", apart)
	if err != nil {
		return err
	}
	return s.commit(ctx, revision, next)
}

// draining names a node that is being drained, if one is.
func draining(nodes []NodeRow) string {
	if i := slices.IndexFunc(nodes, func(n NodeRow) bool { return n.State == NodeDraining }); i >= 0 {
		return nodes[i].Name
	}
	return ""
}

func rebalance(l *stripe.Layouts, on bool, draining string, of func(id.Spindle) (id.Node, bool)) (*stripe.Layouts, error) {
	switch {
	case draining != "":
		return nil, fmt.Errorf("%w: data node %s is being drained, which comes first: plinth node ls shows how far that is", ErrRefused, draining)
	case l.Any(stripe.Coming):
		return nil, fmt.Errorf("%w: a change of the data nodes is under way: plinth node ls shows for whom it waits", ErrRefused)
	}
	next, err := l.Rebalance(on, of)
	switch {
	case err != nil:
		return nil, err
	case next == nil && on && l.Any(stripe.Leaving):
		return nil, fmt.Errorf("%w: a rebalance is under way: plinth status shows how far it is", ErrRefused)
	case next == nil && on:
		return nil, fmt.Errorf("%w: nothing lies where new segments do not go: no data node or spindle has come since the pool was made, or all was moved", ErrRefused)
	case next == nil:
		return nil, fmt.Errorf("%w: no rebalance is under way", ErrRefused)
	}
	return next, nil
}

// apart has each spindle of a pool of one node by itself: no list is worse than others for
// what it has on the node.
func apart(s id.Spindle) (id.Node, bool) { return id.Node(s), false }

// used walks all segments and tells in which lists some lie.
func used(ctx context.Context, node datanode.IndexNode) (map[id.Layout]bool, error) {
	all := make(map[id.Layout]bool)
	for after := id.Segment(0); ; {
		reply, err := node.Usage(ctx, &datanode.UsageRequest{After: after})
		if err != nil {
			return nil, err
		}
		for i := range reply.Segments {
			after = reply.Segments[i].Segment
			all[after.Layout()] = true
		}
		if !reply.More || len(reply.Segments) == 0 {
			return all, nil
		}
	}
}

// balanced returns the layouts after a rebalance of which nothing is left, nil if there is
// none, or something is.
func balanced(ctx context.Context, l *stripe.Layouts, node datanode.IndexNode, of func(id.Spindle) (id.Node, bool)) (*stripe.Layouts, error) {
	if !l.Any(stripe.Leaving) {
		return nil, nil
	}
	lie, err := used(ctx, node)
	if err != nil {
		return nil, err
	}
	for n := range lie {
		if l.Kind(n) == stripe.Leaving {
			return nil, nil
		}
	}
	return l.Rebalance(false, of)
}

// endRebalance ends one of which nothing is left.
func (r *Rack) endRebalance(ctx context.Context, p *roll) (did bool, err error) {
	if draining(p.nodes) != "" {
		return false, nil
	}
	next, err := balanced(ctx, p.layouts, r, p.placed)
	if next == nil || err != nil {
		return false, err
	}
	r.log.Info("the pool is balanced", "version", next.Version)
	err = r.commit(ctx, p, &roll{nodes: p.nodes, layouts: next})
	if errors.Is(err, datanode.ErrConflict) {
		err = nil
	}
	return true, err
}
