package crash

import (
	"fmt"
	"sync"
	"testing"
)

// history is what was done to a disk, by region: each region has one writer at a
// time, which waits for each answer, so that the order of its effects is that of
// the log. It knows which prefixes a loss of power may leave.
type history struct {
	mu      sync.Mutex
	clock   uint64
	regions []*strand
}

// strand is one region's part of the history.
type strand struct {
	base    []uint64 // write numbers by sector, before all effects
	now     []uint64 // after all that were acknowledged
	effects []effect
	stable  int // effects that must have survived a loss of power
}

// effect is what one record of the log does.
type effect struct {
	first, n     int64 // sectors in the region
	seq          uint64
	begun, acked uint64 // acked 0: not
}

func (e effect) apply(to []uint64) {
	for i := e.first; i < e.first+e.n; i++ {
		to[i] = e.seq
	}
}

func newHistory(regions int, sectors int64) *history {
	h := &history{}
	for range regions {
		h.regions = append(h.regions, &strand{base: make([]uint64, sectors), now: make([]uint64, sectors)})
	}
	return h
}

// begin notes the records of a call that is about to be made. The result is for
// end and drop.
func (h *history) begin(region int, records []effect) (from int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.regions[region]
	h.clock++
	for i := range records {
		records[i].begun = h.clock
	}
	from = len(s.effects)
	s.effects = append(s.effects, records...)
	return from
}

// end notes that a call was acknowledged, with fua on stable media.
func (h *history) end(region, from int, fua bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.regions[region]
	h.clock++
	for i := range s.effects[from:] {
		e := &s.effects[from+i]
		e.acked = h.clock
		e.apply(s.now)
	}
	if fua {
		s.stable = len(s.effects)
	}
}

// drop forgets a call that was refused as a whole.
func (h *history) drop(region, from int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.regions[region]
	s.effects = s.effects[:from]
}

// flush notes what a flush that is about to be made covers; the result is to be
// called when it has returned.
func (h *history) flush() (done func()) {
	covered := h.acked()
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, s := range h.regions {
			s.stable = max(s.stable, covered[i])
		}
	}
}

// acked returns how many effects of each region are acknowledged.
func (h *history) acked() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]int, len(h.regions))
	for i, s := range h.regions {
		for out[i] < len(s.effects) && s.effects[out[i]].acked != 0 {
			out[i]++
		}
	}
	return out
}

// settle checks what was found after a crash, by region, and goes on from it:
// each region must show a prefix of its effects with all that was stable, or
// after the death of the process alone all that was acknowledged; and together
// they must be a prefix of the log: who shows an effect shows what had been
// acknowledged before that one began.
func (h *history) settle(found [][]uint64, killed bool) error {
	least := make([]int, len(h.regions))
	for i, s := range h.regions {
		least[i] = s.stable
	}
	if killed {
		for i, n := range h.acked() {
			least[i] = max(least[i], n)
		}
	}
	fits := make([][]bool, len(h.regions))
	for i, s := range h.regions {
		fits[i] = s.fits(found[i])
		least[i] = nextTrue(fits[i], least[i])
		if least[i] < 0 {
			return fmt.Errorf("region %d shows no prefix with %d of %d effects: %s", i, max(s.stable, 0), len(s.effects), s.nearest(found[i]))
		}
	}
	for again := true; again; {
		again = false
		for i, s := range h.regions {
			if least[i] == 0 {
				continue
			}
			last := s.effects[least[i]-1]
			for j, o := range h.regions {
				n := least[j]
				for n < len(o.effects) && o.effects[n].acked != 0 && o.effects[n].acked < last.begun {
					n++
				}
				if n == least[j] {
					continue
				}
				if n = nextTrue(fits[j], n); n < 0 {
					return fmt.Errorf("region %d shows effect %d, and region %d not what was acknowledged before it began", i, least[i]-1, j)
				}
				least[j], again = n, true
			}
		}
	}
	h.clock++
	for i, s := range h.regions {
		s.effects = s.effects[:least[i]] // the others are lost for ever
		for k := range s.effects {
			if s.effects[k].acked == 0 { // it was in the log, and what comes from now on is behind it
				s.effects[k].acked = h.clock
			}
		}
		if !killed { // what a loss of power left is stable
			s.base, s.effects, s.stable = found[i], nil, 0
		}
		s.now = append([]uint64(nil), found[i]...)
	}
	return nil
}

