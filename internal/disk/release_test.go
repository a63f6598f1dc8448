package disk

import (
	"context"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

// lister calls listed once, after the next page of segments of a disk.
type lister struct {
	datanode.Node
	disk   id.Disk
	listed func()
}

func (l *lister) ListSegments(ctx context.Context, r *datanode.ListSegmentsRequest) (*datanode.ListSegmentsReply, error) {
	reply, err := l.Node.ListSegments(ctx, r)
	if f := l.listed; f != nil && r.Disk == l.disk {
		l.listed = nil
		f()
	}
	return reply, err
}

// TestReleaseBesideMove gives up what a disk holds while its chunks move: the
// copies, which it comes to hold meanwhile, are given up too.
func TestReleaseBesideMove(t *testing.T) {
	var l *lister
	h := newHouse(t, func(n datanode.Node) datanode.Node {
		l = &lister{Node: n, disk: 1}
		return l
	})
	ctx := t.Context()
	p := h.session()
	d := h.open(p, 1)
	h.fill(d, newContent(1), 20)
	h.ok(h.round(d))
	h.ok(d.Close())

	const mover, epoch = 9, 2
	for n, e := range map[id.Disk]id.Epoch{1: 2, mover: epoch} {
		_, err := h.node.Fence(ctx, &datanode.FenceRequest{Disk: n, Epoch: e})
		h.ok(err)
	}
	m := &reclaim.Mover{
		Index: h.node, Stripes: p.Stripes, Opener: p.Opener, Geometry: p.Geometry, Number: p.Number, Disk: mover, Epoch: epoch,
	}
	l.listed = func() {
		use, err := h.node.Usage(ctx, &datanode.UsageRequest{})
		h.ok(err)
		for _, u := range use.Segments {
			moved, err := m.Move(ctx, []id.Segment{u.Segment})
			h.ok(err)
			if u.Kind == datanode.KindChunks && moved.Chunks == 0 {
				t.Fatalf("nothing moved out of segment %s", u.Segment)
			}
		}
	}
	h.ok(Release(ctx, h.node, 1, 2))
	h.ok(h.reclaim(ctx))
	use, err := h.node.Usage(ctx, &datanode.UsageRequest{})
	h.ok(err)
	if len(use.Segments) > 0 {
		t.Fatalf("segment %s is left, held by %v", use.Segments[0].Segment, use.Segments[0].Disks)
	}
}

// TestCloseEndsPass closes a disk while a pass waits between two rows.
func TestCloseEndsPass(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	page := make([]byte, 4096)
	for n := range 5000 { // some thousand rows between two calls of Pace
		page[0], page[1] = byte(n), byte(n>>8)+1
		h.ok(d.WriteAt(t.Context(), page, int64(n%1000)*4096, false))
		if n%1000 == 999 {
			h.ok(h.round(d))
			h.snap(id.Snapshot(n/1000+1), d)
		}
	}
	h.ok(h.round(d))
	waiting := make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := d.Pass(t.Context(), PassOptions{Pace: func(ctx context.Context, _ int) error {
			close(waiting)
			<-ctx.Done()
			return ctx.Err()
		}})
		done <- err
	}()
	<-waiting
	h.ok(d.Close())
	h.fails("a pass of a disk that was closed", <-done, ErrClosed)
}
