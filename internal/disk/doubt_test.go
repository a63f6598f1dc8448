package disk

import (
	"context"
	"sync/atomic"
	"testing"

	"plinth/datanode"
)

// doubtful is a node whose registry carries a commit out and then says that it
// failed, as one does that has lost its copies.
type doubtful struct {
	datanode.Node
	commits, gets atomic.Int32 // so many fail
}

func (d *doubtful) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	reply, err := d.Node.RegistryCommit(ctx, r)
	if err == nil && d.commits.Add(-1) >= 0 {
		return nil, datanode.Errorf(datanode.ErrSpindle, "not copied")
	}
	return reply, err
}

func (d *doubtful) RegistryGet(ctx context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	if d.gets.Add(-1) >= 0 {
		return nil, datanode.Errorf(datanode.ErrSpindle, "not read")
	}
	return d.Node.RegistryGet(ctx, r)
}

// TestDoubtfulCheckpoint loses the reply of a checkpoint's record, once or for
// longer. What the registry names must stay, and the disk goes on.
func TestDoubtfulCheckpoint(t *testing.T) {
	for gets := range int32(2) {
		var node *doubtful
		h := newHouse(t, func(n datanode.Node) datanode.Node {
			node = &doubtful{Node: n}
			return node
		})
		d := h.open(h.session(), 1)
		c := newContent(1)
		h.fill(d, c, 20)
		h.ok(h.round(d))
		h.ok(d.Checkpoint(t.Context()))
		h.fill(d, c, 20)
		h.ok(h.round(d))
		node.commits.Store(1)
		node.gets.Store(gets)
		if err := d.Checkpoint(t.Context()); (err == nil) != (gets == 0) {
			t.Fatalf("checkpoint with %d registry errors more: %v", gets, err)
		}
		h.ok(d.Err())
		_, err := d.Pass(t.Context(), PassOptions{})
		h.ok(err)
		h.ok(h.reclaim(t.Context()))
		h.ok(h.open(h.session(), 1).Close()) // as the next owner would find it
		d = h.open(h.session(), 1)
		h.same(d, c)

		h.fill(d, c, 20)
		h.ok(h.round(d))
		node.commits.Store(1)
		node.gets.Store(gets)
		_ = d.Checkpoint(t.Context())
		h.fill(d, c, 20)
		h.ok(h.round(d))
		h.ok(d.Checkpoint(t.Context()))
		h.same(d, c)
	}
}
