package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// history is operations of one block: reads, and writes that have ended or not.
type history struct {
	w     *world
	truth truth
	all   []access
	write []bool
}

func newHistory() *history { return &history{w: &world{ops: make(map[uint32]*op)}} }

// does adds an operation; end 0: a write of which nobody knows whether it was done.
func (h *history) does(write bool, tag uint32, begun, end uint64) {
	if write {
		h.w.ops[tag] = &op{tag: tag, begun: begun, end: end}
	}
	if end != 0 {
		h.truth.reads[0] = append(h.truth.reads[0], access{tag, begun, end})
	}
	h.all, h.write = append(h.all, access{tag, begun, end}), append(h.write, write)
}

// ordered looks for an order by trying all.
func (h *history) ordered(done uint, value uint32) bool {
	left := false
	for i, a := range h.all {
		if done>>i&1 != 0 {
			continue
		}
		left = left || a.end != 0
		first := true // nothing that is left has ended before it began
		for j, b := range h.all {
			if done>>j&1 == 0 && b.end != 0 && b.end < a.begun {
				first = false
			}
		}
		switch {
		case !first:
		case h.write[i]:
			if h.ordered(done|1<<i, a.tag) {
				return true
			}
		case a.tag == value:
			if h.ordered(done|1<<i, value) {
				return true
			}
		}
	}
	return !left
}

// TestRegister compares the check by zones with a search through all orders.
func TestRegister(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	registers := 0
	const rounds = 20_000
	for n := range rounds {
		h := newHistory()
		ops := 2 + rng.IntN(6)
		stamps := rng.Perm(2 * ops)
		var tags []uint32
		for i := range ops {
			begun, end := uint64(stamps[2*i]+1), uint64(stamps[2*i+1]+1)
			if begun > end {
				begun, end = end, begun
			}
			if rng.IntN(3) > 0 && end > begun+5 { // short ones have fewer orders
				end = begun + 1 + uint64(rng.IntN(4))
				for slices.ContainsFunc(h.all, func(a access) bool { return a.begun == end || a.end == end }) || slices.Contains(stamps[2*i+2:], int(end)-1) {
					end++
				}
			}
			switch rng.IntN(5) {
			case 0, 1:
				tags = append(tags, uint32(i+1))
				h.does(true, uint32(i+1), begun, end)
			case 2:
				tags = append(tags, uint32(i+1))
				h.does(true, uint32(i+1), begun, 0)
			default:
				tag := uint32(0)
				if len(tags) > 0 && rng.IntN(4) > 0 {
					tag = tags[rng.IntN(len(tags))]
				}
				h.does(false, tag, begun, end)
			}
		}
		want := h.ordered(0, 0)
		if want {
			registers++
		}
		if _, got := h.truth.register(h.w, 0); got != want {
			t.Fatalf("history %d, %+v, writes %v: a register: %v, want %v", n, h.all, h.write, got, want)
		}
	}
	if registers < rounds/10 || registers > rounds*9/10 {
		t.Errorf("%d of %d histories are a register's", registers, rounds)
	}
}
