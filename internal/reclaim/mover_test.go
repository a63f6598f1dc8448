package reclaim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
)

// house is a data node in memory, disks that are only lists, and a mover.
type house struct {
	*testing.T
	datanode.Node
	*Mover
	rng     *rand.Rand
	noise   *rand.ChaCha8
	key     *chunk.Secret
	sealer  *chunk.Sealer
	hasher  *chunk.Hasher
	numbers atomic.Uint64
	content map[id.Ref][]byte // plaintext of what was stored
	seq     id.Seq
	bad     map[uint8]bool // fragments whose bytes come back wrong
	forward error          // of Forward
}

const moverDisk = 99

func newHouse(t *testing.T) *house {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &house{T: t, key: chunk.NewSecret(), rng: rand.New(rand.NewPCG(seed, 0)), noise: rand.NewChaCha8([32]byte{byte(seed)}), content: make(map[id.Ref][]byte), bad: make(map[uint8]bool)}
	opts := shelf.Options{
		PoolID: [16]byte{7}, Spindles: 4, LogBytes: 16 << 20, SpindleBytes: 64 << 20,
		IndexCacheBytes: 1 << 20, FS: crashfs.New(), Logger: slog.New(slog.DiscardHandler),
	}
	h.ok(shelf.Create("/node", opts))
	node, err := shelf.Open(t.Context(), "/node", opts)
	h.ok(err)
	t.Cleanup(func() { h.ok(node.Close()) })
	h.Node = node
	g := stripe.Geometry{K: 2, M: 1}
	layouts, err := stripe.MakeLayouts(g, []id.Spindle{0, 1, 2, 3}, 1)
	h.ok(err)
	stripes, err := stripe.NewStore(h, layouts, stripe.Options{})
	h.ok(err)
	h.sealer, err = chunk.NewSealer(1, h.key, nil, chunk.SealerOptions{})
	h.ok(err)
	h.hasher = chunk.NewHasher(chunk.NewSecret())
	h.Mover = &Mover{
		Index: h, Stripes: stripes, Opener: chunk.NewOpener(h, h.hasher, chunk.OpenerOptions{}), Geometry: g,
		Number: func(context.Context) (uint64, error) { return h.numbers.Add(1), nil },
		Disk:   moverDisk, Epoch: 1,
	}
	for _, d := range []id.Disk{1, 2, moverDisk} {
		_, err := h.Fence(t.Context(), &datanode.FenceRequest{Disk: d, Epoch: 1})
		h.ok(err)
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

func (h *house) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	reply, err := h.Node.ReadFragments(ctx, r)
	if err != nil {
		return nil, err
	}
	for i := range r.Ranges {
		if data := reply.Results[i].Data; h.bad[r.Ranges[i].Index] && len(data) > 0 {
			for at := range data {
				data[at] ^= 0x55
			}
		}
	}
	return reply, nil
}

func (h *house) Forward(ctx context.Context, r *datanode.ForwardRequest) error {
	if h.forward != nil {
		return h.forward
	}
	return h.Node.Forward(ctx, r)
}

// store makes a segment of n chunks of random content, born to disk 1.
func (h *house) store(n int) (refs []id.Ref) {
	h.Helper()
	b := stripe.NewBuilder(h.Geometry)
	var plains [][]byte
	for range n {
		plain := make([]byte, 4096)
		h.noise.Read(plain[:100+h.rng.IntN(3900)])
		fp := h.hasher.Sum(plain)
		sealed, err := h.sealer.SealChunk(nil, chunk.AES256GCM, fp, plain)
		h.ok(err)
		if _, ok := b.Add(1, 1, fp, sealed, len(plain)); !ok {
			h.Fatal("the segment is full")
		}
		plains = append(plains, plain)
	}
	s, err := b.Seal()
	h.ok(err)
	h.ok(h.Stripes.Write(h.Context(), s, h.Number))
	h.ok(h.Publish(h.Context(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{s.Entry()}}))
	for i, plain := range plains {
		ref := s.Ref(id.Slot(i))
		h.content[ref] = plain
		refs = append(refs, ref)
	}
	return refs
}

// hold has a disk hold exactly these places of their segments, and of others that
// are named.
func (h *house) hold(d id.Disk, refs []id.Ref, others ...id.Segment) {
	h.Helper()
	bits := make(map[id.Segment][]byte)
	for _, s := range others {
		bits[s] = nil
	}
	for _, r := range refs {
		b := bits[r.Segment]
		for int(r.Slot>>3) >= len(b) {
			b = append(b, 0)
		}
		b[r.Slot>>3] |= 1 << (r.Slot & 7)
		bits[r.Segment] = b
	}
	h.seq++
	req := &datanode.SetListsRequest{Disk: d, Epoch: 1, Seq: h.seq}
	for s, b := range bits {
		req.Lists = append(req.Lists, datanode.List{Segment: s, Bits: b})
	}
	reply, err := h.SetLists(h.Context(), req)
	h.ok(err)
	if len(reply.Refused) > 0 {
		h.Fatal("refused", reply.Refused)
	}
}

// moves returns where the index says that places are now.
func (h *house) movesOf() map[id.Segment]map[id.Slot]id.Ref {
	h.Helper()
	reply, err := h.Forwards(h.Context(), &datanode.ForwardsRequest{})
	h.ok(err)
	out := make(map[id.Segment]map[id.Slot]id.Ref)
	for _, f := range reply.Forwards {
		out[f.From] = make(map[id.Slot]id.Ref)
		for _, m := range f.Moves {
			out[f.From][m.Slot] = m.To
		}
	}
	return out
}

// follow has a disk do what its pass would: hold the new places of what it needs,
// and nothing of the old ones.
func (h *house) follow(d id.Disk, refs []id.Ref) []id.Ref {
	h.Helper()
	moves := h.movesOf()
	var now []id.Ref
	var others []id.Segment
	for _, r := range refs {
		to, ok := moves[r.Segment][r.Slot]
		if !ok {
			to = r
		}
		now, others = append(now, to), append(others, r.Segment)
	}
	slices.Sort(others)
	h.hold(d, now, slices.Compact(others)...)
	return now
}

// has reads places and compares them with the content of others.
func (h *house) has(now, was []id.Ref) {
	h.Helper()
	for i, r := range now {
		want := h.content[was[i]]
		data := h.Stripes.Read(h.Context(), []stripe.Range{h.Geometry.Locate(r)})[0]
		h.ok(data.Err)
		got, err := h.Opener.OpenChunk(nil, data.Bytes, h.hasher.Sum(want))
		h.ok(err)
		if !bytes.Equal(got, want) {
			h.Fatalf("chunk %d has other bytes at %v", i, r)
		}
	}
}

func (h *house) reclaim() []id.Segment {
	h.Helper()
	reply, err := h.Reclaim(h.Context(), &datanode.ReclaimRequest{})
	h.ok(err)
	slices.Sort(reply.Deleted)
	return reply.Deleted
}

func (h *house) state(s id.Segment) datanode.State {
	h.Helper()
	reply, err := h.DescribeSegments(h.Context(), &datanode.DescribeSegmentsRequest{Segments: []id.Segment{s}})
	h.ok(err)
	return reply.Segments[0].State
}

// some returns every nth place.
func some(refs []id.Ref, nth int) (out []id.Ref) {
	for i := 0; i < len(refs); i += nth {
		out = append(out, refs[i])
	}
	return out
}

// TestMove empties segments of which two disks hold some chunks each, so many
// that it takes more than one target.
func TestMove(t *testing.T) {
	h := newHouse(t)
	var first, second []id.Ref
	var sources []id.Segment
	for range 9 {
		refs := h.store(1000)
		sources = append(sources, refs[0].Segment)
		first, second = append(first, some(refs, 2)...), append(second, some(refs, 3)...)
	}
	h.hold(1, first)
	h.hold(2, second)
	paced := int64(0)
	h.Mover.Pace = func(_ context.Context, n int64) error { paced += n; return nil }
	moved, err := h.Move(t.Context(), append(sources, id.MakeSegment(1, 77777)))
	h.ok(err)
	held := append(slices.Clone(first), second...)
	slices.SortFunc(held, func(a, b id.Ref) int { return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Slot, b.Slot)) })
	live := int64(len(slices.Compact(held)))
	if moved.Condemned != 9 || moved.Targets < 2 || moved.Chunks != live || moved.Bytes != paced || len(moved.Damaged) > 0 {
		t.Errorf("%+v, paced %d, want %d chunks", moved, paced, live)
	}
	for _, s := range sources {
		if h.state(s) != datanode.StateForwarded {
			t.Errorf("segment %s is in state %d", s, h.state(s))
		}
	}
	if gone := h.reclaim(); len(gone) > 0 {
		t.Fatalf("%v are gone, disks hold them", gone)
	}
	now1 := h.follow(1, first)
	if gone := h.reclaim(); len(gone) > 0 {
		t.Fatalf("%v are gone, disk 2 holds them", gone)
	}
	now2 := h.follow(2, second)
	if gone := h.reclaim(); !slices.Equal(gone, sources) {
		t.Fatalf("%v are gone, want %v", gone, sources)
	}
	h.has(now1, first)
	h.has(now2, second)
	// Nothing is held by the mover: what disks let go of is gone.
	h.hold(1, nil, segmentsOf(now1)...)
	h.hold(2, nil, segmentsOf(now2)...)
	if gone := h.reclaim(); len(gone) != moved.Targets {
		t.Errorf("%v are gone, there were %d targets", gone, moved.Targets)
	}
}

