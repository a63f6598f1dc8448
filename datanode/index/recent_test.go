package index

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"plinth/datanode"
)

// TestTableFails has no table made: fingerprints stay in memory, are found, and are
// bounded; nothing of it is lost.
func TestTableFails(t *testing.T) {
	var failing atomic.Bool
	h := newHouse(t, errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, "/ingest") {
			return errorfs.ErrInjected
		}
		return nil
	})))
	h.recentMax, h.Index.recentMax = 4, 4
	found := func(most int) {
		t.Helper()
		for i := range most {
			if hit := h.lookup(1, 1, 1, i)[0]; !hit.Found || hit.Ref.Segment.Number() != uint64(i/2+1) {
				t.Fatalf("content %d of %d: %+v", i, most, hit)
			}
		}
		h.checkRows()
	}
	failing.Store(true)
	for n := range 4 {
		h.publish(pack(uint64(n+1), []int{2 * n, 2*n + 1}))
	}
	found(8)
	more := &datanode.PublishRequest{Segments: []datanode.SegmentEntry{pack(5, []int{8, 9})}}
	if err := h.Publish(context.Background(), more); err == nil || h.describe(5).Known {
		t.Fatalf("published beyond the bound: %v", err)
	}
	h.reopen() // which makes no table either
	found(8)
	failing.Store(false)
	h.ok(h.Publish(context.Background(), more))
	if n := h.recent.len(); n != 2 {
		t.Fatalf("%d rows are in memory", n)
	}
	found(10)
	h.reopen()
	found(10)
}
