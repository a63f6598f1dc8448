package stripe

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// check runs Check and fails the test on an error.
func (r *rig) check(seg id.Segment, repair bool) *Report {
	r.Helper()
	report, err := r.store.Check(r.Context(), seg, repair)
	if err != nil {
		r.Fatal(err)
	}
	return report
}

// blockAt returns the range of a block of a packed segment, and its bytes.
func blockAt(s *Segment, index, block int) (Range, []byte) {
	q := Range{s.Header.Segment, uint8(index), uint32(block * blockBytes), blockBytes}
	return q, s.Fragments[index][q.Offset:q.end()]
}

// blocksOf returns how many blocks each fragment has.
func blocksOf(s *Segment) int { return int(s.FragmentBytes) / blockBytes }

// honest fails the test if a block lies under a valid checksum that is not what
// was packed.
func (r *rig) honest(s *Segment) {
	r.Helper()
	for i := range s.Fragments {
		k := r.kept(s.Header.Segment, i)
		if k == nil {
			continue
		}
		actual := kept{data: k.data}
		actual.sum()
		for b := range k.sums {
			if _, want := blockAt(s, i, b); k.sums[b] == actual.sums[b] && !bytes.Equal(k.data[b*blockBytes:][:blockBytes], want) {
				r.Fatalf("%s: block %d of fragment %d is wrong under a valid checksum", r.g, b, i)
			}
		}
	}
}

func TestCheckRepairs(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		s, chunks := pack(t, rng, g, 80_000)
		r.write(s)
		seg := s.Header.Segment
		if report := r.check(seg, true); !report.Whole() || report.LostBlocks != 0 {
			t.Fatalf("%s: a whole stripe has %v", g, report.Damage)
		}
		for index := range g.Width() {
			for _, c := range []struct {
				kind   DamageKind
				items  int
				damage func()
			}{
				{DamageMissing, 1, func() { r.lose(seg, index) }},
				{DamageHeader, 1, func() { r.kept(seg, index).badHeader = true }},
				{DamageBlock, 2, func() {
					r.flip(seg, index, 0, false)
					r.flip(seg, index, int(s.FragmentBytes)-1, false)
				}},
				{DamageFields, 1, func() { r.kept(seg, index).header.DataBytes++ }},
				{DamageFields, 1, func() { r.kept(seg, index).header.Segment++ }},
				{DamageFields, 1, func() {
					k := r.kept(seg, index)
					k.data = append(k.data, k.data[:blockBytes]...)
					k.sum()
				}},
				{DamageParity, 1, func() { r.flip(seg, index, 5, true) }},
			} {
				if c.kind == DamageFields && g.Width() == 2 && r.kept(seg, index).header.Segment == seg || c.kind == DamageParity && g.M == 1 {
					continue // nobody can say which of two is right
				}
				c.damage()
				for _, repair := range []bool{false, true} {
					report := r.check(seg, repair)
					if len(report.Damage) != c.items || report.LostBlocks != 0 {
						t.Fatalf("%s: %s of fragment %d: %v, %d lost", g, c.kind, index, report.Damage, report.LostBlocks)
					}
					for _, d := range report.Damage {
						if d.Kind != c.kind || int(d.Index) != index || d.Spindle != r.place(seg, index).spindle || d.Repaired != repair {
							t.Fatalf("%s: %s of fragment %d is reported as %s", g, c.kind, index, d)
						}
					}
				}
				r.intact(s)
			}
		}
		r.readsBack(s, chunks)
	}
}

