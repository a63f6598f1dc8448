package wire

import (
	"context"
	"errors"

	"plinth/datanode"
)

// job is one call at the server.
type job struct {
	ctx     context.Context
	node    datanode.Node
	head    header // for the reply
	message []byte
	// reserve waits for memory that the reply will take.
	reserve func(bytes int) error
}

// handlers carry the calls out.
var handlers = [callTop]func(*job) (*frame, *datanode.Error){
	Fence:             answer(fenceRequest, datanode.Node.Fence, fenceReply, nil),
	Append:            answer(appendRequest, datanode.Node.Append, appendReply, nil),
	Sync:              answer(syncRequest, done(datanode.Node.Sync), none, nil),
	ReadLog:           answer(readLogRequest, datanode.Node.ReadLog, readLogReply, readLogBytes),
	TrimLog:           answer(trimLogRequest, done(datanode.Node.TrimLog), none, nil),
	DropLog:           answer(dropLogRequest, done(datanode.Node.DropLog), none, nil),
	WriteFragments:    answer(writeFragmentsRequest, datanode.Node.WriteFragments, writeFragmentsReply, nil),
	DiscardFragments:  answer(discardFragmentsRequest, done(datanode.Node.DiscardFragments), none, nil),
	ReadFragments:     readFragments,
	ListFragments:     answer(listFragmentsRequest, datanode.Node.ListFragments, listFragmentsReply, nil),
	Reserve:           answer(reserveRequest, done(datanode.Node.Reserve), none, nil),
	Lookup:            answer(lookupRequest, datanode.Node.Lookup, lookupReply, nil),
	Publish:           answer(publishRequest, done(datanode.Node.Publish), none, nil),
	ListSegments:      answer(listSegmentsRequest, datanode.Node.ListSegments, listSegmentsReply, nil),
	SetLists:          answer(setListsRequest, datanode.Node.SetLists, setListsReply, nil),
	CompleteIndex:     answer(completeIndexRequest, done(datanode.Node.CompleteIndex), none, nil),
	DescribeSegments:  answer(describeSegmentsRequest, datanode.Node.DescribeSegments, describeSegmentsReply, nil),
	Usage:             answer(usageRequest, datanode.Node.Usage, usageReply, nil),
	Condemn:           answer(condemnRequest, datanode.Node.Condemn, condemnReply, nil),
	Forward:           answer(forwardRequest, done(datanode.Node.Forward), none, nil),
	Forwards:          answer(forwardsRequest, datanode.Node.Forwards, forwardsReply, nil),
	Reclaim:           answer(reclaimRequest, datanode.Node.Reclaim, reclaimReply, nil),
	RegistryGet:       answer(registryGetRequest, datanode.Node.RegistryGet, registryGetReply, nil),
	RegistryList:      answer(registryListRequest, datanode.Node.RegistryList, registryListReply, nil),
	RegistryCommit:    answer(registryTxn, datanode.Node.RegistryCommit, registryCommitReply, nil),
	RegistryGrant:     answer(registryGrantRequest, datanode.Node.RegistryGrant, registryGrantReply, nil),
	RegistryKeepAlive: answer(registryKeepAliveRequest, done(datanode.Node.RegistryKeepAlive), none, nil),
	RegistryRevoke:    answer(registryRevokeRequest, done(datanode.Node.RegistryRevoke), none, nil),
	RegistryWatch:     answer(registryWatchRequest, datanode.Node.RegistryWatch, registryWatchReply, nil),
	JoinLog:           answer(joinLogRequest, replica(datanode.ReplicaNode.JoinLog), joinLogReply, nil),
	CopyLog:           answer(copyLogRequest, replica(done(datanode.ReplicaNode.CopyLog)), none, nil),
	ResetLog:          answer(resetLogRequest, replica(done(datanode.ReplicaNode.ResetLog)), none, nil),
	ReplaceSpindle:    answer(replaceSpindleRequest, done(datanode.Node.ReplaceSpindle), none, nil),
	AddSpindle:        answer(addSpindleRequest, done(datanode.Node.AddSpindle), none, nil),
	Status: answer(none, func(n datanode.Node, ctx context.Context, _ *struct{}) (*datanode.Status, error) {
		return n.Status(ctx)
	}, status, nil),
}

