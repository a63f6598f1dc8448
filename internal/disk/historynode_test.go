package disk

import (
	"context"
	"errors"

	"plinth/datanode"
)

// hindrance is a node of which one of the next calls that change something fails
// before it is carried out, or after.
type hindrance struct {
	datanode.Node
	in    int // so many calls from now on; 0: never
	after bool
	full  bool // no fragments are taken
	// before is called once, before what has moved is asked for.
	before func()
}

var errHindered = errors.New("hindered")

func (n *hindrance) SetLists(ctx context.Context, r *datanode.SetListsRequest) (reply *datanode.SetListsReply, err error) {
	err = n.hinder(func() error { reply, err = n.Node.SetLists(ctx, r); return err })
	return reply, err
}

func (n *hindrance) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (reply *datanode.RegistryCommitReply, err error) {
	err = n.hinder(func() error { reply, err = n.Node.RegistryCommit(ctx, r); return err })
	return reply, err
}

func (n *hindrance) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	if !n.full {
		return n.Node.WriteFragments(ctx, r)
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(r.Fragments))}
	for i := range reply.Errors {
		reply.Errors[i] = datanode.ErrNoSpace
	}
	return reply, nil
}

func (n *hindrance) Forwards(ctx context.Context, r *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	if before := n.before; before != nil {
		n.before = nil
		before()
	}
	return n.Node.Forwards(ctx, r)
}

func (n *hindrance) hinder(call func() error) error {
	if n.in--; n.in != 0 {
		n.in = max(n.in, 0)
		return call()
	}
	if n.after {
		if err := call(); err != nil {
			return err
		}
	}
	return errHindered
}
