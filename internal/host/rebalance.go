package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

// RebalanceStatus is what a rebalance has still to move, as this host saw it last; Segments is
// nil where it has not looked.
type RebalanceStatus struct {
	Segments *int64 `json:"segments,omitempty"`
	Bytes    int64  `json:"bytes"`
}

// Rebalance has what was written before spindles or data nodes came spread over all of them, or
// with on unset calls that off. It returns when that is recorded; Status tells how far it
// is. Errors: ErrNodes.
func (h *Host) Rebalance(ctx context.Context, on bool) error {
	for tries := 1; ; tries++ {
		err := h.changes().Rebalance(ctx, on)
		if !errors.Is(err, datanode.ErrConflict) || tries == changeTriesMax {
			h.drainNext.Store(0)
			h.wakeMembers()
			return err
		}
	}
}

// rebalanceStatus tells how far one is, nil without one.
func (h *Host) rebalanceStatus(ctx context.Context, nodes []datanode.NodeInfo) *RebalanceStatus {
	draining := slices.ContainsFunc(nodes, func(n datanode.NodeInfo) bool { return n.State == string(rack.NodeDraining) })
	if draining || !h.layouts().Any(stripe.Leaving) {
		return nil
	}
	left := h.leftNow(ctx)
	if left == nil {
		return &RebalanceStatus{}
	}
	return &RebalanceStatus{&left.lists.segments, left.lists.bytes}
}

func (s *RebalanceStatus) warnings() []string {
	switch {
	case s == nil:
		return nil
	case s.Segments == nil:
		return []string{"a rebalance is under way"}
	}
	return []string{fmt.Sprintf("a rebalance is under way: %d segments with %d bytes are still to be moved", *s.Segments, s.Bytes)}
}

// leftNow is what is left on spindles and in lists that leave, as it was some seconds ago at
// most, or when it could be looked at last; nil: it never could.
func (h *Host) leftNow(ctx context.Context) *drainLeft {
	left := h.drainLeft.Load()
	if left == nil || time.Since(left.at) > drainLeftTime {
		if _, err := h.lookLeaving(ctx); err == nil {
			left = h.drainLeft.Load()
		}
	}
	return left
}

// countList adds a segment to what is left in lists that leave.
func (h *Host) countList(left *leftOn, seg id.Segment, bytes int64) {
	if h.layouts().Kind(seg.Layout()) == stripe.Leaving {
		left.segments++
		left.bytes += bytes
	}
}
