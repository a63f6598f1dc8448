package history

import (
	"context"
	"sync"

	"plinth/datanode"
)

// trigger is a fault that waits for a call to the data node.
type trigger struct {
	call  string
	after bool // the call was made, and nobody hears of it
	skip  int  // so many of these calls go well before
	do    func()
	err   error // what the caller gets; nil: what the call gives
	fired bool
}

// Calls that a trigger can wait for: all that change something, by who makes them.
var (
	destageCalls = []string{"Append", "Sync", "TrimLog", "WriteFragments", "Lookup", "Publish", "RegistryCommit"}
	sweepCalls   = []string{
		"SetLists", "SetLists", "Condemn", "Condemn", "Forward", "Forward", "Reclaim", "Reclaim",
		"WriteFragments", "DiscardFragments", "Publish", "Append", "Sync", "RegistryCommit", "CompleteIndex", "TrimLog",
	}
	changeCalls = []string{"Append", "Sync", "RegistryCommit", "RegistryCommit", "Fence", "DropLog", "SetLists", "Publish", "TrimLog"}
)

// faults is a node with a trigger.
type faults struct {
	datanode.Node

	mu      sync.Mutex
	trigger *trigger
	lists   []*datanode.SetListsRequest // the last ones, to be delivered again
}

// arm sets the trigger; nil for none. It returns the one before.
func (f *faults) arm(t *trigger) *trigger {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.trigger
	f.trigger = t
	return old
}

// due returns the trigger if this call is the one it waits for.
func (f *faults) due(call string) *trigger {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.trigger
	if t == nil || t.call != call {
		return nil
	}
	if t.skip > 0 {
		t.skip--
		return nil
	}
	f.trigger, t.fired = nil, true
	return t
}

func (f *faults) around(call string, do func() error) error {
	t := f.due(call)
	if t == nil {
		return do()
	}
	if !t.after {
		if t.do(); t.err != nil {
			return t.err
		}
		return do()
	}
	err := do()
	if t.do(); t.err != nil {
		return t.err
	}
	return err
}

func with[Q, P any](f *faults, call string, do func(context.Context, Q) (P, error), ctx context.Context, q Q) (p P, err error) {
	err = f.around(call, func() (err error) {
		p, err = do(ctx, q)
		return err
	})
	return p, err
}

func (f *faults) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	return with(f, "Append", f.Node.Append, ctx, r)
}

func (f *faults) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	return f.around("Sync", func() error { return f.Node.Sync(ctx, r) })
}

func (f *faults) Fence(ctx context.Context, r *datanode.FenceRequest) (*datanode.FenceReply, error) {
	return with(f, "Fence", f.Node.Fence, ctx, r)
}

func (f *faults) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	return f.around("TrimLog", func() error { return f.Node.TrimLog(ctx, r) })
}

func (f *faults) DropLog(ctx context.Context, r *datanode.DropLogRequest) error {
	return f.around("DropLog", func() error { return f.Node.DropLog(ctx, r) })
}

func (f *faults) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return with(f, "WriteFragments", f.Node.WriteFragments, ctx, r)
}

func (f *faults) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	return f.around("DiscardFragments", func() error { return f.Node.DiscardFragments(ctx, r) })
}

func (f *faults) Lookup(ctx context.Context, r *datanode.LookupRequest) (*datanode.LookupReply, error) {
	return with(f, "Lookup", f.Node.Lookup, ctx, r)
}

func (f *faults) Publish(ctx context.Context, r *datanode.PublishRequest) error {
	return f.around("Publish", func() error { return f.Node.Publish(ctx, r) })
}

// listsKept is how many SetLists are kept to be delivered again.
const listsKept = 8

func (f *faults) SetLists(ctx context.Context, r *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	f.mu.Lock()
	f.lists = append(f.lists, r)
	f.lists = f.lists[max(0, len(f.lists)-listsKept):]
	f.mu.Unlock()
	return with(f, "SetLists", f.Node.SetLists, ctx, r)
}

func (f *faults) CompleteIndex(ctx context.Context, r *datanode.CompleteIndexRequest) error {
	return f.around("CompleteIndex", func() error { return f.Node.CompleteIndex(ctx, r) })
}

func (f *faults) Condemn(ctx context.Context, r *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	return with(f, "Condemn", f.Node.Condemn, ctx, r)
}

func (f *faults) Forward(ctx context.Context, r *datanode.ForwardRequest) error {
	return f.around("Forward", func() error { return f.Node.Forward(ctx, r) })
}

func (f *faults) Reclaim(ctx context.Context, r *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	return with(f, "Reclaim", f.Node.Reclaim, ctx, r)
}

func (f *faults) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	return with(f, "RegistryCommit", f.Node.RegistryCommit, ctx, r)
}

// RegistryList is where a pass asks what exists, after it has looked at the map.
func (f *faults) RegistryList(ctx context.Context, r *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	return with(f, "RegistryList", f.Node.RegistryList, ctx, r)
}
