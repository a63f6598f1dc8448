package index

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// While one disk releases segments and another finds their chunks, Reclaim
// deletes exactly those that were not found.
func TestLookupsRaceWithReclaim(t *testing.T) {
	const segments, slots = 60, 4
	h := newHouse(t, vfs.NewMem())
	contents := func(n int) (c []int) {
		for i := range slots {
			c = append(c, n*slots+i)
		}
		return c
	}
	for n := range segments {
		h.publish(pack(uint64(n+1), contents(n)))
	}
	var found [segments]bool
	errs := make([]error, 4)
	var running sync.WaitGroup
	running.Go(func() {
		for n := range segments {
			_, err := h.SetLists(context.Background(), &datanode.SetListsRequest{
				Disk: 1, Epoch: 1, Seq: id.Seq(n + 1), Lists: []datanode.List{list(uint64(n + 1))},
			})
			errs[0] = errors.Join(errs[0], err)
		}
	})
	running.Go(func() {
		for n := range segments {
			hits, err := h.tryLookup(2, 1, 1, contents(n)...)
			errs[1] = errors.Join(errs[1], err)
			found[n] = err == nil && hits[0].Found
			for _, hit := range hits {
				if hit.Found != found[n] {
					errs[1] = errors.New("a segment was found by halves")
				}
			}
		}
	})
	running.Go(func() {
		for range segments {
			_, err := h.Reclaim(context.Background(), &datanode.ReclaimRequest{Max: 3})
			errs[2] = errors.Join(errs[2], err)
		}
	})
	running.Go(func() {
		for n := range segments {
			e := pack(uint64(1000+n), contents(n))
			errs[3] = errors.Join(errs[3], h.Publish(context.Background(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{e}}))
		}
	})
	running.Wait()
	h.ok(errors.Join(errs...))
	h.reclaimAll()
	for n := range segments {
		// Found in either of the two, it is held in one of them.
		old, again := h.describe(uint64(n+1)), h.describe(uint64(1000+n))
		if !again.Known || h.deleted[id.MakeSegment(3, uint64(n+1))] > 0 == old.Known {
			t.Fatalf("segment %d: known %t, deleted %v", n+1, old.Known, h.deleted)
		}
		holds := func(d datanode.SegmentDescription) bool {
			return slices.ContainsFunc(d.Lists, func(l datanode.DiskList) bool { return l.Disk == 2 && l.Bits[0] == 1<<slots-1 })
		}
		if found[n] != (holds(old) || holds(again)) {
			t.Fatalf("segment %d: found %t, lists %+v and %+v", n+1, found[n], old.Lists, again.Lists)
		}
	}
}

// Calls that come after Close, or in its midst, fail; none panics.
func TestCloseDuringCalls(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{1, 2}))
	var running sync.WaitGroup
	for range 3 {
		running.Go(func() {
			for seq := id.Seq(1); ; seq++ {
				_, err := h.tryLookup(2, 1, seq, 1)
				if err == nil {
					err = h.Publish(context.Background(), &datanode.PublishRequest{})
				}
				if errors.Is(err, datanode.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	h.ok(h.Index.Close())
	running.Wait()
}
