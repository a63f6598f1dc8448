package stripe

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// seeded returns a generator and prints its seed if the test fails.
func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, roundUp(n, 8))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b[:n]
}

// sealedLen draws a length a sealed chunk may have; most are like 4 KiB chunks,
// and in a small segment all are.
func sealedLen(rng *rand.Rand, large bool) int {
	if large && rng.IntN(4) == 0 {
		return 16 + 16*rng.IntN(65584/16)
	}
	return 16 + 16*rng.IntN(4144/16)
}

// fill adds chunks of drawn lengths until the builder holds maxBytes or refuses.
func fill(rng *rand.Rand, b *Builder, maxBytes int, owners int) (chunks [][]byte, births []datanode.Birth) {
	o := datanode.Birth{Disk: 1, Epoch: 1}
	for b.Bytes() < maxBytes {
		sealed := noise(rng, sealedLen(rng, maxBytes >= 100_000))
		if rng.IntN(100) == 0 {
			o.Disk, o.Epoch = id.Disk(1+rng.IntN(owners)), id.Epoch(1+rng.IntN(2))
		}
		slot, ok := b.Add(o.Disk, o.Epoch, fingerprint(sealed), sealed, 65536)
		if !ok {
			break
		}
		chunks = append(chunks, sealed)
		if n := len(births); n > 0 && births[n-1].Disk == o.Disk && births[n-1].Epoch == o.Epoch {
			births[n-1].Slots++
		} else {
			births = append(births, datanode.Birth{Disk: o.Disk, Epoch: o.Epoch, Slots: 1})
		}
		if int(slot) != len(chunks)-1 || b.Len() != len(chunks) {
			panic("slots are not in order")
		}
	}
	return chunks, births
}

func fingerprint(sealed []byte) (fp id.Fingerprint) {
	copy(fp[:], sealed)
	return fp
}

func TestBuilderRoundTrip(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		b := NewBuilder(g)
		for _, limit := range []int{1, 5000, 100_000, 1 << 20} {
			b.Reset()
			chunks, births := fill(rng, b, limit, 3)
			s, err := b.Seal()
			if err != nil {
				t.Fatal(err)
			}
			checkPacked(t, g, s, chunks, births, 65584)
		}
	}
	b := NewBuilder(Geometry{8, 2})
	for _, limit := range []int{id.SegmentBytesMax, id.SegmentBytesMax / 2, id.SegmentBytesMax} {
		b.Reset()
		chunks, births := fill(rng, b, limit, 3)
		s, err := b.Seal()
		if err != nil {
			t.Fatal(err)
		}
		checkPacked(t, Geometry{8, 2}, s, chunks, births, 65584)
		if b.Bytes() < limit*9/10 {
			t.Errorf("a segment of %d bytes has %d", limit, b.Bytes())
		}
		freeUsed(s)
	}
}

// freeUsed frees a segment whose memory has other bytes by now.
func freeUsed(s *Segment) {
	for _, f := range s.Fragments {
		for i := range f {
			f[i] = 0xEE
		}
	}
	s.Free()
}

