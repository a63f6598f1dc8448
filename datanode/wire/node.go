package wire

import (
	"context"

	"plinth/datanode"
)

var _ datanode.Replica = (*Client)(nil)

// The calls of datanode.Node. Requests are copied before a call returns; what a
// reply refers to is the caller's.

func (c *Client) Fence(ctx context.Context, r *datanode.FenceRequest) (*datanode.FenceReply, error) {
	return ask(ctx, c, Fence, r, fenceRequest, fenceReply, false)
}

func (c *Client) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	return ask(ctx, c, Append, r, appendRequest, appendReply, false)
}

func (c *Client) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	return tell(ctx, c, Sync, r, syncRequest)
}

func (c *Client) ReadLog(ctx context.Context, r *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	return ask(ctx, c, ReadLog, r, readLogRequest, readLogReply, true)
}

func (c *Client) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	return tell(ctx, c, TrimLog, r, trimLogRequest)
}

func (c *Client) DropLog(ctx context.Context, r *datanode.DropLogRequest) error {
	return tell(ctx, c, DropLog, r, dropLogRequest)
}

func (c *Client) JoinLog(ctx context.Context, r *datanode.JoinLogRequest) (*datanode.JoinLogReply, error) {
	return ask(ctx, c, JoinLog, r, joinLogRequest, joinLogReply, false)
}

func (c *Client) CopyLog(ctx context.Context, r *datanode.CopyLogRequest) error {
	return tell(ctx, c, CopyLog, r, copyLogRequest)
}

func (c *Client) ResetLog(ctx context.Context, r *datanode.ResetLogRequest) error {
	return tell(ctx, c, ResetLog, r, resetLogRequest)
}

func (c *Client) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return ask(ctx, c, WriteFragments, r, writeFragmentsRequest, writeFragmentsReply, false)
}

func (c *Client) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	return tell(ctx, c, DiscardFragments, r, discardFragmentsRequest)
}

// ReplaceSpindle is refused where the node's program does not know the call.
func (c *Client) ReplaceSpindle(ctx context.Context, r *datanode.ReplaceSpindleRequest) error {
	if !c.has(featureReplace) {
		return datanode.Errorf(datanode.ErrInvalid, "replace spindle %d of a data node whose program replaces none while it runs: stop it, or upgrade plinth there", r.Spindle)
	}
	return tell(ctx, c, ReplaceSpindle, r, replaceSpindleRequest)
}

// AddSpindle is refused where the node's program does not know the call.
func (c *Client) AddSpindle(ctx context.Context, r *datanode.AddSpindleRequest) error {
	if !c.has(featureAdd) {
		return datanode.Errorf(datanode.ErrInvalid, "add a spindle to a data node whose program adds none while it runs: stop it, or upgrade plinth there")
	}
	return tell(ctx, c, AddSpindle, r, addSpindleRequest)
}

// has reports whether both sides have a feature.
func (c *Client) has(feature uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.features&feature != 0
}

// ReadFragments uses r.Into, if all fits, so that the memory of the frame is used
// again; else the answers lie in the frame.
func (c *Client) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	out := new(datanode.ReadFragmentsReply)
	f, aliased, err := exchange(ctx, c, ReadFragments, r, readFragmentsRequest, out, readFragmentsReply, readFragmentsBytes(r) > bulkBytes)
	if err != nil {
		return nil, err
	}
	sum := 0
	for i := range out.Results {
		sum += len(out.Results[i].Data)
	}
	if into := r.Into; !r.Verify && sum <= len(into) {
		for i := range out.Results {
			data := &out.Results[i].Data
			n := copy(into, *data)
			*data, into = into[:n:n], into[n:]
		}
		aliased = false
	}
	if aliased {
		f.keep()
	}
	f.release()
	return out, nil
}

func (c *Client) ListFragments(ctx context.Context, r *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	return ask(ctx, c, ListFragments, r, listFragmentsRequest, listFragmentsReply, true)
}

func (c *Client) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	return tell(ctx, c, Reserve, r, reserveRequest)
}

func (c *Client) Lookup(ctx context.Context, r *datanode.LookupRequest) (*datanode.LookupReply, error) {
	return ask(ctx, c, Lookup, r, lookupRequest, lookupReply, false)
}

