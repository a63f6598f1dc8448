package datanodetest

import (
	"context"

	"plinth/datanode"
)

// The calls of datanode.Node, each carried over.

func (c *codec) Fence(ctx context.Context, r *datanode.FenceRequest) (*datanode.FenceReply, error) {
	return ask(ctx, c, r, c.node.Fence)
}

func (c *codec) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	return ask(ctx, c, r, c.node.Append)
}

func (c *codec) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	return tell(ctx, c, r, c.node.Sync)
}

func (c *codec) ReadLog(ctx context.Context, r *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	return ask(ctx, c, r, c.node.ReadLog)
}

func (c *codec) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	return tell(ctx, c, r, c.node.TrimLog)
}

func (c *codec) DropLog(ctx context.Context, r *datanode.DropLogRequest) error {
	return tell(ctx, c, r, c.node.DropLog)
}

// WriteFragments has a wire form of its own: gob carries no nil in a slice.
func (c *codec) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	type perhaps struct{ Err *datanode.Error }
	all, err := exchange(ctx, c, r, c.node.WriteFragments, func(r *datanode.WriteFragmentsReply) []perhaps {
		out := make([]perhaps, len(r.Errors))
		for i := range out {
			out[i].Err = r.Errors[i]
		}
		return out
	})
	if err != nil {
		return nil, err
	}
	reply := &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(all))}
	for i := range all {
		reply.Errors[i] = all[i].Err
	}
	return reply, nil
}

func (c *codec) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	return tell(ctx, c, r, c.node.DiscardFragments)
}

func (c *codec) ReplaceSpindle(ctx context.Context, r *datanode.ReplaceSpindleRequest) error {
	return tell(ctx, c, r, c.node.ReplaceSpindle)
}

func (c *codec) AddSpindle(ctx context.Context, r *datanode.AddSpindleRequest) error {
	return tell(ctx, c, r, c.node.AddSpindle)
}

func (c *codec) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	far := *r
	far.Into = nil
	return ask(ctx, c, &far, c.node.ReadFragments)
}

func (c *codec) ListFragments(ctx context.Context, r *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	return ask(ctx, c, r, c.node.ListFragments)
}

func (c *codec) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	return tell(ctx, c, r, c.node.Reserve)
}

func (c *codec) Lookup(ctx context.Context, r *datanode.LookupRequest) (*datanode.LookupReply, error) {
	return ask(ctx, c, r, c.node.Lookup)
}

func (c *codec) Publish(ctx context.Context, r *datanode.PublishRequest) error {
	return tell(ctx, c, r, c.node.Publish)
}

func (c *codec) ListSegments(ctx context.Context, r *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	return ask(ctx, c, r, c.node.ListSegments)
}

func (c *codec) SetLists(ctx context.Context, r *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	return ask(ctx, c, r, c.node.SetLists)
}

func (c *codec) CompleteIndex(ctx context.Context, r *datanode.CompleteIndexRequest) error {
	return tell(ctx, c, r, c.node.CompleteIndex)
}

func (c *codec) DescribeSegments(ctx context.Context, r *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	return ask(ctx, c, r, c.node.DescribeSegments)
}

func (c *codec) Usage(ctx context.Context, r *datanode.UsageRequest) (*datanode.UsageReply, error) {
	return ask(ctx, c, r, c.node.Usage)
}

func (c *codec) Condemn(ctx context.Context, r *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	return ask(ctx, c, r, c.node.Condemn)
}

func (c *codec) Forward(ctx context.Context, r *datanode.ForwardRequest) error {
	return tell(ctx, c, r, c.node.Forward)
}

func (c *codec) Forwards(ctx context.Context, r *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	return ask(ctx, c, r, c.node.Forwards)
}

func (c *codec) Reclaim(ctx context.Context, r *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	return ask(ctx, c, r, c.node.Reclaim)
}

func (c *codec) RegistryGet(ctx context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	return ask(ctx, c, r, c.node.RegistryGet)
}

func (c *codec) RegistryList(ctx context.Context, r *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	return ask(ctx, c, r, c.node.RegistryList)
}

func (c *codec) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	return ask(ctx, c, r, c.node.RegistryCommit)
}

func (c *codec) RegistryGrant(ctx context.Context, r *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	return ask(ctx, c, r, c.node.RegistryGrant)
}

func (c *codec) RegistryKeepAlive(ctx context.Context, r *datanode.RegistryKeepAliveRequest) error {
	return tell(ctx, c, r, c.node.RegistryKeepAlive)
}

func (c *codec) RegistryRevoke(ctx context.Context, r *datanode.RegistryRevokeRequest) error {
	return tell(ctx, c, r, c.node.RegistryRevoke)
}

func (c *codec) RegistryWatch(ctx context.Context, r *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	return ask(ctx, c, r, c.node.RegistryWatch)
}

func (c *codec) Status(ctx context.Context) (*datanode.Status, error) {
	return ask(ctx, c, &struct{ Asked bool }{}, func(ctx context.Context, _ *struct{ Asked bool }) (*datanode.Status, error) {
		return c.node.Status(ctx)
	})
}