// fits says for each number of effects whether the region shows just these.
func (s *strand) fits(found []uint64) []bool {
	state := append([]uint64(nil), s.base...)
	wrong := 0
	for i := range state {
		if state[i] != found[i] {
			wrong++
		}
	}
	out := []bool{wrong == 0}
	for _, e := range s.effects {
		for i := e.first; i < e.first+e.n; i++ {
			if state[i] == found[i] {
				wrong++
			}
			if state[i] = e.seq; state[i] == found[i] {
				wrong--
			}
		}
		out = append(out, wrong == 0)
	}
	return out
}

// nearest describes the prefix that differs least, for an error.
func (s *strand) nearest(found []uint64) string {
	state := append([]uint64(nil), s.base...)
	best, text := len(found)+1, ""
	for n := 0; ; n++ {
		wrong, at := 0, 0
		for i := range state {
			if state[i] != found[i] {
				wrong, at = wrong+1, i
			}
		}
		if wrong < best {
			best = wrong
			text = fmt.Sprintf("with %d effects %d sectors differ, sector %d is of write %d, not %d", n, wrong, at, found[at], state[at])
		}
		if n == len(s.effects) {
			return text
		}
		s.effects[n].apply(state)
	}
}

func nextTrue(b []bool, from int) int {
	for i := from; i < len(b); i++ {
		if b[i] {
			return i
		}
	}
	return -1
}

// What a killed process left unacknowledged and in the log counts as what was
// acknowledged from then on, also where later effects show nothing.
func TestHistoryAfterKills(t *testing.T) {
	h := newHistory(1, 2)
	h.begin(0, []effect{{first: 0, n: 1, seq: 1}}) // the process dies before the answer
	if err := h.settle([][]uint64{{1, 0}}, true); err != nil {
		t.Fatal(err)
	}
	h.end(0, h.begin(0, []effect{{first: 1, n: 1, seq: 0}}), true) // a flushed zero over zero
	if err := h.settle([][]uint64{{1, 0}}, true); err != nil {
		t.Fatal(err)
	}
	if err := h.settle([][]uint64{{0, 0}}, false); err == nil {
		t.Error("a flush of what came later covers what the first kill left")
	}
	if err := h.settle([][]uint64{{1, 0}}, false); err != nil {
		t.Error(err)
	}
}

func TestHistory(t *testing.T) {
	// Two regions of two sectors: a1 flushed, then b1, a2 and b2, in this order.
	make := func() *history {
		h := newHistory(2, 2)
		one := func(region int, sector int64, seq uint64) {
			h.end(region, h.begin(region, []effect{{first: sector, n: 1, seq: seq}}), false)
		}
		one(0, 0, 1)
		h.flush()()
		one(1, 0, 2)
		one(0, 1, 3)
		one(1, 0, 4)
		return h
	}
	for _, c := range []struct {
		a, b   []uint64
		killed bool
		ok     bool
	}{
		{[]uint64{1, 0}, []uint64{0, 0}, false, true},
		{[]uint64{1, 0}, []uint64{2, 0}, false, true},
		{[]uint64{1, 3}, []uint64{2, 0}, false, true},
		{[]uint64{1, 3}, []uint64{4, 0}, false, true},
		{[]uint64{0, 0}, []uint64{0, 0}, false, false}, // a1 was flushed
		{[]uint64{1, 3}, []uint64{0, 0}, false, false}, // b1 is older than a2
		{[]uint64{1, 0}, []uint64{4, 0}, false, false}, // a2 is older than b2
		{[]uint64{0, 3}, []uint64{2, 0}, false, false}, // no prefix
		{[]uint64{1, 3}, []uint64{2, 0}, true, false},
		{[]uint64{1, 3}, []uint64{4, 0}, true, true},
	} {
		if err := make().settle([][]uint64{c.a, c.b}, c.killed); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