// checkPacked fails the test unless a segment holds exactly those chunks.
func checkPacked(t *testing.T, g Geometry, s *Segment, chunks [][]byte, births []datanode.Birth, longest int) {
	t.Helper()
	total, end := 0, make([]int, g.K)
	for i, want := range chunks {
		r := g.Locate(s.Ref(id.Slot(i)))
		if int(r.Index) >= g.K || r.end() > uint64(s.FragmentBytes) {
			t.Fatalf("%s: slot %d at %s of %d", g, i, r, s.FragmentBytes)
		}
		if !bytes.Equal(s.Fragments[r.Index][r.Offset:r.end()], want) {
			t.Fatalf("%s: slot %d differs", g, i)
		}
		if int(r.Offset) != end[r.Index] {
			t.Fatalf("%s: slot %d is at %d, the one before ends at %d", g, i, r.Offset, end[r.Index])
		}
		end[r.Index] = int(r.end())
		total += len(want)
		if e := s.Slots[i]; e.Slot != id.Slot(i) || e.Fingerprint != fingerprint(want) || e.PlainBytes != 65536 {
			t.Fatalf("%s: slot %d has entry %+v", g, i, e)
		}
	}
	h := s.Header
	if h.Kind != datanode.KindChunks || int(h.K) != g.K || int(h.M) != g.M || int(h.DataBytes) != total || len(s.Fragments) != g.Width() {
		t.Fatalf("%s: header %+v for %d bytes, %d fragments", g, h, total, len(s.Fragments))
	}
	if len(h.Births) != len(births) {
		t.Fatalf("%s: births %v, want %v", g, h.Births, births)
	}
	for i := range births {
		if h.Births[i] != births[i] {
			t.Fatalf("%s: births %v, want %v", g, h.Births, births)
		}
	}
	// Waste: rounding to blocks, and what no chunk fits in before the next begins.
	if int(s.FragmentBytes) > total/g.K+longest+datanode.BlockBytes || s.FragmentBytes%datanode.BlockBytes != 0 {
		t.Errorf("%s: fragments of %d for %d bytes", g, s.FragmentBytes, total)
	}
	for i, f := range s.Fragments {
		if len(f) != int(s.FragmentBytes) || i < g.K && len(bytes.Trim(f[end[i]:], "\x00")) != 0 {
			t.Errorf("%s: fragment %d has %d bytes, or no zeros at its end", g, i, len(f))
		}
	}
	if ok, err := g.coder().Verify(s.Fragments); !ok || err != nil {
		t.Errorf("%s: parity does not fit: %v", g, err)
	}
}

func TestShortSegmentsAreShort(t *testing.T) {
	for _, g := range geometries {
		b := NewBuilder(g)
		for n := 1; n <= 40; n++ {
			b.Add(1, 1, id.Fingerprint{}, make([]byte, 2048), 4096)
			s, err := b.Seal()
			if err != nil {
				t.Fatal(err)
			}
			if want := roundUp((n+g.K-1)/g.K*2048, 4096); int(s.FragmentBytes) != want {
				t.Errorf("%s: %d chunks of 2 KiB in fragments of %d, want %d", g, n, s.FragmentBytes, want)
			}
		}
	}
}

func TestBuilderIsFull(t *testing.T) {
	b := NewBuilder(Geometry{8, 2})
	small := make([]byte, 16)
	for n := range id.SlotsMax + 1 {
		if _, ok := b.Add(1, 1, id.Fingerprint{}, small, 4096); ok != (n < id.SlotsMax) {
			t.Fatalf("slot %d: %t", n, ok)
		}
	}
	b.Reset()
	for n := range datanode.BirthsMax + 1 {
		if _, ok := b.Add(1, id.Epoch(n), id.Fingerprint{}, small, 4096); ok != (n < datanode.BirthsMax) {
			t.Fatalf("birth %d: %t", n, ok)
		}
	}
	if _, ok := b.Add(1, datanode.BirthsMax-1, id.Fingerprint{}, small, 4096); !ok {
		t.Fatal("no room in the last birth run")
	}
	b.Reset()
	if _, err := b.Seal(); err == nil || b.Len() != 0 || b.Bytes() != 0 {
		t.Fatal("sealed nothing")
	}
	// 15 chunks of 65,584 bytes fit in a fragment of 1 MiB: 16 would straddle.
	large := make([]byte, 65584)
	for n := range 8*15 + 1 {
		if _, ok := b.Add(1, 1, id.Fingerprint{}, large, 65536); ok != (n < 8*15) {
			t.Fatalf("large chunk %d: %t", n, ok)
		}
	}
	if _, ok := b.Add(1, 1, id.Fingerprint{}, small, 4096); !ok {
		t.Fatal("a refused chunk left no room for a small one")
	}
}

