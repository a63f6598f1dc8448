package standalone

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
)

// damage is one unit that is not as it was written: a block of a fragment, its header
// (block -1), or all of it, which is lost (block -2).
type damage struct {
	segment uint64
	index   int
	block   int
}

// injury is what happens to a unit.
type injury int

const (
	flipped     injury = iota // one bit is another
	cleared                   // reads as zeros
	torn                      // one sector is not as written
	garbled                   // reads as random bytes
	misdirected               // has what was meant for another fragment: its header, or a block
	lost                      // the slab's table has the fragment no more
	injuries
)

// injurer damages what fragments have allocated, headers and parity included, each time
// another block or header, and never more than may be in a stripe's row: two are what
// 8+2 can mend.
type injurer struct {
	testing.TB
	rng      *rand.Rand
	extents  []extent
	total    int64
	rowMost  int
	done     map[damage]bool
	rows     map[[2]uint64]int // bad blocks by segment and block, headers aside
	worst    map[uint64]int    // per segment: of its rows
	headers  map[uint64]int    // per segment
	blocks   map[damage]int    // per fragment: bad blocks
	byInjury [injuries]int
}

func newInjurer(t testing.TB, rng *rand.Rand, extents []extent) *injurer {
	return &injurer{
		TB: t, rng: rng, extents: extents, total: allocated(extents), rowMost: 2, done: map[damage]bool{},
		rows: map[[2]uint64]int{}, worst: map[uint64]int{}, headers: map[uint64]int{}, blocks: map[damage]int{},
	}
}

// flipMany flips that many bits.
func flipMany(t testing.TB, rng *rand.Rand, extents []extent, count int) map[damage]bool {
	x := newInjurer(t, rng, extents)
	x.injure(count, flipped)
	return x.done
}

// injure does one of some injuries to so many more units.
func (x *injurer) injure(count int, kinds ...injury) {
	x.Helper()
	count += len(x.done)
	for tries := 0; len(x.done) < count; tries++ {
		if tries > 200*count {
			x.Fatalf("only %d damages fit", len(x.done))
		}
		at := x.rng.Int64N(x.total)
		e := x.extentAt(&at)
		if e.parts != 1 {
			continue // its place in the fragment is not known here
		}
		d := damage{e.segment, e.index, int((at - e.header()) / block)}
		if at < e.header() {
			d.block = -1
		}
		kind := kinds[x.rng.IntN(len(kinds))]
		if kind == lost {
			d.block = -2
		}
		if x.fits(d) && x.change(e, d, kind) {
			x.note(d)
			x.byInjury[kind]++
		}
	}
}

// extentAt returns the extent which has a byte of all, and makes at the byte's place in
// it.
func (x *injurer) extentAt(at *int64) *extent {
	for i := range x.extents {
		if e := &x.extents[i]; *at < e.bytes {
			return e
		}
		*at -= x.extents[i].bytes
	}
	panic("beyond all extents")
}

// fits reports whether a unit is whole, and may be damaged.
func (x *injurer) fits(d damage) bool {
	whole := damage{d.segment, d.index, -1}
	if x.done[d] || x.done[whole] || x.done[damage{d.segment, d.index, -2}] {
		return false
	}
	if d.block < 0 {
		return x.blocks[whole] == 0 && x.headers[d.segment]+x.worst[d.segment] < x.rowMost
	}
	return x.headers[d.segment]+x.rows[[2]uint64{d.segment, uint64(d.block)}] < x.rowMost
}

func (x *injurer) note(d damage) {
	x.done[d] = true
	if d.block < 0 {
		x.headers[d.segment]++
		return
	}
	row := [2]uint64{d.segment, uint64(d.block)}
	x.rows[row]++
	x.blocks[damage{d.segment, d.index, -1}]++
	x.worst[d.segment] = max(x.worst[d.segment], x.rows[row])
}

// change alters a unit on its drive, and reports whether its bytes are others now.
func (x *injurer) change(e *extent, d damage, kind injury) bool {
	x.Helper()
	off, n := e.offset, e.header()
	switch d.block {
	case -1:
	case -2:
		off, n = e.slot, 64
	default:
		off, n = e.offset+e.header()+int64(d.block)*block, block
	}
	old := x.read(e.path, off, n)
	now := bytes.Clone(old)
	switch kind {
	case flipped:
		now[x.rng.IntN(len(now))] ^= 1 << x.rng.IntN(8)
	case cleared, lost:
		clear(now)
	case torn:
		sector := now[x.rng.IntN(len(now)/512)*512:][:512]
		copy(sector, image(x.rng.Uint64(), len(sector)))
	case garbled:
		copy(now, image(x.rng.Uint64(), len(now)))
	case misdirected:
		other := &x.extents[x.rng.IntN(len(x.extents))]
		if other.parts != 1 || other.header() != e.header() || other.bytes != e.bytes {
			return false
		}
		now = x.read(other.path, other.offset+off-e.offset, n)
	}
	if bytes.Equal(old, now) {
		return false
	}
	x.write(e.path, off, now)
	return true
}

func (x *injurer) read(path string, off, n int64) []byte {
	x.Helper()
	f, err := os.Open(path)
	if err != nil {
		x.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		x.Fatal(err)
	}
	return p
}

func (x *injurer) write(path string, off int64, p []byte) {
	x.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		x.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		x.Fatal(err)
	}
}
