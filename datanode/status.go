package datanode

import "plinth/internal/id"

// SpindleState says whether a spindle serves.
type SpindleState string

const (
	SpindleOK     SpindleState = "ok"
	SpindleFailed SpindleState = "failed" // I/O error
	SpindleAbsent SpindleState = "absent" // not there, or another one in its place
)

// SpindleStatus describes one spindle.
type SpindleStatus struct {
	Spindle        id.Spindle
	Path           string
	State          SpindleState
	Reason         string // why it is not ok
	CapacityBytes  int64
	AllocatedBytes int64 // fragments with their headers
	Fragments      int64
}

// IndexStatus describes the index.
type IndexStatus struct {
	Incarnation  uint64
	Complete     bool
	Segments     int64
	Fingerprints int64
	// Over live segments of chunks: bytes of their chunks before and after
	// compression and sealing.
	PlainBytes, SealedBytes int64
	// ObjectBytes counts the data of segments of checkpoint objects.
	ObjectBytes int64
}

// Status describes a node.
type Status struct {
	PoolID        [16]byte
	BootID        [16]byte
	LayoutVersion uint64
	Spindles      []SpindleStatus
	Log           LogUsage
	Streams       []LogStreamStatus
	Index         IndexStatus
	// ReservedBytes is the sum of the hosts' reservations, FreeBytes what a host
	// could still reserve.
	ReservedBytes, FreeBytes int64
}