func TestObjectRoundTrip(t *testing.T) {
	rng := seeded(t)
	for _, g := range geometries {
		for _, unitBytes := range []int{1000, 4096, 65568} {
			most := ObjectUnitsMax(g, unitBytes)
			for _, n := range []int{1, 2, g.K, g.K + 1, 1 + rng.IntN(min(most, 100)), min(most, 100)} {
				var units [][]byte
				for range n {
					units = append(units, noise(rng, unitBytes))
				}
				units[n-1] = units[n-1][:1+rng.IntN(unitBytes)]
				s, err := PackObject(g, 3, 4, units)
				if err != nil {
					t.Fatal(err)
				}
				for i, u := range units {
					r := ObjectRange(s.Header.Segment, s.FragmentBytes, unitBytes, i, len(u))
					if int(r.Index) >= g.K || !bytes.Equal(s.Fragments[r.Index][r.Offset:r.end()], u) {
						t.Fatalf("%s: unit %d of %d, %d bytes: %s differs", g, i, n, unitBytes, r)
					}
				}
				last := ObjectRange(s.Header.Segment, s.FragmentBytes, unitBytes, n-1, len(units[n-1]))
				for i := int(last.Index); i < g.K; i++ {
					if rest := s.Fragments[i]; i > int(last.Index) && len(bytes.Trim(rest, "\x00")) != 0 ||
						i == int(last.Index) && len(bytes.Trim(rest[last.end():], "\x00")) != 0 {
						t.Fatalf("%s: no zeros behind the units in fragment %d", g, i)
					}
				}
				if ok, err := g.coder().Verify(s.Fragments); !ok || err != nil {
					t.Fatalf("%s: parity does not fit: %v", g, err)
				}
				freeUsed(s)
				e := s.Entry()
				if e.Header.Kind != datanode.KindObject || len(e.Slots) != 1 || len(e.Header.Births) != 1 || e.Header.Births[0].Slots != 1 {
					t.Fatalf("entry %+v", e)
				}
			}
			if _, err := PackObject(g, 3, 4, make([][]byte, most+1)); err == nil {
				t.Errorf("%s: packed units of no bytes", g)
			}
		}
		if g.K != 8 {
			continue
		}
		full := make([][]byte, ObjectUnitsMax(g, 65568))
		for i := range full {
			full[i] = make([]byte, 65568)
		}
		if _, err := PackObject(g, 3, 4, full); err != nil {
			t.Error(err)
		}
		if _, err := PackObject(g, 3, 4, append(full, full[0])); err == nil {
			t.Errorf("%s: packed more than fits", g)
		}
	}
	for _, units := range [][][]byte{{}, {{}}, {{1}, {1, 2}}, {{1, 2}, {1}, {1, 2}}, {{1}, {}}} {
		if _, err := PackObject(Geometry{2, 1}, 3, 4, units); err == nil {
			t.Errorf("packed units %v", units)
		}
	}
}

// What is stored must be readable by every later version: parity is pinned.
func TestParityIsPinned(t *testing.T) {
	for _, c := range []struct {
		g    Geometry
		want uint32
	}{
		{Geometry{1, 1}, 0xe1cf2272}, {Geometry{2, 1}, 0x8b9590a5}, {Geometry{4, 2}, 0x205e5d98},
		{Geometry{8, 2}, 0x67cb8d14}, {Geometry{3, 3}, 0x9f20b3c9}, {Geometry{16, 16}, 0x562f031f},
	} {
		s := newSegment(c.g, datanode.KindChunks, 0, datanode.BlockBytes, nil)
		for i := range c.g.K {
			for j := range s.Fragments[i] {
				s.Fragments[i][j] = byte(j*(2*i+3) + j>>8 + i)
			}
		}
		if err := s.encode(c.g); err != nil {
			t.Fatal(err)
		}
		sum := uint32(0)
		for _, p := range s.Fragments[c.g.K:] {
			sum = crc32.Update(sum, castagnoli, p)
		}
		if sum != c.want {
			t.Errorf("%s: parity has CRC32C %#08x, want %#08x", c.g, sum, c.want)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	builder := NewBuilder(Geometry{8, 2})
	for {
		if _, ok := builder.Add(1, 1, id.Fingerprint{}, noise(rng, 2400), 4096); !ok {
			break
		}
	}
	b.SetBytes(int64(builder.Bytes()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := builder.Seal(); err != nil {
			b.Fatal(err)
		}
	}
}
