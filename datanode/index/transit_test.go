package index

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

func (h *house) condemn(numbers ...uint64) {
	h.Helper()
	var segments []id.Segment
	for _, n := range numbers {
		segments = append(segments, id.MakeSegment(3, n))
	}
	reply, err := h.Condemn(context.Background(), &datanode.CondemnRequest{Disk: 9, Epoch: 1, Segments: segments})
	h.ok(err)
	if !slices.Equal(reply.Condemned, segments) {
		h.Fatalf("condemned %v of %v", reply.Condemned, segments)
	}
}

// moved copies all slots of a segment to the same ones of another.
func (h *house) moved(from, to uint64, contents []int) error {
	h.publish(pack(to, contents, datanode.Birth{Disk: 9, Epoch: 1, Slots: uint16(len(contents))}))
	r := &datanode.ForwardRequest{Disk: 9, Epoch: 1, Segment: id.MakeSegment(3, to)}
	for slot := range contents {
		r.Moves = append(r.Moves, datanode.Move{From: id.MakeSegment(3, from), Slot: id.Slot(slot), To: id.Slot(slot), Location: at(slot)})
	}
	return h.Forward(context.Background(), r)
}

// held returns what a disk holds of a segment.
func (h *house) heldBits(d id.Disk, n uint64) []byte {
	h.Helper()
	for _, l := range h.describe(n).Lists {
		if l.Disk == d {
			return l.Bits
		}
	}
	return nil
}

// A loss of power after Condemn keeps every registration made before, synced or
// not; one after Forward keeps the moves and who holds the copies; and one in
// their midst leaves the index as it was before or after.
func TestCrashForward(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 100 {
		crashForward(t, rng)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
}

func crashForward(t *testing.T, rng *rand.Rand) {
	fs := vfs.NewCrashableMem()
	h := newHouse(t, fs)
	contents := []int{1, 2, 3, 4}
	h.publish(pack(1, contents), pack(2, []int{5}))
	hits := h.lookup(2, 1, 1, 2, 4)
	if !hits[0].Found || !hits[1].Found {
		t.Fatalf("hits %+v", hits)
	}
	lose := func() *vfs.MemFS {
		return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
	}
	var after *vfs.MemFS
	steps := rng.IntN(3)
	switch steps {
	case 0:
		after = lose()
	case 1: // power goes while moves are recorded, or as soon as a disk knows them
		h.condemn(1)
		done := make(chan error)
		go func() { done <- h.moved(1, 3, contents) }()
		time.Sleep(time.Duration(rng.IntN(300)) * time.Microsecond)
		reply, err := h.Forwards(context.Background(), &datanode.ForwardsRequest{})
		h.ok(err)
		after = lose()
		h.ok(<-done)
		if len(reply.Forwards) > 0 {
			steps = 2
		}
	case 2:
		h.condemn(1)
		h.ok(h.moved(1, 3, contents))
		after = lose()
	}
	h.ok(h.Index.Close())
	h.fs = after
	h.open(Options{})
	d := h.describe(1)
	if steps > 0 && (d.State < datanode.StateCondemned || !slices.Equal(h.heldBits(2, 1), bits(1, 3))) {
		t.Errorf("condemned: %+v", d)
	}
	moves, err := h.Forwards(context.Background(), &datanode.ForwardsRequest{})
	h.ok(err)
	if steps > 1 && len(moves.Forwards) == 0 {
		t.Errorf("forwarded: %+v", d)
	}
	if len(moves.Forwards) > 0 && (d.State != datanode.StateForwarded || !slices.Equal(h.heldBits(1, 3), bits(0, 1, 2, 3)) ||
		!slices.Equal(h.heldBits(2, 3), h.heldBits(2, 1))) {
		t.Errorf("moves %+v, %+v", moves, h.describe(3).Lists)
	}
	h.reclaimAll()
	if !h.describe(1).Known {
		t.Error("deleted")
	}
	h.ok(h.Index.Close())
}

// Moves that were told survive a loss of power, though who recorded them has no
// answer yet: a disk may have followed them.
func TestToldMovesAreStable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	h := newHouse(t, fs)
	h.publish(pack(1, []int{1}), pack(2, []int{1}, datanode.Birth{Disk: 9, Epoch: 1, Slots: 1}))
	h.condemn(1)
	from := id.MakeSegment(3, 1)
	h.ok(h.forward(id.MakeSegment(3, 2), [][]datanode.Move{{{From: from, Location: at(0)}}})) // not synced
	told, err := h.Forwards(context.Background(), &datanode.ForwardsRequest{})
	h.ok(err)
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	h.ok(h.Index.Close())
	h.fs = after
	h.open(Options{})
	if len(told.Forwards) != 1 || !slices.Equal(h.heldBits(1, 2), bits(0)) {
		t.Errorf("told %+v, disk 1 holds %b of the copy", told.Forwards, h.heldBits(1, 2))
	}
	h.ok(h.Index.Close())
}

