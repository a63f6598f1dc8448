package index

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// house is an index with what it needs of its node: epochs and fragments.
type house struct {
	testing.TB
	*Index
	fs        vfs.FS
	recentMax int // of the index, if not 0

	mu      sync.Mutex
	epochs  map[id.Disk]id.Epoch
	deleted map[id.Segment]int
	fail    error // of Delete
	// onDelete, if set, is called by Delete first.
	onDelete func()
}

func newHouse(t testing.TB, fs vfs.FS) *house {
	t.Helper()
	h := &house{TB: t, fs: fs, epochs: map[id.Disk]id.Epoch{}, deleted: map[id.Segment]int{}}
	h.open(Options{Create: true})
	t.Cleanup(func() { h.Index.Close() })
	return h
}

func (h *house) deps() Deps {
	return Deps{
		CheckEpoch: func(d id.Disk, e id.Epoch) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if e < h.epochs[d] {
				return datanode.ErrFenced
			}
			return nil
		},
		Delete: func(_ context.Context, s id.Segment) error {
			if h.onDelete != nil {
				h.onDelete()
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.fail == nil {
				h.deleted[s]++
			}
			return h.fail
		},
		Allocated: func(dataBytes int) int { return dataBytes + datanode.BlockBytes },
	}
}

func (h *house) open(opts Options) {
	h.Helper()
	opts.CacheBytes = 1 << 20
	x, err := Open(h.fs, "/node/index", h.deps(), opts)
	h.ok(err)
	h.Index = x
	if h.recentMax > 0 {
		x.recentMax = h.recentMax
	}
}

func (h *house) reopen() {
	h.Helper()
	h.ok(h.Index.Close())
	h.open(Options{})
}

func (h *house) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *house) fails(err error, want error) {
	h.Helper()
	if !errors.Is(err, want) {
		h.Fatalf("got %v, want %v", err, want)
	}
}

// fp is the n-th fingerprint.
func fp(n int) (f id.Fingerprint) {
	binary.BigEndian.PutUint64(f[:], uint64(n)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(f[8:], uint64(n)+1)
	return f
}

func at(slot int) id.Location {
	l, ok := id.MakeLocation(slot%512*64, 64)
	if !ok {
		panic(slot)
	}
	return l
}

// pack is a segment with the given contents, born to births or, without, to
// disk 1 under epoch 1.
func pack(n uint64, contents []int, births ...datanode.Birth) datanode.SegmentEntry {
	if len(births) == 0 {
		births = []datanode.Birth{{Disk: 1, Epoch: 1, Slots: uint16(len(contents))}}
	}
	e := datanode.SegmentEntry{
		Header: datanode.SegmentHeader{
			Segment: id.MakeSegment(3, n), Kind: datanode.KindChunks, K: 2, M: 1,
			DataBytes: uint32(64 * len(contents)), Births: births,
		},
		FragmentBytes: 8192,
	}
	for i, c := range contents {
		e.Slots = append(e.Slots, datanode.SlotEntry{Slot: id.Slot(i), Fingerprint: fp(c), Location: at(i), PlainBytes: 4096})
	}
	return e
}

func (h *house) publish(entries ...datanode.SegmentEntry) {
	h.Helper()
	h.ok(h.Publish(context.Background(), &datanode.PublishRequest{Segments: entries}))
}

func (h *house) lookup(d id.Disk, e id.Epoch, seq id.Seq, contents ...int) []datanode.Hit {
	h.Helper()
	hits, err := h.tryLookup(d, e, seq, contents...)
	h.ok(err)
	return hits
}

func (h *house) tryLookup(d id.Disk, e id.Epoch, seq id.Seq, contents ...int) ([]datanode.Hit, error) {
	r := &datanode.LookupRequest{Disk: d, Epoch: e, Seq: seq}
	for _, c := range contents {
		r.Fingerprints = append(r.Fingerprints, fp(c))
	}
	reply, err := h.Lookup(context.Background(), r)
	if err != nil {
		return nil, err
	}
	return reply.Hits, nil
}

func bits(slots ...int) (b []byte) {
	for _, s := range slots {
		b = setBit(b, id.Slot(s))
	}
	return b
}

func list(n uint64, slots ...int) datanode.List {
	return datanode.List{Segment: id.MakeSegment(3, n), Bits: bits(slots...)}
}

func (h *house) setLists(d id.Disk, e id.Epoch, seq id.Seq, lists ...datanode.List) []id.Segment {
	h.Helper()
	reply, err := h.SetLists(context.Background(), &datanode.SetListsRequest{Disk: d, Epoch: e, Seq: seq, Lists: lists})
	h.ok(err)
	return reply.Refused
}

func (h *house) reclaimAll() []id.Segment {
	h.Helper()
	var all []id.Segment
	for {
		reply, err := h.Reclaim(context.Background(), &datanode.ReclaimRequest{})
		h.ok(err)
		all = append(all, reply.Deleted...)
		if !reply.More {
			return all
		}
	}
}

// checkRows has each row, in memory or in a table, with its slot.
func (h *house) checkRows() {
	h.Helper()
	tables := map[id.Segment][]datanode.SlotEntry{}
	has := func(f id.Fingerprint, r id.Ref) {
		if _, ok := tables[r.Segment]; !ok {
			slots, err := h.slots(r.Segment)
			h.ok(err)
			tables[r.Segment] = slots
		}
		if e := slotEntry(tables[r.Segment], r.Slot); e == nil || e.Fingerprint != f || e.Location != r.Location {
			h.Fatalf("a row of %s in segment %s, slot %d, which has %+v", f, r.Segment, r.Slot, e)
		}
	}
	lower, upper := span([]byte{keyPrint})
	h.ok(h.scan(lower, upper, func(key, value []byte) (bool, error) {
		r, err := decodePrint(key, value)
		has(id.Fingerprint(key[1:printPrefixBytes]), r)
		return true, err
	}))
	for _, p := range h.recent.sorted() {
		has(p.print, p.ref)
	}
}

func (h *house) describe(n uint64) datanode.SegmentDescription {
	h.Helper()
	reply, err := h.DescribeSegments(context.Background(), &datanode.DescribeSegmentsRequest{
		Segments: []id.Segment{id.MakeSegment(3, n)}, Slots: true,
	})
	h.ok(err)
	return reply.Segments[0]
}
