package datanodetest

import (
	"context"
	"sync"

	"plinth/datanode"
)

// Switch is a node that can be taken away, when all of its calls fail with
// datanode.ErrUnreachable, and put back, or another in its place.
type Switch struct {
	mu   sync.RWMutex
	node datanode.Replica // nil: away
}

var _ datanode.Replica = (*Switch)(nil)

// NewSwitch returns a switch to a node.
func NewSwitch(node datanode.Replica) *Switch { return &Switch{node: node} }

// Set puts a node in place; nil takes it away, and returns when no call is under way.
func (s *Switch) Set(node datanode.Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node = node
}

// through makes a call to the node that is in place.
func through[Q, R any](ctx context.Context, s *Switch, q *Q, call func(datanode.Replica, context.Context, *Q) (*R, error)) (*R, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.node == nil {
		return nil, datanode.Errorf(datanode.ErrUnreachable, "the node was taken away")
	}
	return call(s.node, ctx, q)
}

// pass is through for a call without a reply.
func pass[Q any](ctx context.Context, s *Switch, q *Q, call func(datanode.Replica, context.Context, *Q) error) error {
	_, err := through(ctx, s, q, func(n datanode.Replica, ctx context.Context, q *Q) (*struct{}, error) {
		return nil, call(n, ctx, q)
	})
	return err
}

func (s *Switch) Fence(ctx context.Context, q *datanode.FenceRequest) (*datanode.FenceReply, error) {
	return through(ctx, s, q, datanode.Replica.Fence)
}

func (s *Switch) Append(ctx context.Context, q *datanode.AppendRequest) (*datanode.AppendReply, error) {
	return through(ctx, s, q, datanode.Replica.Append)
}

func (s *Switch) ReadLog(ctx context.Context, q *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	return through(ctx, s, q, datanode.Replica.ReadLog)
}

func (s *Switch) WriteFragments(ctx context.Context, q *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return through(ctx, s, q, datanode.Replica.WriteFragments)
}

func (s *Switch) ReadFragments(ctx context.Context, q *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	return through(ctx, s, q, datanode.Replica.ReadFragments)
}

func (s *Switch) ListFragments(ctx context.Context, q *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	return through(ctx, s, q, datanode.Replica.ListFragments)
}

func (s *Switch) Lookup(ctx context.Context, q *datanode.LookupRequest) (*datanode.LookupReply, error) {
	return through(ctx, s, q, datanode.Replica.Lookup)
}

func (s *Switch) ListSegments(ctx context.Context, q *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	return through(ctx, s, q, datanode.Replica.ListSegments)
}

func (s *Switch) SetLists(ctx context.Context, q *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	return through(ctx, s, q, datanode.Replica.SetLists)
}

func (s *Switch) DescribeSegments(ctx context.Context, q *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	return through(ctx, s, q, datanode.Replica.DescribeSegments)
}

func (s *Switch) Usage(ctx context.Context, q *datanode.UsageRequest) (*datanode.UsageReply, error) {
	return through(ctx, s, q, datanode.Replica.Usage)
}

func (s *Switch) Condemn(ctx context.Context, q *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	return through(ctx, s, q, datanode.Replica.Condemn)
}

func (s *Switch) Forwards(ctx context.Context, q *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	return through(ctx, s, q, datanode.Replica.Forwards)
}

func (s *Switch) Reclaim(ctx context.Context, q *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	return through(ctx, s, q, datanode.Replica.Reclaim)
}

func (s *Switch) RegistryGet(ctx context.Context, q *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	return through(ctx, s, q, datanode.Replica.RegistryGet)
}

func (s *Switch) RegistryList(ctx context.Context, q *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	return through(ctx, s, q, datanode.Replica.RegistryList)
}

func (s *Switch) RegistryGrant(ctx context.Context, q *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	return through(ctx, s, q, datanode.Replica.RegistryGrant)
}

func (s *Switch) RegistryWatch(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	return through(ctx, s, q, datanode.Replica.RegistryWatch)
}

func (s *Switch) JoinLog(ctx context.Context, q *datanode.JoinLogRequest) (*datanode.JoinLogReply, error) {
	return through(ctx, s, q, datanode.Replica.JoinLog)
}

func (s *Switch) RegistryCommit(ctx context.Context, q *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	return through(ctx, s, q, datanode.Replica.RegistryCommit)
}

func (s *Switch) Status(ctx context.Context) (*datanode.Status, error) {
	return through(ctx, s, new(struct{}), func(n datanode.Replica, ctx context.Context, _ *struct{}) (*datanode.Status, error) {
		return n.Status(ctx)
	})
}

func (s *Switch) Sync(ctx context.Context, q *datanode.SyncRequest) error {
	return pass(ctx, s, q, datanode.Replica.Sync)
}

func (s *Switch) TrimLog(ctx context.Context, q *datanode.TrimLogRequest) error {
	return pass(ctx, s, q, datanode.Replica.TrimLog)
}

func (s *Switch) DropLog(ctx context.Context, q *datanode.DropLogRequest) error {
	return pass(ctx, s, q, datanode.Replica.DropLog)
}

func (s *Switch) DiscardFragments(ctx context.Context, q *datanode.DiscardFragmentsRequest) error {
	return pass(ctx, s, q, datanode.Replica.DiscardFragments)
}

func (s *Switch) Reserve(ctx context.Context, q *datanode.ReserveRequest) error {
	return pass(ctx, s, q, datanode.Replica.Reserve)
}

func (s *Switch) Publish(ctx context.Context, q *datanode.PublishRequest) error {
	return pass(ctx, s, q, datanode.Replica.Publish)
}

func (s *Switch) CompleteIndex(ctx context.Context, q *datanode.CompleteIndexRequest) error {
	return pass(ctx, s, q, datanode.Replica.CompleteIndex)
}

func (s *Switch) Forward(ctx context.Context, q *datanode.ForwardRequest) error {
	return pass(ctx, s, q, datanode.Replica.Forward)
}

func (s *Switch) RegistryKeepAlive(ctx context.Context, q *datanode.RegistryKeepAliveRequest) error {
	return pass(ctx, s, q, datanode.Replica.RegistryKeepAlive)
}

func (s *Switch) RegistryRevoke(ctx context.Context, q *datanode.RegistryRevokeRequest) error {
	return pass(ctx, s, q, datanode.Replica.RegistryRevoke)
}

func (s *Switch) CopyLog(ctx context.Context, q *datanode.CopyLogRequest) error {
	return pass(ctx, s, q, datanode.Replica.CopyLog)
}

func (s *Switch) ResetLog(ctx context.Context, q *datanode.ResetLogRequest) error {
	return pass(ctx, s, q, datanode.Replica.ResetLog)
}
