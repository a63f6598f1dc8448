package index

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
	"plinth/internal/id"
)

func TestLifeOfASegment(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{10, 11, 12}), pack(2, []int{20}))
	hits := h.lookup(2, 4, 3, 11, 99, 12, 11)
	s := id.MakeSegment(3, 1)
	want := []datanode.Hit{
		{Found: true, Ref: id.Ref{Segment: s, Slot: 1, Location: at(1)}}, {},
		{Found: true, Ref: id.Ref{Segment: s, Slot: 2, Location: at(2)}},
		{Found: true, Ref: id.Ref{Segment: s, Slot: 1, Location: at(1)}},
	}
	if !slices.Equal(hits, want) {
		t.Fatalf("hits %+v", hits)
	}
	h.setLists(1, 1, 1, list(1))
	if got := h.reclaimAll(); len(got) != 0 {
		t.Fatalf("deleted %v", got)
	}
	h.reopen()
	if d := h.describe(1); len(d.Lists) != 1 || d.Lists[0].Disk != 2 || d.Lists[0].Epoch != 4 || d.Lists[0].Seq != 3 ||
		!slices.Equal(d.Lists[0].Bits, bits(1, 2)) {
		t.Fatalf("lists %+v", d.Lists)
	}
	h.setLists(2, 4, 4, list(1))
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{s}) || h.deleted[s] != 1 {
		t.Fatalf("deleted %v, fragments %v", got, h.deleted)
	}
	if st := h.Status(); st.Segments != 1 || st.Fingerprints != 1 || st.SealedBytes != 64 || st.PlainBytes != 4096 {
		t.Fatalf("status %+v", st)
	}
	h.fails(h.Publish(context.Background(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{pack(1, []int{10, 11, 12})}}), datanode.ErrGone)
	_, err := h.SetLists(context.Background(), &datanode.SetListsRequest{Disk: 2, Epoch: 4, Seq: 5, Lists: []datanode.List{list(1, 0)}})
	h.fails(err, datanode.ErrGone)
	h.setLists(2, 4, 5, list(1))
	left := 0
	h.ok(h.scan([]byte{0}, []byte{255}, func(k, _ []byte) (bool, error) { left++; return true, nil }))
	if left != 7 { // superblock, counters, deleted; segment 2, its slots, print, disk
		t.Fatalf("%d rows are left", left)
	}
}

func TestBirthsAreReplacedForGood(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	e := pack(1, []int{1, 2, 3, 4}, datanode.Birth{Disk: 1, Epoch: 5, Slots: 2}, datanode.Birth{Disk: 2, Epoch: 1, Slots: 1}, datanode.Birth{Disk: 1, Epoch: 7, Slots: 1})
	h.publish(e)
	held := func(want ...byte) {
		t.Helper()
		d := h.describe(1)
		if len(d.Lists) != len(want) {
			t.Fatalf("lists %+v", d.Lists)
		}
		for i, l := range d.Lists {
			if !slices.Equal(l.Bits, []byte{want[i]}) {
				t.Fatalf("lists %+v, want %08b", d.Lists, want)
			}
		}
	}
	held(0b1011, 0b0100)
	h.setLists(1, 4, 9, list(1)) // an owner before either birth
	held(0b1011, 0b0100)
	h.setLists(1, 6, 1, list(1, 0))
	held(0b1001, 0b0100)
	h.publish(e)
	held(0b1001, 0b0100)
	h.setLists(2, 1, 1, list(1))
	h.setLists(1, 7, 1, list(1))
	held()
	h.publish(e)
	held()
	if got := h.reclaimAll(); len(got) != 1 {
		t.Fatalf("deleted %v", got)
	}
}

