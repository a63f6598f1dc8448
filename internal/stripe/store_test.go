package stripe

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// pack returns a segment of about that many bytes, with its chunks.
func pack(t testing.TB, rng *rand.Rand, g Geometry, bytes int) (*Segment, [][]byte) {
	t.Helper()
	b := NewBuilder(g)
	chunks, _ := fill(rng, b, bytes, 2)
	s, err := b.Seal()
	if err != nil {
		t.Fatal(err)
	}
	return s, chunks
}

// readsBack fails the test unless each chunk reads as it was packed, in memory that
// other reads have used before.
func (r *rig) readsBack(s *Segment, chunks [][]byte) {
	r.Helper()
	order := rand.Perm(len(chunks))
	var ranges []Range
	for _, slot := range order {
		ranges = append(ranges, r.g.Locate(s.Ref(id.Slot(slot))))
	}
	for i, d := range r.store.ReadIn(r.Context(), &r.memory, ranges) {
		if want := chunks[order[i]]; d.Err != nil || !bytes.Equal(d.Bytes, want) {
			r.Fatalf("%s: %s: error %v, %d bytes of %d", r.g, ranges[i], d.Err, len(d.Bytes), len(want))
		}
	}
}

func TestReadWhatWasWritten(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width()+2)
		for _, n := range []int{1, 20_000, 1 << 20} {
			s, chunks := pack(t, rng, g, n)
			r.write(s)
			r.intact(s)
			r.readsBack(s, chunks)
			if r.store.Reconstructed() != 0 {
				t.Fatalf("%s: reconstructed from a whole stripe", g)
			}
		}
	}
}

func TestReadJoinsNeighbours(t *testing.T) {
	g := Geometry{4, 2}
	r := newRig(t, g, 6)
	s, chunks := pack(t, seeded(t), g, 4<<20)
	r.write(s)
	r.readsBack(s, chunks)
	if r.node.calls != 1 || r.node.reads != g.K {
		t.Errorf("%d calls for %d ranges, want 1 for %d", r.node.calls, r.node.reads, g.K)
	}
	// Overlapping, equal and far ranges.
	seg := s.Header.Segment
	ranges := []Range{{seg, 1, 0, 100}, {seg, 1, 50, 10}, {seg, 1, 0, 100}, {seg, 1, 100_000, 5000}, {seg, 0, 7, 1}}
	r.node.reads = 0
	for i, d := range r.store.Read(t.Context(), ranges) {
		q := ranges[i]
		if d.Err != nil || !bytes.Equal(d.Bytes, s.Fragments[q.Index][q.Offset:q.end()]) {
			t.Errorf("%s: %v", q, d.Err)
		}
	}
	if r.node.reads != 3 {
		t.Errorf("%d ranges read, want 3", r.node.reads)
	}
}

// What is asked for at once is bounded, however long the list.
func TestReadInManyCalls(t *testing.T) {
	g := Geometry{2, 1}
	r := newRig(t, g, 3)
	s, _ := pack(t, seeded(t), g, 20_000)
	ranges := make([]Range, 0, 3000)
	for range cap(ranges) {
		r.write(s)
		ranges = append(ranges, Range{s.Header.Segment, 0, 100, 64})
	}
	for _, down := range []bool{false, true} {
		r.node.down[numbers(3)[0]] = down
		for i, d := range r.store.Read(t.Context(), ranges) {
			if d.Err != nil || !bytes.Equal(d.Bytes, s.Fragments[0][100:164]) {
				t.Fatalf("range %d: %v", i, d.Err)
			}
		}
	}
	if r.store.Reconstructed() != 1000 {
		t.Errorf("%d reconstructed, want a third of 3000", r.store.Reconstructed())
	}
}

