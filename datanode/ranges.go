package datanode

import (
	"fmt"
	"strings"

	"plinth/internal/id"
)

// SpindleRange is spindles with numbers one after the other.
type SpindleRange struct {
	First    id.Spindle `json:"first"`
	Spindles int        `json:"spindles"` // 1 or more
}

// SpindleRanges are the pool's numbers of a node's spindles, in the order of the node's own
// numbers, which begin with 0.
type SpindleRanges []SpindleRange

// Count returns how many spindles there are.
func (r SpindleRanges) Count() (n int) {
	for _, x := range r {
		n += x.Spindles
	}
	return n
}

// All returns the pool's numbers, by the node's.
func (r SpindleRanges) All() (all []id.Spindle) {
	for _, x := range r {
		for i := range x.Spindles {
			all = append(all, x.First+id.Spindle(i))
		}
	}
	return all
}

// Local returns the node's number of a spindle, false if it is not the node's.
func (r SpindleRanges) Local(s id.Spindle) (id.Spindle, bool) {
	before := 0
	for _, x := range r {
		if s >= x.First && int(s) < int(x.First)+x.Spindles {
			return s - x.First + id.Spindle(before), true
		}
		before += x.Spindles
	}
	return 0, false
}

// Has reports whether a spindle is the node's.
func (r SpindleRanges) Has(s id.Spindle) bool {
	_, ok := r.Local(s)
	return ok
}

// Global returns the pool's number of a spindle of the node, false if the pool has not
// given it one.
func (r SpindleRanges) Global(local id.Spindle) (id.Spindle, bool) {
	for _, x := range r {
		if int(local) < x.Spindles {
			return x.First + local, true
		}
		local -= id.Spindle(x.Spindles)
	}
	return 0, false
}

// String is for an operator: "0 to 3, 12".
func (r SpindleRanges) String() string {
	var all []string
	for _, x := range r {
		if x.Spindles == 1 {
			all = append(all, fmt.Sprint(x.First))
		} else {
			all = append(all, fmt.Sprintf("%d to %d", x.First, int(x.First)+x.Spindles-1))
		}
	}
	return strings.Join(all, ", ")
}