func segmentsOf(refs []id.Ref) (out []id.Segment) {
	for _, r := range refs {
		out = append(out, r.Segment)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestMoveAgain has forwards fail, and then goes on.
func TestMoveAgain(t *testing.T) {
	h := newHouse(t)
	refs := h.store(1000)
	source := refs[0].Segment
	h.hold(1, some(refs, 2))
	h.forward = errors.New("no forwards")
	if _, err := h.Move(t.Context(), []id.Segment{source}); !errors.Is(err, h.forward) {
		t.Fatal(err)
	}
	if h.state(source) != datanode.StateCondemned {
		t.Fatalf("state %d", h.state(source))
	}
	if gone := h.reclaim(); len(gone) != 1 || gone[0] == source {
		t.Fatalf("%v are gone, want the target alone", gone)
	}
	h.forward = nil
	h.hold(1, some(refs, 4))
	moved, err := h.Move(t.Context(), []id.Segment{source})
	if err != nil || moved.Chunks != 250 || moved.Condemned != 1 {
		t.Fatalf("%+v, %v", moved, err)
	}
	// What has moved does not move again.
	if moved, err = h.Move(t.Context(), []id.Segment{source}); err != nil || moved.Chunks != 0 {
		t.Fatalf("%+v, %v", moved, err)
	}
	h.has(h.follow(1, some(refs, 4)), some(refs, 4))
	if gone := h.reclaim(); !slices.Equal(gone, []id.Segment{source}) {
		t.Fatalf("%v are gone", gone)
	}
}

// TestRelease has a mover die between a target and its forwards.
func TestRelease(t *testing.T) {
	h := newHouse(t)
	b := stripe.NewBuilder(h.Geometry)
	b.Add(moverDisk, 1, id.Fingerprint{1}, make([]byte, 64), 4096)
	s, err := b.Seal()
	h.ok(err)
	h.ok(h.Stripes.Write(t.Context(), s, h.Number))
	h.ok(h.Publish(t.Context(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{s.Entry()}}))
	if gone := h.reclaim(); len(gone) > 0 {
		t.Fatal("gone while it is held")
	}
	h.Mover.Epoch = 2
	_, err = h.Fence(t.Context(), &datanode.FenceRequest{Disk: moverDisk, Epoch: 2})
	h.ok(err)
	h.ok(h.Mover.Release(t.Context()))
	if gone := h.reclaim(); !slices.Equal(gone, []id.Segment{s.Header.Segment}) {
		t.Fatalf("%v are gone", gone)
	}
}

// TestMoveDamaged moves from a fragment with bad bytes, which are reconstructed,
// and from two, of which nothing is copied.
func TestMoveDamaged(t *testing.T) {
	h := newHouse(t)
	refs := h.store(40)
	source := refs[0].Segment
	h.hold(1, some(refs, 2))
	h.bad[0], h.bad[1] = true, true
	moved, err := h.Move(t.Context(), []id.Segment{source})
	h.ok(err)
	if moved.Chunks != 0 || len(moved.Damaged) != 1 || moved.Damaged[0].Segment != source || h.state(source) != datanode.StateCondemned {
		t.Fatalf("%+v, state %d", moved, h.state(source))
	}
	h.bad[1] = false
	moved, err = h.Move(t.Context(), []id.Segment{source})
	h.ok(err)
	if moved.Chunks != 20 || len(moved.Damaged) != 0 {
		t.Fatalf("%+v", moved)
	}
	h.bad[0] = false
	h.has(h.follow(1, some(refs, 2)), some(refs, 2))
}

// TestMoveJoins moves the same chunk out of two segments into one slot.
func TestMoveJoins(t *testing.T) {
	h := newHouse(t)
	one := h.store(10)
	twin := h.content[one[3]]
	sealed, err := h.sealer.SealChunk(nil, chunk.AES256GCM, h.hasher.Sum(twin), twin)
	h.ok(err)
	b := stripe.NewBuilder(h.Geometry)
	b.Add(2, 1, h.hasher.Sum(twin), sealed, len(twin))
	s, err := b.Seal()
	h.ok(err)
	h.ok(h.Stripes.Write(t.Context(), s, h.Number))
	h.ok(h.Publish(t.Context(), &datanode.PublishRequest{Segments: []datanode.SegmentEntry{s.Entry()}}))
	two := []id.Ref{s.Ref(0)}
	h.content[two[0]] = twin
	_, err = h.Move(t.Context(), []id.Segment{one[0].Segment, two[0].Segment})
	h.ok(err)
	now1, now2 := h.follow(1, one), h.follow(2, two)
	if now1[3] != now2[0] {
		t.Errorf("one chunk is in %v and %v", now1[3], now2[0])
	}
	h.has(now1, one)
	h.has(now2, two)
	if gone := h.reclaim(); len(gone) != 2 {
		t.Errorf("%v are gone", gone)
	}
}
