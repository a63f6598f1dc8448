package shelf

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/registry"
)

// Share is a node's part in a pool of several. See Options for the first two;
// LayoutVersion is that of the pool's stripe layouts.
type Share struct {
	Keeps         func(id.Segment, uint8, id.Spindle) bool
	Width         int
	LayoutVersion uint64
}

// learnShare finds out what the node's part is and uses it, but for what it keeps.
func (s *Shelf) learnShare(ctx context.Context) (keeps func(id.Segment, uint8, id.Spindle) bool, err error) {
	_, err = s.registry.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: datanode.MemberKey})
	if errors.Is(err, datanode.ErrNotFound) {
		return s.opts.Keeps, nil
	}
	if err != nil {
		return nil, err
	}
	if s.opts.Share == nil {
		return nil, fmt.Errorf("%w: %s", ErrMember, s.place.dir)
	}
	share, err := s.opts.Share(ctx, s.registry)
	if err != nil {
		return nil, err
	}
	s.spindles.SetWidth(share.Width)
	s.spindles.SetLayoutVersion(share.LayoutVersion)
	return share.Keeps, nil
}

// learnWidth takes the width of stripes from the pool's layouts, once there are any.
func (s *Shelf) learnWidth(ctx context.Context) error {
	if s.opts.WidthOf == nil {
		return nil
	}
	reply, err := s.registry.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: datanode.LayoutsKey})
	if errors.Is(err, datanode.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	width, err := s.opts.WidthOf(reply.Value)
	if err == nil {
		s.spindles.SetWidth(width)
	}
	return err
}

// RegistryCommit implements datanode.Node.
func (s *Shelf) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	reply, err := s.registry.RegistryCommit(ctx, r)
	if err == nil && slices.ContainsFunc(r.Puts, func(p datanode.Put) bool { return p.Key == datanode.LayoutsKey }) {
		if err := s.learnWidth(ctx); err != nil { // it is committed
			s.logger.Error("the pool's stripe layouts are not understood", "err", err)
		}
	}
	if err == nil && slices.ContainsFunc(r.Puts, func(p datanode.Put) bool { return p.Key == datanode.MemberKey }) {
		if _, err := s.learnShare(ctx); err != nil { // it is committed
			s.logger.Error("what this node's part in its pool is now is not understood", "err", err)
		}
	}
	return reply, err
}

// checkMember refuses the registry of a node of several, in a dump.
func (s *Shelf) checkMember(dump []byte) error {
	d, err := registry.ParseDump(dump)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(d.Entries, func(e datanode.RegistryEntry) bool { return e.Key == datanode.MemberKey }) {
		return fmt.Errorf("%w: %s: its index cannot be rebuilt yet", ErrMember, s.place.dir)
	}
	return nil
}
