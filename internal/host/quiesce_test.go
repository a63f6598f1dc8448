package host_test

import (
	"context"
	"sync/atomic"
	"testing"

	"plinth/datanode"
)

// crowded is a log in which results of others hold the room that a result needs,
// until a checkpoint gives some of them up.
type crowded struct {
	datanode.Node
	full    atomic.Bool
	refused atomic.Int64
}

func (n *crowded) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if r.Stream == datanode.Results && n.full.Load() {
		n.refused.Add(1)
		return nil, datanode.Errorf(datanode.ErrLogFull, "by a test")
	}
	return n.Node.Append(ctx, r)
}

func (n *crowded) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	if r.Stream == datanode.Results {
		n.full.Store(false)
	}
	return n.Node.TrimLog(ctx, r)
}

// Status reports a log that is filling up.
func (n *crowded) Status(ctx context.Context) (*datanode.Status, error) {
	st, err := n.Node.Status(ctx)
	if err == nil && n.full.Load() {
		st.Log.UsedBytes = st.Log.CapacityBytes
	}
	return st, err
}

// TestQuiesceFullLog has a round find no room for its results before a checkpoint
// has made some: quiescing goes on after it.
func TestQuiesceFullLog(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one := noise(1, 256<<10)
	s.write("other", noise(2, 256<<10))
	s.write("vm", make([]byte, 256<<10))
	n := &crowded{Node: s.Node}
	s.behind(n)
	s.snap("other", "mon")
	s.has("other@mon", noise(2, 256<<10)) // a round has destaged the mark, and no checkpoint has its result
	s.put("vm", 0, one)
	n.full.Store(true)
	s.ok(s.Host.Quiesce(t.Context()))
	if n.refused.Load() == 0 {
		t.Error("no result was refused")
	}
	s.has("vm", one)
	s.verified()
}
