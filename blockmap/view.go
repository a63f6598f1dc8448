package blockmap

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"plinth/internal/id"
)

// intervalsMax bounds a view. The owner collects long before: more than 8 make
// look-ups slow.
const intervalsMax = 1 << 10

// interval is the generations from From to End-1.
type interval struct{ From, End id.Gen }

// view is the generations that a map or a snapshot shows: intervals in rising
// order with gaps between them. A map's last one has no end (genEnd), so that
// new generations show; a snapshot's ends. A value is immutable.
type view []interval

const intervalBytes = 16 // of one, encoded

const genEnd = id.Gen(math.MaxUint64)

// wholeView shows everything.
func wholeView() view { return view{{0, genEnd}} }

func (v view) validate() error {
	if len(v) == 0 || len(v) > intervalsMax {
		return fmt.Errorf("%w: a view of %d intervals", ErrCorrupt, len(v))
	}
	for i, in := range v {
		if in.From >= in.End || i > 0 && v[i-1].End >= in.From {
			return fmt.Errorf("%w: interval %d of a view is from %d to %d", ErrCorrupt, i, in.From, in.End)
		}
	}
	return nil
}

// ends reports whether the view is a snapshot's.
func (v view) ends() bool { return v[len(v)-1].End != genEnd }

// last returns the newest generation that the view can show.
func (v view) last() id.Gen { return v[len(v)-1].End - 1 }

// cut returns the view up to a generation of its last interval, without it.
func (v view) cut(end id.Gen) view {
	out := slices.Clone(v)
	out[len(out)-1].End = end
	return out
}

// resume returns the view with all generations from gen, which is above its
// last one.
func (v view) resume(gen id.Gen) view {
	if v.last()+1 == gen {
		return v.cut(genEnd)
	}
	return append(slices.Clone(v), interval{gen, genEnd})
}

// gaps returns the ranges of generations that the view does not show, below
// its last one.
func (v view) gaps() (out []interval) {
	from := id.Gen(0)
	for _, in := range v {
		if from < in.From {
			out = append(out, interval{from, in.From})
		}
		from = in.End
	}
	return out
}

// append appends the view's encoding to b.
func (v view) append(b []byte) []byte {
	for _, in := range v {
		b = binary.LittleEndian.AppendUint64(b, uint64(in.From))
		b = binary.LittleEndian.AppendUint64(b, uint64(in.End))
	}
	return b
}

// parseView takes n intervals from the front of b and returns the rest.
func parseView(b []byte, n int) (view, []byte, error) {
	if n > intervalsMax || len(b) < intervalBytes*n {
		return nil, nil, fmt.Errorf("%w: %d intervals in %d bytes", ErrCorrupt, n, len(b))
	}
	v := make(view, n)
	for i := range v {
		v[i].From = id.Gen(binary.LittleEndian.Uint64(b))
		v[i].End = id.Gen(binary.LittleEndian.Uint64(b[8:]))
		b = b[intervalBytes:]
	}
	return v, b, v.validate()
}

// whole reports whether the view shows everything.
func (v view) whole() bool { return v[0].From == 0 && v[0].End == genEnd }

// contains reports whether the view shows gen.
func (v view) contains(gen id.Gen) bool {
	found, ok := v.floor(gen)
	return ok && found == gen
}

// floor returns the newest generation at or below gen that the view shows, and
// false if there is none.
func (v view) floor(gen id.Gen) (id.Gen, bool) {
	for _, in := range slices.Backward(v) {
		if gen >= in.From {
			return min(gen, in.End-1), true
		}
	}
	return 0, false
}
