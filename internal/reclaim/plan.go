package reclaim

import (
	"fmt"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// State is what a plan is made of.
type State struct {
	// Segments are all that the index knows, in order, with what disks hold of
	// them as of passes that have just ended.
	Segments []datanode.SegmentUse
	Geometry stripe.Geometry
	// Free is what hosts can still reserve, Spare what can still be written, in
	// bytes of fragments. Below Low of Free, space is to be made.
	Free, Spare, Low int64
	// Maps is what the newest checkpoints of all disks take: a pass that follows
	// moves may store as much again before the old ones go.
	Maps int64
	// Urgent: somebody waits for space. Full: empty whatever an eighth of is dead.
	Urgent, Full bool
	// Poor, if set, tells which segments lie so that a node's loss is a loss, and could lie
	// better by now: they are emptied whatever lives in them.
	Poor func(id.Segment) bool
	// Keeper says whose index has a segment: only chunks of one keeper's are packed
	// together.
	Keeper Keeper
	// Skip are segments that cannot be emptied: a chunk does not open, or a disk
	// that holds slots of it cannot pass.
	Skip map[id.Segment]bool

	greedy bool // the largest dead share first
}

// Keeper says whose index has the segments of a layout. Nil: there is one index.
type Keeper func(id.Layout) id.Node

func (k Keeper) of(s id.Segment) id.Node {
	if k == nil {
		return 0
	}
	return k(s.Layout())
}

// Choice is one segment that is to be emptied.
type Choice struct {
	Segment id.Segment `json:"segment"`
	// StoredBytes is what the segment takes on spindles, LiveBytes the sealed
	// length of its live chunks, estimated from their number.
	StoredBytes int64   `json:"stored_bytes"`
	LiveBytes   int64   `json:"live_bytes"`
	Score       float64 `json:"score"`
	// Resume: it was condemned before, by a cycle that did not end.
	Resume bool `json:"resume,omitempty"`
	// Poor: it lay where a node's loss is a loss.
	Poor bool `json:"poor,omitempty"`

	slots int
}

// Plan says which segments to empty, the oldest first, so that chunks of like age
// come to lie together.
type Plan struct {
	Condemn []Choice `json:"condemn"`
	// MoveBytes is the sealed length of what is copied, GainBytes what that frees
	// on spindles in the end.
	MoveBytes int64 `json:"move_bytes"`
	GainBytes int64 `json:"gain_bytes"`
	// Why is one sentence for people.
	Why string `json:"why"`
}

// String returns the plan as text: a line for each segment and one for all.
func (p *Plan) String() string {
	var b strings.Builder
	for _, c := range p.Condemn {
		resume := ""
		if c.Resume {
			resume = ", condemned before"
		}
		fmt.Fprintf(&b, "segment %s: %d bytes stored, %d live, score %.3g%s\n", c.Segment, c.StoredBytes, c.LiveBytes, c.Score, resume)
	}
	fmt.Fprintf(&b, "%d segments, move %d bytes, gain %d bytes: %s\n", len(p.Condemn), p.MoveBytes, p.GainBytes, p.Why)
	return b.String()
}