// Any m fragments may be lost, whether the spindle or only the fragment is.
func TestReadWithoutAnyM(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		for _, how := range []string{"missing", "down", "torn"} {
			r := newRig(t, g, g.Width())
			suspects := 0
			r.store.opts.Suspect = func(id.Segment) { suspects++ }
			s, chunks := pack(t, rng, g, 300_000)
			r.write(s)
			eachCombination(g.Width(), g.M, func(lost []int) bool {
				saved := map[place]*kept{}
				for _, i := range lost {
					at := r.place(s.Header.Segment, i)
					switch how {
					case "missing":
						saved[at] = r.node.fragments[at]
						delete(r.node.fragments, at)
					case "down":
						r.node.down[at.spindle] = true
					case "torn":
						r.node.torn[at.spindle] = true
					}
				}
				r.readsBack(s, chunks)
				for at, k := range saved {
					r.node.fragments[at] = k
				}
				clear(r.node.down)
				clear(r.node.torn)
				return true
			})
			if r.store.Reconstructed() == 0 || (suspects > 0) != (how != "down") {
				t.Errorf("%s: %d reconstructed, %d suspects", g, r.store.Reconstructed(), suspects)
			}
		}
	}
}

func TestReadErrors(t *testing.T) {
	g := Geometry{4, 2}
	r := newRig(t, g, 6)
	s, _ := pack(t, seeded(t), g, 300_000)
	r.write(s)
	seg := s.Header.Segment
	at := Range{seg, 1, 0, 4096}
	want := func(name string, q Range, want error) {
		t.Helper()
		d := r.store.Read(t.Context(), []Range{q})[0]
		if !errors.Is(d.Err, want) || d.Bytes != nil {
			t.Errorf("%s: %v, want %v", name, d.Err, want)
		}
	}
	want("no length", Range{seg, 1, 0, 0}, datanode.ErrInvalid)
	want("no such fragment", Range{seg, 6, 0, 1}, datanode.ErrInvalid)
	want("beyond any fragment", Range{seg, 0, 4294967295, 4294967295}, datanode.ErrInvalid)
	want("beyond the fragment", Range{seg, 0, uint32(g.NominalBytes() - 1), 1}, datanode.ErrCorrupt)
	want("no such layout", Range{id.MakeSegment(999, 1), 0, 0, 1}, datanode.ErrStaleLayout)
	want("no such segment", Range{seg + 1, 0, 0, 1}, datanode.ErrNotFound)
	for i := range 3 {
		r.node.down[r.place(seg, i).spindle] = true
	}
	want("too many spindles down", at, datanode.ErrSpindle)
	clear(r.node.down)
	for i := range 3 {
		r.lose(seg, i)
	}
	want("too many missing", at, datanode.ErrCorrupt)
	for i := range 6 {
		r.lose(seg, i)
	}
	want("all missing", at, datanode.ErrNotFound)
	if _, err := r.store.Check(t.Context(), seg, true); !errors.Is(err, datanode.ErrNotFound) {
		t.Errorf("check of a segment that is gone: %v", err)
	}
	if _, err := r.store.Reconstruct(t.Context(), at, is(nil)); !errors.Is(err, datanode.ErrNotFound) {
		t.Errorf("reconstruct of a segment that is gone: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d := r.store.Read(ctx, []Range{at})[0]; !errors.Is(d.Err, context.Canceled) {
		t.Errorf("cancelled: %v", d.Err)
	}
}

func TestWriteGoesAround(t *testing.T) {
	rng := seeded(t)
	g := Geometry{4, 2}
	r := newRig(t, g, 9)
	for _, c := range []struct {
		name string
		set  map[id.Spindle]bool
	}{{"down", r.node.down}, {"full", r.node.full}, {"torn", r.node.torn}} {
		clear(r.node.down)
		clear(r.node.full)
		c.set[numbers(9)[2]], c.set[numbers(9)[7]] = true, true
		r.store.UpdateHealth(allOK(9))
		seen := map[id.Segment]bool{}
		for range 20 {
			s, _ := pack(t, rng, g, 20_000)
			r.write(s)
			r.intact(s)
			if seen[s.Header.Segment] {
				t.Fatalf("%s: segment %s twice", c.name, s.Header.Segment)
			}
			seen[s.Header.Segment] = true
		}
	}
	// Every attempt takes a number, and none is taken in vain once a spindle is
	// known to fail.
	before := r.number
	s, _ := pack(t, rng, g, 20_000)
	r.write(s)
	if r.number != before+1 {
		t.Errorf("%d numbers for a write around known failures", r.number-before)
	}
	clear(r.node.torn)
	r.store.UpdateHealth(allOK(9))
	used := map[id.Spindle]bool{}
	for range 40 {
		r.write(s)
		for _, spindle := range r.store.Layouts().Lists[s.Header.Segment.Layout()] {
			used[spindle] = true
		}
	}
	if len(used) != 9 {
		t.Errorf("only %d spindles are used after all work again", len(used))
	}
}

func allOK(n int) (all []datanode.SpindleStatus) {
	for _, s := range numbers(n) {
		all = append(all, datanode.SpindleStatus{Spindle: s, State: datanode.SpindleOK})
	}
	return all
}

func TestWriteErrors(t *testing.T) {
	g := Geometry{2, 1}
	r := newRig(t, g, 4)
	s, _ := pack(t, seeded(t), g, 20_000)
	want := func(name string, want error) {
		t.Helper()
		if err := r.store.Write(t.Context(), s, r.next); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	for _, sp := range numbers(4)[:2] {
		r.node.full[sp] = true
	}
	want("two of four full", datanode.ErrNoSpace)
	if n := len(r.node.fragments); n != 0 {
		t.Errorf("%d fragments are left of attempts that failed", n)
	}
	clear(r.node.full)
	r.write(s)
	for _, sp := range numbers(4)[:2] {
		r.node.down[sp] = true
	}
	want("two of four down", datanode.ErrSpindle)
	want("two of four known to be down", datanode.ErrSpindle)
	clear(r.node.down)
	r.store.UpdateHealth(allOK(4))
	r.number = 0 // a registry that went back
	seen := false
	for range 2 * len(r.store.Layouts().Lists) {
		err := r.store.Write(t.Context(), s, func(context.Context) (uint64, error) { return 1, nil })
		seen = seen || errors.Is(err, datanode.ErrInvalid)
	}
	if !seen {
		t.Error("a number was used again")
	}
	r.node.version = 8
	want("newer layouts", datanode.ErrStaleLayout)
	failing := errors.New("no number")
	if err := r.store.Write(t.Context(), s, func(context.Context) (uint64, error) { return 0, failing }); !errors.Is(err, failing) {
		t.Errorf("no number: %v", err)
	}
	for _, n := range []uint64{0, id.SegmentNumberMax + 1} {
		if err := r.store.Write(t.Context(), s, func(context.Context) (uint64, error) { return n, nil }); !errors.Is(err, datanode.ErrInvalid) {
			t.Errorf("number %d: %v", n, err)
		}
	}
	other, _ := pack(t, seeded(t), Geometry{1, 1}, 100)
	if err := r.store.Write(t.Context(), other, r.next); !errors.Is(err, datanode.ErrInvalid) {
		t.Errorf("another geometry: %v", err)
	}
}

func BenchmarkRead4KiB(b *testing.B) {
	g := Geometry{8, 2}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range []string{"whole", "degraded"} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, g, 10)
			s, _ := pack(b, rng, g, 1<<20)
			r.write(s)
			if name == "degraded" {
				r.node.down[r.place(s.Header.Segment, 0).spindle] = true
			}
			at := []Range{{s.Header.Segment, 0, 16, 4096}}
			b.SetBytes(4096)
			b.ReportAllocs()
			for b.Loop() {
				if d := r.store.Read(b.Context(), at); d[0].Err != nil {
					b.Fatal(d[0].Err)
				}
			}
		})
	}
}
