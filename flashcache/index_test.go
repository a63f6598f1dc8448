package flashcache

import (
	"math/rand/v2"
	"testing"

	"plinth/internal/id"
)

func randomFingerprint(rng *rand.Rand) (fp id.Fingerprint) {
	le.PutUint64(fp[:8], rng.Uint64())
	le.PutUint64(fp[8:], rng.Uint64())
	return fp
}

// One shard, through growth and shrinking, against a map.
func TestIndexIsAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	x := &index{shards: make([]shard, 1)}
	model := map[id.Fingerprint]place{}
	var all []id.Fingerprint
	for step := range 60000 {
		grow := step/15000%2 == 0
		switch {
		case rng.IntN(10) < 8 == grow || len(all) == 0:
			fp := randomFingerprint(rng)
			if step%100 == 0 { // one tag, for many
				copy(fp[4:8], "tags")
				le.PutUint16(fp[8:], uint16(step/100)<<(16-moreBits))
			}
			p := place(rng.Uint64N(1 << placeBits))
			k := makeKey(&fp)
			x.put(k, makeWord(p, 1+rng.IntN(1<<unitsBits-1), rng.IntN(4), k.more))
			model[fp] = p
			all = append(all, fp)
		default:
			i := rng.IntN(len(all))
			fp := all[i]
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
			k := makeKey(&fp)
			if rng.IntN(2) == 0 {
				x.forget(k)
			} else if x.remove(k, model[fp]+1, false) || !x.remove(k, model[fp], true) {
				t.Fatal("a chunk is removed where it is not, or not where it is")
			} else if _, ghost := x.known(k); !ghost {
				t.Fatal("no ghost is left")
			}
			delete(model, fp)
		}
		if step%1000 == 0 {
			x.check(t, model)
		}
	}
	x.check(t, model)
	x.forgetRange(0, 1<<39)
	for fp, p := range model {
		if p < 1<<39 {
			delete(model, fp)
		}
	}
	x.check(t, model)
}

func (x *index) check(t *testing.T, model map[id.Fingerprint]place) {
	t.Helper()
	s := &x.shards[0]
	if s.n != len(model) {
		t.Fatalf("%d chunks, want %d", s.n, len(model))
	}
	for fp, p := range model {
		if _, ok := x.at(makeKey(&fp), p); !ok {
			t.Fatalf("%s is not at %d", fp, p)
		}
		other := fp
		other[8] ^= 0x80
		if there, _ := x.known(makeKey(&other)); there && string(fp[4:8]) != "tags" {
			t.Fatalf("%s is there", other)
		}
	}
	last := uint32(0)
	for i, c := range s.cells {
		if c.word() == 0 {
			continue
		}
		if c.tag < last || s.home(c.tag) > i {
			t.Fatalf("cell %d is out of order", i)
		}
		last = c.tag
	}
}

// The promise of doc.go, when shards are large, at any number of chunks.
func TestIndexBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	x := &index{shards: make([]shard, 4), mask: 3}
	var all []key
	bytes := func() float64 {
		var s Stats
		x.stats(&s)
		if s.Chunks != int64(len(all)) {
			t.Fatalf("%d chunks, want %d", s.Chunks, len(all))
		}
		return float64(s.IndexBytes) / float64(s.Chunks)
	}
	worst := 0.0
	for len(all) < 300000 {
		fp := randomFingerprint(rng)
		k := makeKey(&fp)
		x.put(k, makeWord(place(len(all)+1), 1, 0, k.more))
		all = append(all, k)
		if n := len(all); n > 50000 && n%500 == 0 {
			worst = max(worst, bytes())
		}
	}
	for len(all) > 50000 {
		x.remove(all[len(all)-1], place(len(all)), true)
		all = all[:len(all)-1]
		if len(all)%500 == 0 {
			worst = max(worst, bytes())
		}
	}
	t.Logf("at most %.2f bytes of RAM for a chunk", worst)
	if worst > 16 {
		t.Errorf("%.2f bytes of RAM for a chunk, at most 16", worst)
	}
}

func TestWordHoldsItsParts(t *testing.T) {
	for _, c := range []struct {
		p     place
		units int
		freq  int
		more  uint16
	}{
		{1, 1, 0, 0},
		{1<<placeBits - 1, 1<<unitsBits - 1, freqMax, 1<<moreBits - 1},
		{12345678901, 257, 2, 300},
	} {
		w := makeWord(c.p, c.units, c.freq, c.more)
		if w.place() != c.p || w.units() != c.units || w.freq() != c.freq || w.more() != c.more {
			t.Errorf("%+v becomes %d, %d, %d, %d", c, w.place(), w.units(), w.freq(), w.more())
		}
		if v := w.withFreq(1); v.freq() != 1 || v.withFreq(c.freq) != w {
			t.Errorf("%+v with another count is %x", c, v)
		}
		if cell := makeCell(7, w); cell.word() != w {
			t.Errorf("%x comes back as %x", w, cell.word())
		}
	}
}
