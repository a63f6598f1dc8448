package datanode

import (
	"context"
	"fmt"
	"time"

	"plinth/internal/id"
)

// SpindleState says whether a spindle serves.
type SpindleState string

const (
	SpindleOK     SpindleState = "ok"
	SpindleFailed SpindleState = "failed" // I/O error
	SpindleAbsent SpindleState = "absent" // not there, or another drive in its place
)

// SpindleStatus describes one spindle.
type SpindleStatus struct {
	Spindle        id.Spindle   `json:"spindle"`
	Path           string       `json:"path"`
	State          SpindleState `json:"state"`
	Reason         string       `json:"reason"` // why it is not ok
	CapacityBytes  int64        `json:"capacity_bytes"`
	AllocatedBytes int64        `json:"allocated_bytes"` // fragments with their headers
	Fragments      int64        `json:"fragments"`
	// Incarnation is another number, below 2^48, when the spindle may lack what it
	// had: a drive was replaced, or has gone back in time. 0: not known.
	Incarnation uint64 `json:"incarnation"`
}

// IndexStatus describes the index.
type IndexStatus struct {
	Incarnation  uint64 `json:"incarnation"`
	Complete     bool   `json:"complete"`
	Segments     int64  `json:"segments"`
	Fingerprints int64  `json:"fingerprints"` // places of chunks: equal chunks in two segments count twice
	// Over segments of chunks, condemned ones too: bytes of them before and after
	// compression and sealing.
	PlainBytes  int64 `json:"plain_bytes"`
	SealedBytes int64 `json:"sealed_bytes"`
	// ObjectBytes counts the data of segments of checkpoint objects.
	ObjectBytes int64 `json:"object_bytes"`
}

// Status describes a node.
type Status struct {
	PoolID        [16]byte          `json:"-"`
	BootID        [16]byte          `json:"-"`
	LayoutVersion uint64            `json:"layout_version"`
	Spindles      []SpindleStatus   `json:"spindles"`
	Log           LogUsage          `json:"log"`
	Streams       []LogStreamStatus `json:"streams"`
	Index         IndexStatus       `json:"index"`
	// ReservedBytes is the sum of the hosts' reservations, FreeBytes what a host
	// could still reserve. SpareBytes is what can be written beyond the
	// reservations: what is kept for reclaim and checkpoints included.
	ReservedBytes int64 `json:"reserved_bytes"`
	FreeBytes     int64 `json:"free_bytes"`
	SpareBytes    int64 `json:"spare_bytes"`
}

// NodeInfo describes one node of a pool.
type NodeInfo struct {
	Number    id.Node  `json:"number"`
	Name      string   `json:"name"`      // of its certificate; empty: it has none
	Addresses []string `json:"addresses"` // as the registry has them
	State     string   `json:"state"`     // joining, in or draining
	// Waits says for whom a change of the pool's nodes waits, of nodes that it is about.
	Waits string `json:"waits,omitempty"`
	// Leaving is what is left on a node that is being drained; nil: not known.
	Leaving *NodeLeaving `json:"leaving,omitempty"`
	// Registry: the pool's registry is this node's.
	Registry bool `json:"registry,omitempty"`
	// Answers says whether the node answers, Since when that began, as far as this host
	// knows, and Reason why it does not.
	Answers bool      `json:"answers"`
	Since   time.Time `json:"since"`
	Reason  string    `json:"reason,omitempty"`
	// The rest is as of its last answer. FirstSpindle is the pool's number of its first one.
	// Spindles counts those that came later too, whose numbers are LaterSpindles.
	FirstSpindle  id.Spindle    `json:"first_spindle"`
	LaterSpindles SpindleRanges `json:"later_spindles,omitempty"`
	Spindles      int           `json:"spindles"`
	SpindlesOK    int           `json:"spindles_ok"`
	// SpindlesComing are those of a node that is in which new segments do not use yet.
	SpindlesComing int      `json:"spindles_coming,omitempty"`
	CapacityBytes  int64    `json:"capacity_bytes"`
	AllocatedBytes int64    `json:"allocated_bytes"`
	Log            LogUsage `json:"log"`
	// LogsMissing are some of the disks whose logs should be here and are not, or not
	// yet, LogsMissingCount how many there are.
	LogsMissing      []id.Disk `json:"logs_missing,omitempty"`
	LogsMissingCount int       `json:"logs_missing_count"`
}

// Numbers are the pool's numbers of the node's spindles.
func (n *NodeInfo) Numbers() SpindleRanges {
	first := n.Spindles
	for _, r := range n.LaterSpindles {
		first -= r.Spindles
	}
	return append(SpindleRanges{{n.FirstSpindle, first}}, n.LaterSpindles...)
}

// NodeLeaving is what is left of the pool on a node that is being drained: segments with
// fragments there, and the bytes of these, the disks that hold them, of which Disks are
// some, and logs.
type NodeLeaving struct {
	Segments int64     `json:"segments"`
	Bytes    int64     `json:"bytes"`
	Disks    []id.Disk `json:"disks,omitempty"`
	Logs     int       `json:"logs"`
}

// Empty reports whether nothing is left.
func (l *NodeLeaving) Empty() bool { return l.Segments == 0 && l.Logs == 0 }

func (l NodeLeaving) String() string {
	text := fmt.Sprintf("%d segments are left with %d bytes there, and the logs of %d disks", l.Segments, l.Bytes, l.Logs)
	if len(l.Disks) > 0 {
		text += fmt.Sprintf("; they are needed by disks %v", l.Disks)
	}
	return text
}

// Several is a Node that is made of several.
type Several interface {
	// Nodes describes them, in the order of their numbers, as of the last Status.
	Nodes(ctx context.Context) ([]NodeInfo, error)
	// Returned is when a node that had not answered began to, the last time; zero: never.
	Returned() time.Time
	// Keeper is the node whose index has the segments of a layout, which there is: a
	// chunk moves only between segments of one.
	Keeper(l id.Layout) id.Node
	// DescribeLayout describes the segments of after's layout that follow it, as that node
	// has them: it alone must answer. What follows them in the reply is of other layouts.
	DescribeLayout(ctx context.Context, after id.Segment) (*DescribeSegmentsReply, error)
	// Answers tells whether the node of a spindle answers, as of the last Status.
	Answers(s id.Spindle) bool
}
