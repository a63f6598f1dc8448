package index

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// A loss of power at any point, hits of one disk racing with another's releases
// and with Reclaim: what a Publish made stable is there, and its segments'
// fragments are.
func TestCrash(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 60 {
		crashOnce(t, rng)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
}

// Power is lost when the first fragments are about to go: what is stable by then says so.
func TestCrashWhenFragmentsGo(t *testing.T) {
	fs := vfs.NewCrashableMem()
	h := newHouse(t, fs)
	h.publish(pack(1, []int{0, 1}))
	h.setLists(1, 1, 1, list(1))
	h.ok(h.store.Sync())
	var after *vfs.MemFS
	h.onDelete = func() { after = fs.CrashClone(vfs.CrashCloneCfg{}) }
	if deleted := h.reclaimAll(); len(deleted) != 1 {
		t.Fatalf("deleted: %v", deleted)
	}
	h.ok(h.Index.Close())
	h.fs, h.onDelete = after, nil
	h.open(Options{})
	if d := h.describe(1); d.Known && d.State != datanode.StateDeleting {
		t.Errorf("fragments go of a segment that is %d after a loss of power", d.State)
	}
}

func crashOnce(t *testing.T, rng *rand.Rand) {
	const segments = 12
	fs := vfs.NewCrashableMem()
	h := newHouse(t, fs)
	h.recentMax = 1 + rng.IntN(30) // rows go to tables all the time, or hardly ever
	h.Index.recentMax = h.recentMax
	ctx := context.Background()
	for n := range segments {
		h.publish(pack(uint64(n+1), []int{2 * n, 2*n + 1}))
	}
	order := rng.Perm(segments)
	stopAt := 1 + rng.IntN(3*segments)

	var mu sync.Mutex // guards what follows, against the crash
	stable := map[int]bool{}
	released := map[int]bool{}
	var after *vfs.MemFS
	var gone map[id.Segment]int
	steps := 0
	// done notes a step's outcome, unless power is lost already.
	done := func(note func()) bool {
		mu.Lock()
		defer mu.Unlock()
		if after != nil {
			return false
		}
		note()
		if steps++; steps == stopAt {
			h.mu.Lock() // Deletes are stable when they return
			defer h.mu.Unlock()
			after = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			gone = map[id.Segment]int{}
			for s := range h.deleted {
				gone[s] = 1
			}
		}
		return after == nil
	}
	var running sync.WaitGroup
	running.Go(func() {
		for i, n := range order {
			hits, err := h.tryLookup(2, 1, id.Seq(i+1), 2*n)
			if err == nil {
				err = h.Publish(ctx, &datanode.PublishRequest{})
			}
			if err != nil {
				t.Error(err)
				return
			}
			if !done(func() { stable[n] = hits[0].Found && hits[0].Ref.Segment.Number() == uint64(n+1) }) {
				return
			}
		}
	})
	running.Go(func() { // the same chunks elsewhere, given up at once
		for n := range segments {
			err := h.Publish(ctx, &datanode.PublishRequest{Segments: []datanode.SegmentEntry{
				pack(uint64(n+100), []int{2 * n, 2*n + 1, 1000 + n}, datanode.Birth{Disk: 3, Epoch: 1, Slots: 3})}})
			if err == nil && n%2 == 0 {
				_, err = h.SetLists(ctx, &datanode.SetListsRequest{Disk: 3, Epoch: 1, Seq: id.Seq(n + 1), Lists: []datanode.List{list(uint64(n + 100))}})
			}
			if err != nil {
				t.Error(err)
				return
			}
			if !done(func() {}) {
				return
			}
		}
	})
	running.Go(func() {
		for n := range segments {
			_, err := h.SetLists(ctx, &datanode.SetListsRequest{Disk: 1, Epoch: 1, Seq: id.Seq(n + 1), Lists: []datanode.List{list(uint64(n + 1))}})
			if err == nil && n%3 == 2 {
				_, err = h.Reclaim(ctx, &datanode.ReclaimRequest{})
			}
			if err != nil {
				t.Error(err)
				return
			}
			if !done(func() { released[n] = true }) {
				return
			}
		}
	})
	running.Wait()
	if t.Failed() || after == nil {
		return
	}
	h.ok(h.Index.Close())
	h.fs, h.deleted = after, gone
	h.open(Options{})
	h.checkRows()
	h.reclaimAll()
	h.checkRows()
	for n := range segments {
		d := h.describe(uint64(n + 1))
		deleted := h.deleted[id.MakeSegment(3, uint64(n+1))] > 0
		held := slices.ContainsFunc(d.Lists, func(l datanode.DiskList) bool { return l.Disk == 2 })
		switch {
		case stable[n] && (deleted || !d.Known || !held):
			t.Errorf("segment %d was found and published: deleted %t, %+v", n+1, deleted, d)
		case deleted == d.Known:
			t.Errorf("segment %d: fragments deleted %t, known %t", n+1, deleted, d.Known)
		case !deleted && released[n] && !held:
			t.Errorf("segment %d is released and not deleted: %+v", n+1, d)
		case !deleted && (len(d.Slots) != 2 || len(d.Dangling) > 0):
			t.Errorf("segment %d lost its slots: %+v", n+1, d)
		}
	}
	h.ok(h.Index.Close())
}
