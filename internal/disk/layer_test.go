package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"plinth/internal/id"
)

// TestSimLayer applies random operations to a layer and to plain
// bytes. The layer's "sealed" chunks are plaintext here: open copies.
func TestSimLayer(t *testing.T) {
	const size, chunks = 4096, 24
	open := func(sealed []byte) ([]byte, error) { return bytes.Clone(sealed), nil }
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := newLayer(size)
		data := make([]byte, size*chunks)
		known := make([]bool, len(data))
		set := func(off int, p []byte) {
			copy(data[off:], p)
			for i := range p {
				known[off+i] = true
			}
		}
		for range 60 {
			lba := rng.IntN(chunks)
			switch rng.IntN(4) {
			case 0:
				p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, size)
				l.setSealed(id.LBA(lba), [][]byte{p})
				set(lba*size, p)
			case 1:
				off := rng.IntN(size)
				p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, 1+rng.IntN(size-off))
				if err := l.patch(id.LBA(lba), off, p, open); err != nil {
					t.Fatal(err)
				}
				set(lba*size+off, p)
			case 2:
				off := rng.IntN(len(data))
				n := 1 + rng.IntN(min(len(data)-off, 5*size))
				if err := l.zeroBytes(int64(off), int64(n), open); err != nil {
					t.Fatal(err)
				}
				set(off, make([]byte, n))
			case 3:
				end := lba + 1 + rng.IntN(chunks-lba)
				l.setZero(id.LBA(lba), id.LBA(end))
				set(lba*size, make([]byte, (end-lba)*size))
			}
			for lba := range chunks {
				checkChunk(t, l, id.LBA(lba), data[lba*size:][:size], known[lba*size:][:size])
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

func checkChunk(t *testing.T, l *layer, lba id.LBA, want []byte, known []bool) {
	e, zero := l.entries[lba], l.zeros.contains(int64(lba))
	if e != nil && zero {
		t.Errorf("chunk %d is an entry and zero", lba)
		return
	}
	for i := range want {
		var got byte
		has := zero
		switch {
		case e != nil && e.sealed != nil:
			got, has = e.sealed[i], true
		case e != nil:
			got, has = e.plain[i], e.valid.contains(int64(i))
		}
		if has != known[i] || has && got != want[i] {
			t.Errorf("chunk %d, byte %d: got %d (known %v), want %d (known %v)", lba, i, got, has, want[i], known[i])
			return
		}
	}
}

func TestExtents(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var s extents
		var model [64]bool
		for range 20 {
			first := rng.IntN(64)
			end := first + rng.IntN(65-first)
			s = s.add(int64(first), int64(end))
			for i := first; i < end; i++ {
				model[i] = true
			}
		}
		for i := range s {
			if s[i].first >= s[i].end || i > 0 && s[i-1].end >= s[i].first {
				t.Fatalf("runs are not disjoint and ordered: %v", s)
			}
		}
		for i, want := range model {
			if s.contains(int64(i)) != want {
				t.Fatalf("contains(%d) in %v", i, s)
			}
		}
	}
}

func TestExtentsSplit(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		var s, o extents
		for range rng.IntN(5) {
			first := rng.Int64N(40)
			s = s.add(first, first+rng.Int64N(12))
			first = rng.Int64N(40)
			o = o.add(first, first+rng.Int64N(12))
		}
		in, out := s.split(o)
		for x := range int64(60) {
			if got, want := in.contains(x), s.contains(x) && o.contains(x); got != want {
				t.Fatalf("%v split by %v: %d in: %v, want %v", s, o, x, got, want)
			}
			if got, want := out.contains(x), s.contains(x) && !o.contains(x); got != want {
				t.Fatalf("%v split by %v: %d out: %v, want %v", s, o, x, got, want)
			}
		}
	}
}