// What another program, or damage, left of moves is put right at Open.
func TestMovesAreMended(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{1, 2}), pack(2, []int{3, 4}), pack(4, []int{5}))
	h.lookup(2, 1, 1, 1, 3)
	h.condemn(1, 2)
	h.ok(h.moved(1, 5, []int{1, 2}))
	h.ok(h.moved(2, 6, []int{3, 4}))
	b := h.store.DB.NewBatch()
	del(b, listKey(id.MakeSegment(3, 5), 2)) // a copy that is not held
	del(b, segmentKey(keySegment, id.MakeSegment(3, 6)))
	set(b, segmentKey(keyMoves, id.MakeSegment(3, 4)), encodeMoves(nil)) // of a live segment
	h.ok(h.store.Commit(b))
	h.reopen()
	if got := h.heldBits(2, 5); !slices.Equal(got, bits(0)) {
		t.Errorf("disk 2 holds %b of the copy", got)
	}
	if s := h.describe(2).State; s != datanode.StateCondemned {
		t.Errorf("segment 2 has state %d, its copy is not there", s)
	}
	reply, err := h.Forwards(context.Background(), &datanode.ForwardsRequest{})
	h.ok(err)
	if len(reply.Forwards) != 1 || reply.Forwards[0].From.Number() != 1 {
		t.Errorf("forwards %+v", reply.Forwards)
	}
	if found, err := h.store.View(segmentKey(keyMoves, id.MakeSegment(3, 4)), nil); found || err != nil {
		t.Errorf("moves of a live segment: %t, %v", found, err)
	}
}

// TestLostMoves loses the index between the record of moves and their patches: old
// and new segment are live, and both stay until the owner has said what it needs.
func TestLostMoves(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	contents := []int{1, 2}
	h.publish(pack(1, contents, datanode.Birth{Disk: 1, Epoch: 1, Slots: 2}))
	h.condemn(1)
	h.ok(h.moved(1, 2, contents))
	h.setLists(9, 1, 1, list(2))
	h.ok(h.Index.Close())
	copied := pack(2, contents, datanode.Birth{Disk: 9, Epoch: 1, Slots: 2})
	x, err := Rebuild(context.Background(), h.fs, "/node/index", h.deps(), Options{}, func(f func(datanode.SegmentEntry) error) error {
		for _, e := range []datanode.SegmentEntry{pack(1, contents), copied} {
			e.Slots = nil
			if err := f(e); err != nil {
				return err
			}
		}
		return nil
	})
	h.ok(err)
	h.Index = x
	if a, b := h.describe(1), h.describe(2); a.State != datanode.StateLive || b.State != datanode.StateLive {
		t.Fatalf("states %d and %d", a.State, b.State)
	}
	// One chunk was patched before the loss, so that both are needed.
	both := []datanode.List{list(1, 0), list(2, 1)}
	both[0].Slots, both[1].Slots = copied.Slots[:1], copied.Slots[1:]
	h.setLists(1, 1, 1, both...)
	h.setLists(9, 1, 2, list(2)) // the mover gives up what it was born with
	h.ok(h.CompleteIndex(context.Background(), &datanode.CompleteIndexRequest{Incarnation: h.Status().Incarnation}))
	if got := h.reclaimAll(); len(got) != 0 {
		t.Fatalf("deleted %v", got)
	}
	// The mover begins anew with segment 1, of which one slot is left.
	h.condemn(1)
	h.ok(h.moved(1, 3, contents[:1]))
	if s := h.describe(1).State; s != datanode.StateForwarded {
		t.Fatalf("state %d", s)
	}
	h.setLists(1, 1, 2, list(1), list(3, 0))
	h.setLists(9, 1, 3, list(3))
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{id.MakeSegment(3, 1)}) {
		t.Fatalf("deleted %v", got)
	}
	if got := h.heldBits(1, 3); !slices.Equal(got, bits(0)) {
		t.Fatalf("disk 1 holds %b", got)
	}
}