func TestReclaimResumes(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{1, 2}), pack(2, []int{3, 4}))
	h.setLists(1, 1, 1, list(1))
	h.fail = errors.New("spindle")
	_, err := h.Reclaim(context.Background(), &datanode.ReclaimRequest{})
	h.fails(err, h.fail)
	if d := h.describe(1); d.State != datanode.StateDeleting {
		t.Fatalf("%+v", d)
	}
	if hits := h.lookup(2, 1, 1, 1, 3); hits[0].Found || !hits[1].Found {
		t.Fatalf("hits %+v", hits)
	}
	// The content is stored anew while the old segment is still going.
	h.publish(pack(3, []int{1}))
	h.reopen()
	h.fail = nil
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{id.MakeSegment(3, 1)}) {
		t.Fatalf("deleted %v", got)
	}
	if hits := h.lookup(2, 1, 2, 1, 2); !hits[0].Found || hits[0].Ref.Segment.Number() != 3 || hits[1].Found {
		t.Fatalf("hits %+v", hits)
	}
	if st := h.Status(); st.Segments != 2 || st.Fingerprints != 3 {
		t.Fatalf("status %+v", st)
	}
}

func TestRebuild(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{1, 2}))
	old := h.Status().Incarnation
	h.ok(h.Index.Close())
	ctx := context.Background()
	walk := func(entries ...datanode.SegmentEntry) func(func(datanode.SegmentEntry) error) error {
		return func(f func(datanode.SegmentEntry) error) error {
			for _, e := range entries {
				e.Slots = nil
				if err := f(e); err != nil {
					return err
				}
			}
			return nil
		}
	}
	broken := errors.New("walk")
	_, err := Rebuild(ctx, h.fs, "/node/index", h.deps(), Options{}, func(f func(datanode.SegmentEntry) error) error { return broken })
	h.fails(err, broken)
	_, err = Open(h.fs, "/node/index", h.deps(), Options{Create: true})
	h.fails(err, ErrInterrupted)

	x, err := Rebuild(ctx, h.fs, "/node/index", h.deps(), Options{}, walk(pack(1, []int{1, 2}), pack(2, []int{3}), pack(3, []int{4}, datanode.Birth{Disk: 9, Epoch: 1, Slots: 1})))
	h.ok(err)
	h.Index = x
	st := h.Status()
	if st.Complete || st.Incarnation == old || st.Segments != 3 || st.Fingerprints != 0 {
		t.Fatalf("status %+v", st)
	}
	if h.lookup(1, 1, 1, 1)[0].Found {
		t.Fatal("found a fingerprint nobody has stated")
	}
	l := list(1, 1)
	l.Slots = pack(1, []int{1, 2}).Slots[1:]
	unseen := list(7, 0) // on a spindle that is away
	h.setLists(1, 1, 2, l, list(2), unseen)
	if got := h.reclaimAll(); len(got) != 0 {
		t.Fatalf("incomplete, but deleted %v", got)
	}
	if hits := h.lookup(2, 1, 1, 1, 2); hits[0].Found || !hits[1].Found || hits[1].Ref.Slot != 1 {
		t.Fatalf("hits %+v", hits)
	}
	h.fails(h.CompleteIndex(ctx, &datanode.CompleteIndexRequest{Incarnation: old}), datanode.ErrInvalid)
	h.ok(h.CompleteIndex(ctx, &datanode.CompleteIndexRequest{Incarnation: st.Incarnation}))
	h.reopen()
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{id.MakeSegment(3, 2)}) {
		t.Fatalf("deleted %v", got)
	}
	// The spindle comes back: what was said of segment 7 holds; what is left of
	// segment 2 goes.
	back := []datanode.SegmentEntry{pack(7, []int{70}, datanode.Birth{Disk: 5, Epoch: 1, Slots: 1}), pack(2, []int{3})}
	h.ok(h.Adopt(ctx, back))
	h.ok(h.Adopt(ctx, back))
	h.setLists(5, 1, 1, list(7))
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{id.MakeSegment(3, 2)}) {
		t.Fatalf("deleted %v", got)
	}
	h.setLists(1, 1, 3, list(7))
	if got := h.reclaimAll(); !slices.Equal(got, []id.Segment{id.MakeSegment(3, 7)}) {
		t.Fatalf("deleted %v", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	fs := vfs.NewMem()
	h := newHouse(t, fs)
	_, err := Open(fs, "elsewhere", h.deps(), Options{})
	h.fails(err, kv.ErrAbsent)
	b := h.store.DB.NewBatch()
	newer := super{}.encode()
	newer[8]++
	set(b, []byte{keySuper}, newer)
	h.ok(h.store.Commit(b))
	h.ok(h.Index.Close())
	h.ok(h.Index.Close())
	_, err = Open(fs, "/node/index", h.deps(), Options{})
	h.fails(err, kv.ErrForeign) // the checksum is wrong, too
	_, err = h.Lookup(context.Background(), &datanode.LookupRequest{Disk: 1, Epoch: 1})
	h.fails(err, datanode.ErrClosed)
}

func TestFencedAndStale(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	ctx := context.Background()
	h.publish(pack(1, []int{1, 2}))
	h.epochs[1] = 2
	_, err := h.tryLookup(1, 1, 1, 1)
	h.fails(err, datanode.ErrFenced)
	_, err = h.SetLists(ctx, &datanode.SetListsRequest{Disk: 1, Epoch: 1, Lists: []datanode.List{list(1)}})
	h.fails(err, datanode.ErrFenced)
	_, err = h.ListSegments(ctx, &datanode.ListSegmentsRequest{Disk: 1, Epoch: 1})
	h.fails(err, datanode.ErrFenced)
	h.setLists(1, 2, 5, list(1, 0))
	_, err = h.tryLookup(1, 2, 4, 2)
	h.fails(err, datanode.ErrStaleUpdate)
	h.lookup(1, 2, 8, 2)
	if got := h.setLists(1, 2, 8, list(1)); len(got) != 1 {
		t.Fatalf("refused %v", got)
	}
	h.lookup(1, 2, 7, 2) // overtaken by another lookup: no harm
	if got := h.setLists(1, 2, 9, list(1)); len(got) != 0 {
		t.Fatalf("refused %v", got)
	}
}

func TestBounds(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	ctx := context.Background()
	h.publish(pack(1, []int{1, 2}))
	entry := func(change func(*datanode.SegmentEntry)) error {
		e := pack(5, []int{1, 2})
		change(&e)
		return h.Publish(ctx, &datanode.PublishRequest{Segments: []datanode.SegmentEntry{e}})
	}
	lists := func(l ...datanode.List) error {
		_, err := h.SetLists(ctx, &datanode.SetListsRequest{Disk: 1, Epoch: 1, Lists: l})
		return err
	}
	_, noDisk := h.tryLookup(0, 1, 1)
	_, tooMany := h.tryLookup(1, 1, 1, make([]int, datanode.FingerprintsMax+1)...)
	_, negative := h.Reclaim(ctx, &datanode.ReclaimRequest{Max: -1})
	for i, err := range []error{
		noDisk, tooMany, negative,
		h.Publish(ctx, &datanode.PublishRequest{Segments: make([]datanode.SegmentEntry, datanode.SegmentsMax+1)}),
		entry(func(e *datanode.SegmentEntry) { e.Header.Segment = 0 }),
		entry(func(e *datanode.SegmentEntry) { e.Header.Kind = 3 }),
		entry(func(e *datanode.SegmentEntry) { e.Header.K = 33 }),
		entry(func(e *datanode.SegmentEntry) { e.Header.Births = nil }),
		entry(func(e *datanode.SegmentEntry) { e.Header.Births[0].Slots = 1 }),
		entry(func(e *datanode.SegmentEntry) { e.Slots[1].Slot = 0 }),
		entry(func(e *datanode.SegmentEntry) { e.Slots[1].Fingerprint = id.Fingerprint{} }),
		entry(func(e *datanode.SegmentEntry) { *e = pack(1, []int{1, 2}, datanode.Birth{Disk: 8, Epoch: 1, Slots: 2}) }),
		lists(make([]datanode.List, datanode.SegmentsMax+1)...),
		lists(list(1), list(1)),
		lists(list(1, 2)),
		lists(datanode.List{Segment: 9, Bits: make([]byte, bitsBytesMax+1)}),
	} {
		if !errors.Is(err, datanode.ErrInvalid) {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

// TestEqualChunks has the same content in several segments: each slot has its
// row, a look-up takes the first in a live segment, and a deletion takes its own
// rows only.
func TestEqualChunks(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(2, []int{1, 2, 1}), pack(1, []int{3, 1}), pack(3, []int{2, 1}))
	finds := func(content int, number uint64, slot id.Slot) {
		t.Helper()
		for range 2 { // before and after a restart
			hit := h.lookup(2, 1, 1, content)[0]
			if hit.Found != (number > 0) || hit.Found && (hit.Ref.Segment.Number() != number || hit.Ref.Slot != slot) {
				t.Fatalf("content %d: %+v, want slot %d of segment %d", content, hit, slot, number)
			}
			h.reopen()
		}
		for n := range uint64(3) {
			if d := h.describe(n + 1); len(d.Dangling) > 0 {
				t.Fatalf("segment %d: %d dangle", n+1, d.Dangling)
			}
		}
	}
	finds(1, 1, 1)
	h.setLists(2, 1, 2, list(1))
	h.setLists(1, 1, 2, list(1))
	// A tombstone hides a segment's places before its rows are gone.
	h.fail = errors.New("spindle")
	_, err := h.Reclaim(context.Background(), &datanode.ReclaimRequest{})
	h.fails(err, h.fail)
	finds(1, 2, 0)
	finds(3, 0, 0)
	h.fail = nil
	h.setLists(2, 1, 3, list(2))
	h.setLists(1, 1, 3, list(2))
	if got := h.reclaimAll(); len(got) != 2 {
		t.Fatalf("deleted %v", got)
	}
	finds(1, 3, 1)
	finds(2, 3, 0)
	if st := h.Status(); st.Fingerprints != 2 {
		t.Fatalf("status %+v", st)
	}
	h.setLists(2, 1, 4, list(3))
	h.setLists(1, 1, 4, list(3))
	h.reclaimAll()
	finds(1, 0, 0)
	if st := h.Status(); st.Fingerprints != 0 {
		t.Fatalf("status %+v", st)
	}
}

// TestVersion1 opens an index as version 1 had it: each row in a table, and slots
// of 26 bytes.
func TestVersion1(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	e := pack(1, []int{1, 2, 3})
	h.publish(e)
	h.reopen() // from memory to a table
	wide := []byte{1}
	for _, s := range e.Slots {
		wide = append(le.AppendUint16(wide, uint16(s.Slot)), s.Fingerprint[:]...)
		wide = le.AppendUint32(le.AppendUint32(wide, uint32(s.Location)), s.PlainBytes)
	}
	super := h.super.Load().encode()
	old := kv.Seal(magic, 1, super[20:len(super)-4])
	b := h.store.DB.NewBatch()
	set(b, segmentKey(keySlots, e.Header.Segment), wide)
	set(b, []byte{keySuper}, old)
	h.ok(h.store.Commit(b))
	for range 2 {
		h.reopen()
		if d := h.describe(1); !slices.Equal(d.Slots, e.Slots) || len(d.Dangling) > 0 {
			t.Fatalf("%+v", d)
		}
		if hit := h.lookup(2, 1, 1, 3)[0]; hit.Ref != (id.Ref{Segment: e.Header.Segment, Slot: 2, Location: at(2)}) {
			t.Fatalf("hit %+v", hit)
		}
	}
	_, err := h.store.View([]byte{keySuper}, func(v []byte) error {
		_, err := kv.Open(magic, 1, v)
		return err
	})
	h.fails(err, kv.ErrNewer)
	h.setLists(1, 1, 1, list(1))
	h.setLists(2, 1, 2, list(1))
	if got := h.reclaimAll(); len(got) != 1 || h.Status().Fingerprints != 0 {
		t.Fatalf("deleted %v, status %+v", got, h.Status())
	}
	h.checkRows()
}

// TestLostRow plants a lost row: its slot dangles, and publishing mends it.
func TestLostRow(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.publish(pack(1, []int{1, 2}), pack(2, []int{2}))
	h.reopen() // from memory to a table
	b := h.store.DB.NewBatch()
	del(b, printKey(fp(2), id.MakeSegment(3, 1), 1))
	h.ok(h.store.Commit(b))
	if d := h.describe(1); !slices.Equal(d.Dangling, []id.Slot{1}) {
		t.Fatalf("dangling %v", d.Dangling)
	}
	if d := h.describe(2); len(d.Dangling) > 0 {
		t.Fatalf("dangling %v", d.Dangling)
	}
	h.publish(pack(1, []int{1, 2}))
	if d := h.describe(1); len(d.Dangling) > 0 {
		t.Fatalf("dangling %v", d.Dangling)
	}
}
