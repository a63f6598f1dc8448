package blockmap

import (
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

// view is the generations that a map shows: intervals in rising order with gaps
// between them. The last one has no end (genEnd), so that new generations show.
type view []interval

const genEnd = id.Gen(math.MaxUint64)

// wholeView shows everything.
func wholeView() view { return view{{0, genEnd}} }

func (v view) validate() error {
	if len(v) == 0 || len(v) > intervalsMax || v[len(v)-1].End != genEnd {
		return fmt.Errorf("%w: a view of %d intervals or with an end", ErrCorrupt, len(v))
	}
	for i, in := range v {
		if in.From >= in.End || i > 0 && v[i-1].End >= in.From {
			return fmt.Errorf("%w: interval %d of a view is from %d to %d", ErrCorrupt, i, in.From, in.End)
		}
	}
	return nil
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
