package stripe

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"plinth/internal/id"
)

// Whatever happens to a stripe, nothing wrong ever gets a valid checksum, and
// what has at most m damaged fragments at each block becomes whole.
func TestRandomDamage(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		for range 40 {
			s, _ := pack(t, rng, g, 1+rng.IntN(60_000))
			r.write(s)
			seg := s.Header.Segment
			lost, gone := make([]map[int]bool, blocksOf(s)), map[int]bool{}
			for b := range lost {
				lost[b] = map[int]bool{}
			}
			for range rng.IntN(3 * g.M) {
				i := rng.IntN(g.Width())
				switch {
				case gone[i]:
				case rng.IntN(5) == 0:
					r.lose(seg, i)
					gone[i] = true
				case rng.IntN(5) == 0:
					r.kept(seg, i).badHeader = true
					gone[i] = true
				default:
					at := rng.IntN(int(s.FragmentBytes))
					r.kept(seg, i).data[at] ^= 1 << rng.IntN(8)
					lost[at/blockBytes][i] = true
				}
			}
			most := 0
			for b := range lost {
				for i := range gone {
					lost[b][i] = true
				}
				most = max(most, len(lost[b]))
			}
			for range rng.IntN(3) {
				at, want := blockAt(s, rng.IntN(g.K), rng.IntN(blocksOf(s)))
				if _, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil && most <= g.M {
					t.Fatalf("%s: %v", g, err)
				}
				r.honest(s)
			}
			if len(gone) == g.Width() {
				continue
			}
			report := r.check(seg, true)
			if r.honest(s); most <= g.M {
				if slices.ContainsFunc(report.Damage, func(d Damage) bool { return !d.Repaired }) {
					t.Fatalf("%s: not repaired: %v", g, report.Damage)
				}
				r.intact(s)
			}
		}
	}
}

func TestRepairsAtOnce(t *testing.T) {
	g := Geometry{4, 2}
	r := newRig(t, g, 6)
	s, chunks := pack(t, seeded(t), g, 500_000)
	r.write(s)
	for b := range blocksOf(s) {
		r.flip(s.Header.Segment, b%6, b*blockBytes, false)
		r.flip(s.Header.Segment, (b+1)%6, b*blockBytes+9, false)
	}
	var wg sync.WaitGroup
	for range 8 {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		wg.Go(func() {
			for range 5 {
				slot := rng.IntN(len(chunks))
				at := g.Locate(s.Ref(id.Slot(slot)))
				p, err := r.store.Reconstruct(t.Context(), at, is(chunks[slot]))
				if err != nil || !bytes.Equal(p, chunks[slot]) {
					t.Errorf("%s: %v", at, err)
				}
				if _, err := r.store.Check(t.Context(), s.Header.Segment, rng.IntN(2) == 0); err != nil {
					t.Error(err)
				}
				r.store.Read(t.Context(), []Range{at})
			}
		})
	}
	wg.Wait()
	r.intact(s)
}

func BenchmarkCheck(b *testing.B) {
	g := Geometry{8, 2}
	r := newRig(b, g, 10)
	s, _ := pack(b, rand.New(rand.NewPCG(1, 1)), g, id.SegmentBytesMax)
	r.write(s)
	b.SetBytes(int64(s.Header.DataBytes))
	for b.Loop() {
		r.check(s.Header.Segment, false)
	}
}
