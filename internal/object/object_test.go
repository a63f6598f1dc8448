package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
)

// house is a data node and a store of objects on it, in memory.
type house struct {
	*testing.T
	*Store
	shelf *shelf.Shelf
	key   *chunk.Secret
	rng   *rand.Rand
	away  atomic.Int32 // the spindle that does not answer, plus 1
}

func newHouse(t *testing.T) *house {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &house{T: t, key: chunk.NewSecret(), rng: rand.New(rand.NewPCG(seed, 0))}
	opts := shelf.Options{
		PoolID: [16]byte{7}, Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 32 << 20,
		IndexCacheBytes: 1 << 20, FS: crashfs.New(), Logger: slog.New(slog.DiscardHandler),
	}
	h.ok(shelf.Create("/node", opts))
	var err error
	h.shelf, err = shelf.Open(t.Context(), "/node", opts)
	h.ok(err)
	t.Cleanup(func() { h.ok(h.shelf.Close()) })
	g := stripe.Geometry{K: 2, M: 1}
	layouts, err := stripe.MakeLayouts(g, []id.Spindle{0, 1, 2, 3}, 1)
	h.ok(err)
	stripes, err := stripe.NewStore(h, layouts, stripe.Options{})
	h.ok(err)
	sealer, err := chunk.NewSealer(1, h.key, nil, chunk.SealerOptions{})
	h.ok(err)
	var number atomic.Uint64
	h.Store = &Store{
		Index: h.shelf, Stripes: stripes, Sealer: sealer,
		Opener:   chunk.NewOpener(h, chunk.NewHasher(chunk.NewSecret()), chunk.OpenerOptions{}),
		Geometry: g, Number: func(context.Context) (uint64, error) { return number.Add(1), nil },
	}
	return h
}

func (h *house) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// Key implements chunk.Keys.
func (h *house) Key(id.Key) (*chunk.Secret, error) { return h.key, nil }

// The fragments are the shelf's, but for a spindle that is away.

func (h *house) WriteFragments(ctx context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return h.shelf.WriteFragments(ctx, r)
}

func (h *house) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	return h.shelf.DiscardFragments(ctx, r)
}

func (h *house) ListFragments(ctx context.Context, r *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	return h.shelf.ListFragments(ctx, r)
}

func (h *house) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	return h.shelf.Reserve(ctx, r)
}

func (h *house) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	reply, err := h.shelf.ReadFragments(ctx, r)
	if err != nil {
		return nil, err
	}
	for i := range r.Ranges {
		if int32(r.Ranges[i].Spindle)+1 == h.away.Load() {
			reply.Results[i] = datanode.FragmentData{Err: datanode.ErrSpindle}
		}
	}
	return reply, nil
}

// put stores random bytes as an object.
func (h *house) put(o *Owner, size int) (blockmap.Object, []byte) {
	h.Helper()
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(h.rng.Uint32())
	}
	obj, err := o.Put(h.Context(), fmt.Sprint(size), int64(size), bytes.NewReader(p))
	h.ok(err)
	return obj, p
}

// same reads an object whole and in random ranges.
func (h *house) same(obj blockmap.Object, want []byte) {
	h.Helper()
	for i := range 12 {
		off, end := 0, len(want)
		if i > 0 {
			off = h.rng.IntN(len(want) + 1)
			end = off + h.rng.IntN(min(len(want)-off, 100<<10)+1)
		}
		got := make([]byte, end-off)
		h.ok(h.ReadAt(h.Context(), obj, got, int64(off)))
		if !bytes.Equal(got, want[off:end]) {
			h.Fatalf("bytes %d to %d of an object of %d differ", off, end, len(want))
		}
	}
}

// damage replaces one block of a fragment by a flipped one under a right
// checksum, and returns the fragment's spindle.
func (h *house) damage(s id.Segment, index uint8, block int) id.Spindle {
	h.Helper()
	layouts, err := stripe.MakeLayouts(h.Geometry, []id.Spindle{0, 1, 2, 3}, 1)
	h.ok(err)
	spindle := layouts.Lists[s.Layout()][index]
	reply, err := h.shelf.ReadFragments(h.Context(), &datanode.ReadFragmentsRequest{
		Ranges: []datanode.FragmentRange{{Spindle: spindle, Segment: s, Index: index}}, Verify: true,
	})
	h.ok(err)
	r := &reply.Results[0]
	if r.Err != nil || len(r.Data) == 0 {
		h.Fatalf("segment %s, fragment %d: %v", s, index, r.Err)
	}
	r.Data[block*datanode.BlockBytes%len(r.Data)+h.rng.IntN(datanode.BlockBytes)] ^= 1
	w, err := h.shelf.WriteFragments(h.Context(), &datanode.WriteFragmentsRequest{
		Header: r.Header, LayoutVersion: 1, Replace: true,
		Fragments: []datanode.Fragment{{Spindle: spindle, Index: index, Data: r.Data}},
	})
	h.ok(err)
	if w.Errors[0] != nil {
		h.Fatal(w.Errors[0])
	}
	return spindle
}

