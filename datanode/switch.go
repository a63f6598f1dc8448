package datanode

import (
	"context"

	"plinth/internal/longlock"
)

// Switch is a node that can be taken away, when all of its calls fail with
// ErrUnreachable, and put back, or another in its place.
type Switch struct {
	// Alive, if set before the first call, is asked after each: without it the reply is
	// lost, as the node has died meanwhile. For tests.
	Alive func() bool

	mu   longlock.RWMutex
	node Replica // nil: away
	// stay is of watches: leave ends it when another node comes into place.
	stay  context.Context
	leave context.CancelFunc
}

var _ Replica = (*Switch)(nil)

// NewSwitch returns a switch to a node.
func NewSwitch(node Replica) *Switch {
	s := &Switch{node: node}
	s.stay, s.leave = context.WithCancel(context.Background())
	return s
}

// Set puts a node in place; nil takes it away, and returns when no call is under way
// but a watch, which then ends.
func (s *Switch) Set(node Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node = node
	s.leave()
	s.stay, s.leave = context.WithCancel(context.Background())
}

var errAway = Errorf(ErrUnreachable, "the node was taken away")

// through makes a call to the node that is in place.
func through[Q, R any](ctx context.Context, s *Switch, q *Q, call func(Replica, context.Context, *Q) (*R, error)) (*R, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.node == nil {
		return nil, errAway
	}
	r, err := call(s.node, ctx, q)
	if s.Alive != nil && !s.Alive() {
		return nil, errAway
	}
	return r, err
}

// pass is through for a call without a reply.
func pass[Q any](ctx context.Context, s *Switch, q *Q, call func(Replica, context.Context, *Q) error) error {
	_, err := through(ctx, s, q, func(n Replica, ctx context.Context, q *Q) (*struct{}, error) {
		return nil, call(n, ctx, q)
	})
	return err
}

func (s *Switch) Fence(ctx context.Context, q *FenceRequest) (*FenceReply, error) {
	return through(ctx, s, q, Replica.Fence)
}

func (s *Switch) Append(ctx context.Context, q *AppendRequest) (*AppendReply, error) {
	return through(ctx, s, q, Replica.Append)
}

func (s *Switch) ReadLog(ctx context.Context, q *ReadLogRequest) (*ReadLogReply, error) {
	return through(ctx, s, q, Replica.ReadLog)
}

func (s *Switch) WriteFragments(ctx context.Context, q *WriteFragmentsRequest) (*WriteFragmentsReply, error) {
	return through(ctx, s, q, Replica.WriteFragments)
}

func (s *Switch) ReadFragments(ctx context.Context, q *ReadFragmentsRequest) (*ReadFragmentsReply, error) {
	return through(ctx, s, q, Replica.ReadFragments)
}

func (s *Switch) ListFragments(ctx context.Context, q *ListFragmentsRequest) (*ListFragmentsReply, error) {
	return through(ctx, s, q, Replica.ListFragments)
}

func (s *Switch) Lookup(ctx context.Context, q *LookupRequest) (*LookupReply, error) {
	return through(ctx, s, q, Replica.Lookup)
}

func (s *Switch) ListSegments(ctx context.Context, q *ListSegmentsRequest) (*ListSegmentsReply, error) {
	return through(ctx, s, q, Replica.ListSegments)
}

func (s *Switch) SetLists(ctx context.Context, q *SetListsRequest) (*SetListsReply, error) {
	return through(ctx, s, q, Replica.SetLists)
}

func (s *Switch) DescribeSegments(ctx context.Context, q *DescribeSegmentsRequest) (*DescribeSegmentsReply, error) {
	return through(ctx, s, q, Replica.DescribeSegments)
}

func (s *Switch) Usage(ctx context.Context, q *UsageRequest) (*UsageReply, error) {
	return through(ctx, s, q, Replica.Usage)
}

func (s *Switch) Condemn(ctx context.Context, q *CondemnRequest) (*CondemnReply, error) {
	return through(ctx, s, q, Replica.Condemn)
}

func (s *Switch) Forwards(ctx context.Context, q *ForwardsRequest) (*ForwardsReply, error) {
	return through(ctx, s, q, Replica.Forwards)
}

