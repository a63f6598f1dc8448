package host

import (
	"context"
	"slices"
	"testing"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// forgetful is a node whose index knows no segment, and of whose fragments some are discarded.
type forgetful struct {
	datanode.Node
	complete  bool
	discarded []id.Segment
}

func (f *forgetful) DescribeSegments(_ context.Context, r *datanode.DescribeSegmentsRequest) (*datanode.DescribeSegmentsReply, error) {
	reply := &datanode.DescribeSegmentsReply{}
	for _, s := range r.Segments {
		reply.Segments = append(reply.Segments, datanode.SegmentDescription{Segment: s})
	}
	return reply, nil
}

func (f *forgetful) Status(context.Context) (*datanode.Status, error) {
	return &datanode.Status{Index: datanode.IndexStatus{Complete: f.complete}}, nil
}

func (f *forgetful) DiscardFragments(_ context.Context, r *datanode.DiscardFragmentsRequest) error {
	f.discarded = append(f.discarded, r.Segment)
	return nil
}

// What the index does not know any more was deleted, but not where a node was made anew.
func TestRebuildKeepsWhatAnIncompleteIndexLacks(t *testing.T) {
	l, err := stripe.MakeLayouts(stripe.Geometry{K: 2, M: 1}, []id.Spindle{0, 1, 2}, 1)
	if err != nil {
		t.Fatal(err)
	}
	restored := []id.Segment{id.MakeSegment(0, 1), id.MakeSegment(0, 2)}
	for _, complete := range []bool{false, true} {
		node := &forgetful{complete: complete}
		stripes, err := stripe.NewStore(node, l, stripe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		w := &layoutRebuild{h: &Host{node: node, pool: &disk.Pool{Stripes: stripes}}, restored: slices.Clone(restored)}
		if err := w.giveUpDeleted(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := complete; slices.Equal(node.discarded, restored) != want || !want && len(node.discarded) > 0 {
			t.Errorf("index complete %t: %v are discarded", complete, node.discarded)
		}
	}
}
