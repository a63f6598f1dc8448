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

// RegistryCommit implements datanode.Node.
func (s *Shelf) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	reply, err := s.registry.RegistryCommit(ctx, r)
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
