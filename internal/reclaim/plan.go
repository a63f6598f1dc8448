package reclaim

import (
	"fmt"
	"strings"

	"plinth/internal/id"
)

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
}

// Plan says which segments to empty, in that order.
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
