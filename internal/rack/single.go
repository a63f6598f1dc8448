package rack

import (
	"context"
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// Single changes the layouts of a pool of one node, whose registry has no rows of nodes. Calls
// of the data path do not go through it.
type Single struct{ Node datanode.Node }

// Learn returns what the registry says.
func (s Single) Learn(ctx context.Context) (*stripe.Layouts, error) {
	l, _, err := s.read(ctx)
	return l, err
}

func (s Single) read(ctx context.Context) (*stripe.Layouts, uint64, error) {
	reply, err := s.Node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: layoutsKey})
	if err != nil {
		return nil, 0, fmt.Errorf("read the stripe layouts: %w", err)
	}
	l, err := stripe.UnmarshalLayouts(reply.Value)
	return l, reply.Revision, err
}

// Settle does not wait: the numbers of lists are not used again here.
func (s Single) Settle(context.Context) error { return nil }

// Advance is Rack.Advance: when the node has spindles that no list has, lists with them come,
// and when every host that lives knows these they are used.
func (s Single) Advance(ctx context.Context, hosts map[string]uint64) (did bool, waits string, err error) {
	l, revision, err := s.read(ctx)
	if err != nil {
		return false, "", err
	}
	st, err := s.Node.Status(ctx)
	if err != nil {
		return false, "", err
	}
	next, waits, err := nextOfOne(l, hosts, len(st.Spindles))
	if next == nil && waits == "" && err == nil {
		next, err = balanced(ctx, l, s.Node, apart)
	}
	if next == nil || err != nil {
		return false, waits, err
	}
	err = s.commit(ctx, revision, next)
	if errors.Is(err, datanode.ErrConflict) { // another host did it
		err = nil
	}
	return err == nil, "", err
}

// commit puts other layouts in place of those of a revision.
func (s Single) commit(ctx context.Context, revision uint64, next *stripe.Layouts) error {
	_, err := s.Node.RegistryCommit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: layoutsKey, Revision: revision}}, Puts: []datanode.Put{{Key: layoutsKey, Value: next.Marshal()}},
	})
	return err
}

// nextOfOne returns the layouts that follow, nil for none, or for whom they wait.
func nextOfOne(l *stripe.Layouts, hosts map[string]uint64, spindles int) (next *stripe.Layouts, waits string, err error) {
	coming := l.Any(stripe.Coming)
	if !coming && spindles <= len(l.Spindles()) {
		return nil, "", nil
	}
	c := &change{roll: &roll{layouts: l}, hosts: hosts}
	if waits = c.late(); waits != "" {
		return nil, waits, nil
	}
	if coming {
		next, err = l.Switch(apart)
	} else {
		next, err = l.PrepareOne(datanode.SpindleRanges{{Spindles: spindles}}.All(), func(id.Layout) bool { return false })
	}
	return next, "", err
}