// Publish sends what is too large for a message in several, which is allowed:
// publishing is done segment by segment.
func (c *Client) Publish(ctx context.Context, r *datanode.PublishRequest) error {
	if len(r.Segments) > datanode.SegmentsMax {
		return datanode.Errorf(datanode.ErrInvalid, "publish of %d segments", len(r.Segments))
	}
	return portions(r.Segments, segmentEntry, func(some []datanode.SegmentEntry) error {
		return tell(ctx, c, Publish, &datanode.PublishRequest{Segments: some}, publishRequest)
	})
}

func (c *Client) ListSegments(ctx context.Context, r *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	return ask(ctx, c, ListSegments, r, listSegmentsRequest, listSegmentsReply, true)
}

// SetLists sends what is too large for a message in several: each list is set by
// itself.
func (c *Client) SetLists(ctx context.Context, r *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	if len(r.Lists) > datanode.SegmentsMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "%d lists", len(r.Lists))
	}
	all := new(datanode.SetListsReply)
	err := portions(r.Lists, slotList, func(some []datanode.List) error {
		part := *r
		part.Lists = some
		reply, err := ask(ctx, c, SetLists, &part, setListsRequest, setListsReply, false)
		if err == nil {
			all.Refused = append(all.Refused, reply.Refused...)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// portionBytes is what a message of several may have.
const portionBytes = FrameBytesMax / 2

// portions calls do with the whole list, or with one piece after the other.
func portions[T any](all []T, visit func(*coder, *T), do func([]T) error) error {
	for {
		n, size := 0, coder{pass: sizing}
		for n < len(all) {
			if visit(&size, &all[n]); n > 0 && size.off > portionBytes {
				break
			}
			n++
		}
		if err := do(all[:n]); err != nil {
			return err
		}
		if all = all[n:]; len(all) == 0 {
			return nil
		}
	}
}

func (c *Client) CompleteIndex(ctx context.Context, r *datanode.CompleteIndexRequest) error {
	return tell(ctx, c, CompleteIndex, r, completeIndexRequest)
}

func (c *Client) DescribeSegments(ctx context.Context, r *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	return ask(ctx, c, DescribeSegments, r, describeSegmentsRequest, describeSegmentsReply, true)
}

func (c *Client) Usage(ctx context.Context, r *datanode.UsageRequest) (*datanode.UsageReply, error) {
	return ask(ctx, c, Usage, r, usageRequest, usageReply, true)
}

func (c *Client) Condemn(ctx context.Context, r *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	return ask(ctx, c, Condemn, r, condemnRequest, condemnReply, false)
}

func (c *Client) Forward(ctx context.Context, r *datanode.ForwardRequest) error {
	return tell(ctx, c, Forward, r, forwardRequest)
}

func (c *Client) Forwards(ctx context.Context, r *datanode.ForwardsRequest) (*datanode.ForwardsReply, error) {
	return ask(ctx, c, Forwards, r, forwardsRequest, forwardsReply, true)
}

func (c *Client) Reclaim(ctx context.Context, r *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	return ask(ctx, c, Reclaim, r, reclaimRequest, reclaimReply, false)
}

func (c *Client) RegistryGet(ctx context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	return ask(ctx, c, RegistryGet, r, registryGetRequest, registryGetReply, false)
}

func (c *Client) RegistryList(ctx context.Context, r *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	return ask(ctx, c, RegistryList, r, registryListRequest, registryListReply, true)
}

func (c *Client) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	return ask(ctx, c, RegistryCommit, r, registryTxn, registryCommitReply, false)
}

func (c *Client) RegistryGrant(ctx context.Context, r *datanode.RegistryGrantRequest) (*datanode.RegistryGrantReply, error) {
	return ask(ctx, c, RegistryGrant, r, registryGrantRequest, registryGrantReply, false)
}

func (c *Client) RegistryKeepAlive(ctx context.Context, r *datanode.RegistryKeepAliveRequest) error {
	return tell(ctx, c, RegistryKeepAlive, r, registryKeepAliveRequest)
}

func (c *Client) RegistryRevoke(ctx context.Context, r *datanode.RegistryRevokeRequest) error {
	return tell(ctx, c, RegistryRevoke, r, registryRevokeRequest)
}

func (c *Client) RegistryWatch(ctx context.Context, r *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	return ask(ctx, c, RegistryWatch, r, registryWatchRequest, registryWatchReply, true)
}

func (c *Client) Status(ctx context.Context) (*datanode.Status, error) {
	return ask(ctx, c, Status, new(struct{}), none, status, true)
}