// TestCopiesCountInAnyOrder has one update name a segment of which a disk holds no
// copy, and another whose copy it comes to hold by way of a third, in one target: the
// number of its list there is the same whichever is named first.
func TestCopiesCountInAnyOrder(t *testing.T) {
	for _, lists := range [][]datanode.List{{list(1, 0), list(2)}, {list(2), list(1, 0)}} {
		h := newHouse(t, vfs.NewMem())
		h.publish(pack(1, []int{1}), pack(2, []int{2, 5}))
		h.condemn(1, 2)
		h.ok(h.moved(1, 3, []int{1}))
		h.condemn(3)
		h.publish(pack(4, []int{1, 2}, datanode.Birth{Disk: 9, Epoch: 1, Slots: 2}))
		h.ok(h.Forward(context.Background(), &datanode.ForwardRequest{Disk: 9, Epoch: 1, Segment: id.MakeSegment(3, 4), Moves: []datanode.Move{
			{From: id.MakeSegment(3, 3), Location: at(0)}, {From: id.MakeSegment(3, 2), To: 1, Location: at(1)}}}))
		h.setLists(2, 1, 1, list(2, 1)) // not moved
		h.setLists(2, 1, 3, lists...)
		if got := h.heldBits(2, 4); !slices.Equal(got, bits(0)) {
			t.Errorf("lists %v: disk 2 holds %b of the copies", lists, got)
		}
		if got := h.setLists(2, 1, 2, list(4)); len(got) != 1 {
			t.Errorf("lists %v: an older update is not refused", lists)
		}
	}
}

// TestLongWays has chunks moved on again and again, from many segments to many,
// before any disk has followed: there are more ways than can be walked.
func TestLongWays(t *testing.T) {
	const levels, wide = 10, 6
	h := newHouse(t, vfs.NewMem())
	var contents []int
	for i := range wide {
		contents = append(contents, i)
	}
	number := func(level, i int) uint64 { return uint64(level*wide + i + 1) }
	for i := range wide {
		h.publish(pack(number(0, i), contents))
	}
	for level := range levels - 1 {
		for i := range wide {
			h.condemn(number(level, i))
		}
		// Slot j of segment i goes to slot i of segment j.
		for j := range wide {
			to := number(level+1, j)
			of := contents
			if level%2 == 0 {
				of = slices.Repeat([]int{j}, wide)
			}
			h.publish(pack(to, of, datanode.Birth{Disk: 9, Epoch: 1, Slots: wide}))
			r := &datanode.ForwardRequest{Disk: 9, Epoch: 1, Segment: id.MakeSegment(3, to)}
			for i := range wide {
				r.Moves = append(r.Moves, datanode.Move{From: id.MakeSegment(3, number(level, i)), Slot: id.Slot(j), To: id.Slot(i), Location: at(i)})
			}
			h.ok(h.Forward(context.Background(), r))
		}
	}
	var lists []datanode.List
	for n := range uint64(levels * wide) {
		lists = append(lists, list(n+1))
	}
	slices.Reverse(lists)
	// Another disk, that shares all of the first level, comes to hold all others.
	var shared []datanode.List
	for i := range wide {
		shared = append(shared, list(number(0, i), contents...))
	}
	h.setLists(2, 1, 1, shared...)
	h.reopen()
	for i := range wide {
		if got := h.heldBits(2, number(levels-1, i)); !slices.Equal(got, bits(contents...)) {
			t.Fatalf("disk 2 holds %b", got)
		}
	}
	h.setLists(2, 1, 2, lists...)
	h.setLists(1, 1, 1, lists...)
	h.setLists(9, 1, 1, lists...)
	if got := h.reclaimAll(); len(got) != levels*wide {
		t.Fatalf("deleted %d segments of %d", len(got), levels*wide)
	}
}
