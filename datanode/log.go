package datanode

import "plinth/internal/id"

// Stream is one of the two sequences of a disk's log.
type Stream uint8

const (
	// Ops holds acknowledged operations: write, part, zero, trim, marks.
	Ops Stream = 0
	// Results holds what destaging did.
	Results Stream = 1
	// Streams is their number.
	Streams = 2
)

const (
	// RecordBytesMax bounds the data of one record: 64 sealed chunks of
	// 64 KiB and their headers would not fit, so a large write is cut.
	RecordBytesMax = 1 << 20
	// AppendBytesMax bounds the data of one Append, and RecordsMax its records.
	AppendBytesMax = 8 << 20
	RecordsMax     = 4096
)

// Record is one entry of a stream. The node stores it whole and interprets
// nothing but Pos.
type Record struct {
	Pos  id.Pos
	Type uint8    // the host's record type
	MAC  [16]byte // the host's chain over disk, stream, epoch, position and data
	Data []byte   // at most RecordBytesMax bytes
	// Epoch under which it was appended: set by ReadLog, ignored by Append.
	Epoch id.Epoch
}

// Class says what reserve of the log an append may use.
type Class uint8

const (
	// ClassData may fill the log up to 95 %.
	ClassData Class = 0
	// ClassMark is for results and marks: the last 5 % are theirs. Of these a part
	// is for results alone: however full of operations a log is, it takes the
	// result that gives them up.
	ClassMark Class = 1
)

// FenceRequest asks for the disk under a new epoch.
type FenceRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
	// Floor is the lowest end each stream may have: where a log was lost,
	// positions that were used before it are not used again.
	Floor [Streams]id.Pos
}

// FenceReply says what the streams hold: positions First to End-1; End is the
// next to append. An empty stream has First == End.
type FenceReply struct {
	First, End [Streams]id.Pos
	// Previous is the epoch before this one, 0 if the log is new.
	Previous id.Epoch
}

// AppendRequest appends Records, whose positions are consecutive and begin at
// the stream's end.
type AppendRequest struct {
	Disk    id.Disk
	Epoch   id.Epoch
	Stream  Stream
	Class   Class
	Records []Record
}

// AppendReply tells how full the log is, for backpressure.
type AppendReply struct{ Log LogUsage }

// LogUsage is the state of the physical log that all disks of a node share.
type LogUsage struct {
	CapacityBytes int64 `json:"capacity_bytes"`
	// UsedBytes counts whole log files that hold anything still needed.
	UsedBytes int64 `json:"used_bytes"`
	// WrittenBytes counts records with their headers since the node was opened.
	WrittenBytes int64 `json:"written_bytes"`
}

// SyncRequest makes a disk's appends stable.
type SyncRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
}

// ReadLogRequest reads a stream from a position on. ErrNotFound if From is
// trimmed.
type ReadLogRequest struct {
	Disk     id.Disk
	Epoch    id.Epoch
	Stream   Stream
	From     id.Pos
	BytesMax int // 0 means AppendBytesMax
}

// ReadLogReply holds consecutive records; none at the end of the stream.
type ReadLogReply struct{ Records []Record }

// TrimLogRequest gives up records through a position.
type TrimLogRequest struct {
	Disk    id.Disk
	Epoch   id.Epoch
	Stream  Stream
	Through id.Pos
}

// DropLogRequest forgets a disk's log.
type DropLogRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
}

// JoinLogRequest asks what a disk's streams hold, under an epoch that the caller has.
type JoinLogRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
}

// JoinLogReply says what the streams hold, as FenceReply does. Previous is the
// request's epoch if it was the newest already.
type JoinLogReply struct {
	First, End [Streams]id.Pos
	Previous   id.Epoch
	Turn       uint64
}

// CopyLogRequest appends records of other nodes at a stream's end.
type CopyLogRequest struct {
	Disk    id.Disk
	Epoch   id.Epoch
	Stream  Stream
	Class   Class
	Records []Record
}

// ResetLogRequest empties streams. Next is the position of the next record, 0 for a
// stream that is left as it is.
type ResetLogRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
	Turn  uint64
	Next  [Streams]id.Pos
}

// LogStreamStatus describes one stream for Status.
type LogStreamStatus struct {
	Disk   id.Disk  `json:"disk"`
	Stream Stream   `json:"stream"`
	Epoch  id.Epoch `json:"epoch"`
	First  id.Pos   `json:"first"`
	End    id.Pos   `json:"end"`
	Bytes  int64    `json:"bytes"`
	// Pins is true where the stream has a record in the oldest log file in use:
	// destaging or checkpointing this disk frees log space soonest.
	Pins bool `json:"pins"`
}