func TestCheckLeavesWhatItCannotKnow(t *testing.T) {
	rng := seeded(t)
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		r := newRig(t, g, g.Width())
		s, _ := pack(t, rng, g, 50_000)
		r.write(s)
		seg := s.Header.Segment
		r.flip(seg, 0, 5000, true)
		report := r.check(seg, true)
		want := Damage{Index: IndexUnknown, Offset: 4096, Kind: DamageParity}
		if len(report.Damage) != 1 || report.Damage[0] != want {
			t.Errorf("%s: %v, want %v", g, report.Damage, want)
		}
		r.flip(seg, 0, 5000, true)
		r.intact(s)
	}
	// Of two headers neither is believed, but data is still found.
	r := newRig(t, Geometry{1, 1}, 2)
	s, _ := pack(t, rng, r.g, 50_000)
	r.write(s)
	seg := s.Header.Segment
	r.kept(seg, 1).header.DataBytes++
	if report := r.check(seg, true); len(report.Damage) != 2 || report.Damage[0].Repaired || report.LostBlocks != blocksOf(s) {
		t.Errorf("two headers: %v, %d lost", report.Damage, report.LostBlocks)
	}
	r.flip(seg, 0, 5000, false)
	at, want := blockAt(s, 0, 1)
	if p, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil || !bytes.Equal(p, want) {
		t.Errorf("two headers: %v", err)
	}
	// A spindle that does not work is not written to.
	g := Geometry{4, 2}
	r = newRig(t, g, 6)
	s, _ = pack(t, rng, g, 50_000)
	r.write(s)
	seg = s.Header.Segment
	r.node.down[r.place(seg, 3).spindle] = true
	r.flip(seg, 0, 0, false)
	report := r.check(seg, true)
	if len(report.Damage) != 2 || report.Damage[0].Kind != DamageBlock || !report.Damage[0].Repaired ||
		report.Damage[1].Kind != DamageUnreachable || report.Damage[1].Repaired {
		t.Errorf("a spindle down: %v", report.Damage)
	}
	r.intact(s)
}

// At each block, any m fragments may be damaged.
func TestReconstructAnyFlips(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		s, _ := pack(t, rng, g, 20_000)
		r.write(s)
		seg := s.Header.Segment
		eachCombination(g.Width(), g.M, func(lost []int) bool {
			// Other fragments are damaged at other blocks, too.
			for b := range blocksOf(s) {
				for _, i := range lost {
					r.flip(seg, (i+b)%g.Width(), b*blockBytes+rng.IntN(blockBytes), false)
				}
			}
			for b := range blocksOf(s) {
				for index := range g.K {
					at, want := blockAt(s, index, b)
					if b == 0 { // and the whole fragment at once
						at.Length, want = s.FragmentBytes, s.Fragments[index]
					}
					p, err := r.store.Reconstruct(t.Context(), at, is(want))
					if err != nil || !bytes.Equal(p, want) {
						t.Fatalf("%s: %s with %v flipped: %v", g, at, lost, err)
					}
				}
			}
			r.intact(s)
			return true
		})
		if r.store.Repaired() == 0 || r.store.Reconstructed() == 0 {
			t.Errorf("%s: %d repaired, %d reconstructed", g, r.store.Repaired(), r.store.Reconstructed())
		}
	}
}

// A fragment may be wrong under checksums that hold: the check decides.
func TestReconstructAgainstValidChecksums(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		s, _ := pack(t, rng, g, 100_000)
		r.write(s)
		seg := s.Header.Segment
		for range 20 {
			index, block := rng.IntN(g.K), rng.IntN(blocksOf(s))
			at, want := blockAt(s, index, block)
			bad := []int{index}
			if g.M > 1 { // and another one, at the same block
				bad = append(bad, (index+1+rng.IntN(g.Width()-1))%g.Width())
			}
			for _, i := range bad {
				r.flip(seg, i, block*blockBytes+rng.IntN(blockBytes), true)
			}
			p, err := r.store.Reconstruct(t.Context(), at, is(want))
			if err != nil || !bytes.Equal(p, want) {
				t.Fatalf("%s: %s: %v", g, at, err)
			}
			r.intact(s)
		}
	}
}

