package datanode

import "plinth/internal/id"

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
