package disk

import (
	"math/rand/v2"
	"testing"

	"plinth/internal/chunk"
)

// Extents against content: what is said to be zeros is, what is not zeros is
// said to be data, and after destaging the two are the same.
func TestExtentsAgainstContent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := newHouse(t, nil)
	p := h.session()
	d, c := h.open(p, 1), newContent(seed)
	h.walk(d, c, true)
	for i := range 8 {
		h.fill(d, c, 25)
		h.walk(d, c, false)
		d.Rotate() // several layers
		h.fill(d, c, 25)
		if i == 5 { // most of the disk, as one extent
			n := int64(houseDiskBytes * 3 / 4)
			clear(c.data[:n])
			h.ok(d.Trim(t.Context(), 0, n, false))
		}
		h.walk(d, c, false)
		h.ok(h.round(d))
		h.walk(d, c, true)
	}
	h.ok(d.Close())
	h.walk(h.open(p, 1), c, false)
	if err := d.Extents(t.Context(), 0, 1, nil); err == nil {
		t.Error("a closed disk has extents")
	}
}

// walk asks for random ranges and compares; exact says that data that is all
// zeros is not excused.
func (h *house) walk(d *Disk, c *content, exact bool) {
	h.Helper()
	size := int64(d.ChunkSize())
	for range 20 {
		off := c.rng.Int64N(houseDiskBytes)
		end := off + 1 + c.rng.Int64N(houseDiskBytes-off)
		for at := off; at < end; {
			from := at
			h.ok(d.Extents(h.Context(), at, end-at, func(n int64, data bool) bool {
				if n <= 0 || n > end-at {
					h.Fatalf("an extent of %d bytes at %d of [%d, %d)", n, at, off, end)
				}
				for at, n := at, n; n > 0; {
					k := min(n, size-at%size)
					zero := chunk.IsZero(c.data[at : at+k])
					if !data && !zero || exact && data && chunk.IsZero(c.data[at/size*size:][:size]) {
						h.Fatalf("%d bytes at %d: data %v, zeros %v", k, at, data, zero)
					}
					at, n = at+k, n-k
				}
				at += n
				return c.rng.IntN(50) > 0
			}))
			if at == from {
				h.Fatalf("nothing was said of %d", at)
			}
		}
	}
}

func TestOverlay(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	random := func() (rs runs) {
		for at := rng.Int64N(8); at < 60; at += rng.Int64N(9) {
			end := at + 1 + rng.Int64N(9)
			rs = append(rs, run{extent{at, end}, rng.IntN(2) == 0})
			at = end
		}
		return rs
	}
	find := func(rs runs, x int64) (data, ok bool) {
		for _, r := range rs {
			if r.first <= x && x < r.end {
				return r.data, true
			}
		}
		return false, false
	}
	for range 2000 {
		under, over := random(), random()
		got := under.overlay(over)
		for i := range got {
			if got[i].first >= got[i].end || i > 0 && got[i-1].end > got[i].first {
				t.Fatalf("%v over %v: %v", over, under, got)
			}
		}
		for x := range int64(80) {
			want, ok := find(over, x)
			if !ok {
				want, ok = find(under, x)
			}
			if data, has := find(got, x); has != ok || data != want {
				t.Fatalf("%v over %v: %v at %d", over, under, got, x)
			}
		}
	}
}