func (s *Switch) Reclaim(ctx context.Context, q *ReclaimRequest) (*ReclaimReply, error) {
	return through(ctx, s, q, Replica.Reclaim)
}

func (s *Switch) RegistryGet(ctx context.Context, q *RegistryGetRequest) (*RegistryGetReply, error) {
	return through(ctx, s, q, Replica.RegistryGet)
}

func (s *Switch) RegistryList(ctx context.Context, q *RegistryListRequest) (*RegistryListReply, error) {
	return through(ctx, s, q, Replica.RegistryList)
}

func (s *Switch) RegistryGrant(ctx context.Context, q *RegistryGrantRequest) (*RegistryGrantReply, error) {
	return through(ctx, s, q, Replica.RegistryGrant)
}

func (s *Switch) RegistryWatch(ctx context.Context, q *RegistryWatchRequest) (*RegistryWatchReply, error) {
	s.mu.RLock()
	node, stay := s.node, s.stay
	s.mu.RUnlock()
	if node == nil {
		return nil, errAway
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(stay, cancel)()
	reply, err := node.RegistryWatch(ctx, q)
	if stay.Err() != nil || s.Alive != nil && !s.Alive() {
		return nil, errAway
	}
	return reply, err
}

func (s *Switch) JoinLog(ctx context.Context, q *JoinLogRequest) (*JoinLogReply, error) {
	return through(ctx, s, q, Replica.JoinLog)
}

func (s *Switch) RegistryCommit(ctx context.Context, q *RegistryTxn) (*RegistryCommitReply, error) {
	return through(ctx, s, q, Replica.RegistryCommit)
}

func (s *Switch) Status(ctx context.Context) (*Status, error) {
	return through(ctx, s, new(struct{}), func(n Replica, ctx context.Context, _ *struct{}) (*Status, error) {
		return n.Status(ctx)
	})
}

func (s *Switch) ReplaceSpindle(ctx context.Context, q *ReplaceSpindleRequest) error {
	return pass(ctx, s, q, Replica.ReplaceSpindle)
}

func (s *Switch) AddSpindle(ctx context.Context, q *AddSpindleRequest) error {
	return pass(ctx, s, q, Replica.AddSpindle)
}

func (s *Switch) Sync(ctx context.Context, q *SyncRequest) error {
	return pass(ctx, s, q, Replica.Sync)
}

func (s *Switch) TrimLog(ctx context.Context, q *TrimLogRequest) error {
	return pass(ctx, s, q, Replica.TrimLog)
}

func (s *Switch) DropLog(ctx context.Context, q *DropLogRequest) error {
	return pass(ctx, s, q, Replica.DropLog)
}

func (s *Switch) DiscardFragments(ctx context.Context, q *DiscardFragmentsRequest) error {
	return pass(ctx, s, q, Replica.DiscardFragments)
}

func (s *Switch) Reserve(ctx context.Context, q *ReserveRequest) error {
	return pass(ctx, s, q, Replica.Reserve)
}

func (s *Switch) Publish(ctx context.Context, q *PublishRequest) error {
	return pass(ctx, s, q, Replica.Publish)
}

func (s *Switch) CompleteIndex(ctx context.Context, q *CompleteIndexRequest) error {
	return pass(ctx, s, q, Replica.CompleteIndex)
}

func (s *Switch) Forward(ctx context.Context, q *ForwardRequest) error {
	return pass(ctx, s, q, Replica.Forward)
}

func (s *Switch) RegistryKeepAlive(ctx context.Context, q *RegistryKeepAliveRequest) error {
	return pass(ctx, s, q, Replica.RegistryKeepAlive)
}

func (s *Switch) RegistryRevoke(ctx context.Context, q *RegistryRevokeRequest) error {
	return pass(ctx, s, q, Replica.RegistryRevoke)
}

func (s *Switch) CopyLog(ctx context.Context, q *CopyLogRequest) error {
	return pass(ctx, s, q, Replica.CopyLog)
}

func (s *Switch) ResetLog(ctx context.Context, q *ResetLogRequest) error {
	return pass(ctx, s, q, Replica.ResetLog)
}