func TestSizes(t *testing.T) {
	h := newHouse(t)
	o := h.Owner(5, 2)
	sizes := []int{0, 1, UnitBytes - 1, UnitBytes, UnitBytes + 1, 1 << 20, 8 << 20, 8<<20 + 1, h.rng.IntN(4 << 20)}
	objects, contents := make([]blockmap.Object, len(sizes)), make([][]byte, len(sizes))
	seen := map[id.Segment]bool{}
	for i, size := range sizes {
		objects[i], contents[i] = h.put(o, size)
		segments, err := Segments(objects[i])
		h.ok(err)
		for _, s := range segments {
			if seen[s] {
				t.Fatalf("segment %s is of two objects", s)
			}
			seen[s] = true
		}
		if n, err := Bytes(objects[i]); err != nil || n != int64(size) {
			t.Fatalf("object of %d bytes says %d, %v", size, n, err)
		}
	}
	for i := range sizes {
		h.same(objects[i], contents[i])
		for _, r := range [][2]int64{{int64(sizes[i]), 1}, {-1, 1}, {0, int64(sizes[i]) + 1}, {1 << 60, 0}} {
			if err := o.ReadAt(t.Context(), objects[i], make([]byte, r[1]), r[0]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d bytes at %d of %d: %v", r[1], r[0], sizes[i], err)
			}
		}
	}
	// What the index was told, the disk holds.
	held, err := h.shelf.ListSegments(t.Context(), &datanode.ListSegmentsRequest{Disk: 5, Epoch: 2})
	h.ok(err)
	if len(held.Segments) != len(seen) {
		t.Errorf("the disk holds %d segments, its objects lie in %d", len(held.Segments), len(seen))
	}
}

// TestDamage reads objects around damage that checksums do not show, around an
// absent spindle, and around both, which is too much.
func TestDamage(t *testing.T) {
	h := newHouse(t)
	obj, want := h.put(h.Owner(5, 2), 3<<20)
	segments, err := Segments(obj)
	h.ok(err)
	spindle := h.damage(segments[0], 0, h.rng.IntN(64))
	h.same(obj, want)
	for away := range int32(4) {
		h.away.Store(away + 1)
		if id.Spindle(away) == spindle {
			h.same(obj, want)
		}
	}
	h.away.Store(0)
	h.damage(segments[0], 1, 0)
	h.damage(segments[0], 0, 0)
	err = h.ReadAt(t.Context(), obj, make([]byte, len(want)), 0)
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(fmt.Sprint(err), segments[0].String()) {
		t.Fatalf("two damaged fragments of 2+1: %v", err)
	}
}

// TestSwapped reads descriptors that a data node, or a mistake, has mixed up.
func TestSwapped(t *testing.T) {
	h := newHouse(t)
	o := h.Owner(5, 2)
	a, content := h.put(o, 2*UnitBytes)
	b, _ := h.put(o, 2*UnitBytes)
	da, err := unmarshal(a)
	h.ok(err)
	db, err := unmarshal(b)
	h.ok(err)
	reads := func(d *descriptor) error {
		return h.ReadAt(t.Context(), d.marshal(), make([]byte, d.bytes), 0)
	}
	h.ok(reads(da))
	other := *da
	other.segments = db.segments
	longer := *da
	longer.bytes += UnitBytes
	shorter := *da
	shorter.bytes--
	none := *da
	none.segments = nil
	for what, d := range map[string]*descriptor{
		"the segment of another": &other, "too long": &longer, "too short": &shorter, "no segment": &none,
	} {
		if err := reads(d); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	h.same(a, content)
}

func TestPutRefuses(t *testing.T) {
	h := newHouse(t)
	o := h.Owner(5, 2)
	for _, size := range []int64{-1, bytesMax + 1} {
		if _, err := o.Put(t.Context(), "x", size, bytes.NewReader(nil)); err == nil {
			t.Errorf("an object of %d bytes was stored", size)
		}
	}
	if _, err := o.Put(t.Context(), "x", 100, bytes.NewReader(make([]byte, 99))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short source: %v", err)
	}
}