func TestReconstructFails(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		s, _ := pack(t, rng, g, 60_000)
		r.write(s)
		seg := s.Header.Segment
		for i := range g.M + 1 {
			r.flip(seg, i, blockBytes+i, false)
		}
		at, want := blockAt(s, 0, 1)
		_, err := r.store.Reconstruct(t.Context(), at, is(want))
		if !errors.Is(err, datanode.ErrCorrupt) || !strings.Contains(err.Error(), describe(seg, 0, r.place(seg, 0).spindle)) {
			t.Errorf("%s: %v", g, err)
		}
		report := r.check(seg, true)
		if report.LostBlocks != 1 || len(report.Damage) != g.M+1 || report.Damage[0].Repaired {
			t.Errorf("%s: %v, %d lost", g, report.Damage, report.LostBlocks)
		}
		r.honest(s)
		// The rest of the fragments is still good for reading.
		if at, want := blockAt(s, 0, 0); r.g.M > 0 {
			if p, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil || !bytes.Equal(p, want) {
				t.Errorf("%s: %v", g, err)
			}
		}
		r.honest(s)
		// A block whose damage is outside the range yields the range, and is not
		// taken for good.
		at.Offset, at.Length = blockBytes+100, 500
		want = s.Fragments[0][at.Offset:at.end()]
		if p, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil || !bytes.Equal(p, want) {
			t.Errorf("%s: %v", g, err)
		}
		r.honest(s)
		if report := r.check(seg, true); report.LostBlocks != 1 {
			t.Errorf("%s: %d blocks lost after nothing could be repaired", g, report.LostBlocks)
		}
	}
}

// A reader may race with a deletion: it brings no fragment back.
func TestReconstructRestoresNothingMissing(t *testing.T) {
	g := Geometry{4, 2}
	r := newRig(t, g, 6)
	s, _ := pack(t, seeded(t), g, 20_000)
	r.write(s)
	seg := s.Header.Segment
	r.lose(seg, 5)
	r.flip(seg, 0, 0, false)
	at, want := blockAt(s, 0, 0)
	if _, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil {
		t.Fatal(err)
	}
	if r.kept(seg, 5) != nil || r.store.Repaired() != 1 {
		t.Error("a missing fragment was restored, or the damaged one was not")
	}
	r.check(seg, true)
	r.intact(s)
}

func TestReconstructBounds(t *testing.T) {
	g := Geometry{2, 1}
	r := newRig(t, g, 3)
	s, _ := pack(t, seeded(t), g, 60_000)
	r.write(s)
	seg := s.Header.Segment
	for _, c := range []struct {
		at   Range
		want error
	}{
		{Range{seg, 0, 0, 0}, datanode.ErrInvalid},
		{Range{seg, 3, 0, 1}, datanode.ErrInvalid},
		{Range{seg, 0, 1 << 31, 1 << 31}, datanode.ErrInvalid},
		{Range{seg, 0, s.FragmentBytes - 1, 2}, datanode.ErrCorrupt},
		{Range{id.MakeSegment(999, 1), 0, 0, 1}, datanode.ErrStaleLayout},
		{Range{seg, 0, 0, 10}, datanode.ErrCorrupt},
	} {
		refuse := func([]byte) error { return errors.New("no") }
		if _, err := r.store.Reconstruct(t.Context(), c.at, refuse); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.at, err, c.want)
		}
	}
	r.intact(s)
	if r.store.Repaired() != 0 {
		t.Error("repaired what nobody damaged")
	}
}

// Headers of more fragments than parity replaces are damaged: data is found all
// the same, and nothing is rewritten on a guess.
func TestReconstructWithoutHeaders(t *testing.T) {
	for _, g := range geometries {
		r := newRig(t, g, g.Width())
		s, _ := pack(t, seeded(t), g, 60_000)
		r.write(s)
		for i := range g.Width() {
			r.kept(s.Header.Segment, i).badHeader = true
		}
		r.flip(s.Header.Segment, 0, 10, false)
		at, want := blockAt(s, 0, 0)
		if p, err := r.store.Reconstruct(t.Context(), at, is(want)); err != nil || !bytes.Equal(p, want) {
			t.Errorf("%s: %v", g, err)
		}
		if report := r.check(s.Header.Segment, true); len(report.Damage) != g.Width() || r.store.Repaired() != 0 {
			t.Errorf("%s: %v", g, report.Damage)
		}
	}
}