// answer makes a handler: it decodes the request, which holds the message's
// memory until the call returns, makes the call, and encodes what it gave, which
// belongs to the reply's frame from then on. bytes is what the reply may take,
// where it may be much.
func answer[Q, R any](question func(*coder, *Q), call func(datanode.Node, context.Context, *Q) (*R, error),
	reply func(*coder, *R), bytes func(*Q) int) func(*job) (*frame, *datanode.Error) {
	return func(j *job) (*frame, *datanode.Error) {
		q := new(Q)
		if _, err := decode(j.message, q, question); err != nil {
			return nil, err
		}
		if bytes != nil {
			if err := j.reserve(bytes(q)); err != nil {
				return nil, fromNode(err)
			}
		}
		r, err := call(j.node, j.ctx, q)
		if err != nil {
			return nil, fromNode(err)
		}
		return compose(j.head, 0, r, reply, true)
	}
}

// replica makes a call to a node that is one of several, ErrInvalid to another.
func replica[Q, R any](call func(datanode.ReplicaNode, context.Context, *Q) (*R, error)) func(datanode.Node, context.Context, *Q) (*R, error) {
	return func(n datanode.Node, ctx context.Context, q *Q) (*R, error) {
		r, ok := n.(datanode.ReplicaNode)
		if !ok {
			return nil, datanode.Errorf(datanode.ErrInvalid, "the node keeps no replicas")
		}
		return call(r, ctx, q)
	}
}

// done gives a call without a reply an empty one.
func done[N, Q any](call func(N, context.Context, *Q) error) func(N, context.Context, *Q) (*struct{}, error) {
	return func(n N, ctx context.Context, q *Q) (*struct{}, error) {
		return new(struct{}), call(n, ctx, q)
	}
}

func readLogBytes(q *datanode.ReadLogRequest) int {
	if q.BytesMax <= 0 || q.BytesMax > datanode.AppendBytesMax {
		return datanode.AppendBytesMax
	}
	return q.BytesMax + datanode.RecordBytesMax
}

// readFragmentsBytes is what the ranges take; those of unknown length are taken
// to be as long as most fragments are.
func readFragmentsBytes(q *datanode.ReadFragmentsRequest) int {
	const usual = 1 << 20
	sum := 0
	for _, r := range q.Ranges {
		switch {
		case q.Discard:
		case q.Verify && r.Length == 0:
			sum += usual
		default:
			sum += int(r.Length)
		}
	}
	return sum
}

// readFragments has the node read into memory that is sent from where it lies and
// reused afterwards.
func readFragments(j *job) (*frame, *datanode.Error) {
	q := new(datanode.ReadFragmentsRequest)
	if _, err := decode(j.message, q, readFragmentsRequest); err != nil {
		return nil, err
	}
	sum := readFragmentsBytes(q)
	if sum > FrameBytesMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "read of %d bytes: at most %d", sum, FrameBytesMax)
	}
	if err := j.reserve(sum); err != nil {
		return nil, fromNode(err)
	}
	var into *[]byte
	if !q.Verify && sum > 0 {
		into = take(sum)
		q.Into = (*into)[:sum]
	}
	r, err := j.node.ReadFragments(j.ctx, q)
	if err != nil {
		give(into)
		return nil, fromNode(err)
	}
	f, bad := compose(j.head, 0, r, readFragmentsReply, true)
	if bad != nil {
		give(into)
		return nil, bad
	}
	f.extra = into
	return f, nil
}

// fromNode is a node's error as it is sent.
func fromNode(err error) *datanode.Error {
	var coded *datanode.Error
	if errors.As(err, &coded) {
		return datanode.AsError(err)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return datanode.Errorf(datanode.ErrTimeout, "%v", err)
	}
	return datanode.AsError(err)
}
