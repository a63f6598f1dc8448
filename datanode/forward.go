package datanode

import "plinth/internal/id"

const (
	// TransitMax bounds the segments that are condemned or forwarded at a time,
	// TransitSlotsMax their slots: a node keeps their moves in memory.
	TransitMax      = 256
	TransitSlotsMax = 1 << 20
	// MovesMax bounds the moves of one Forward.
	MovesMax = 1 << 16
)

// UsageRequest walks all segments above After; Max 0 means 8192.
type UsageRequest struct {
	After id.Segment
	Max   int
}

// SegmentUse says how much of a segment is held.
type SegmentUse struct {
	Segment     id.Segment
	State       State
	Kind        Kind
	StoredBytes int64 // of its fragments, with parity and headers
	SealedBytes int64 // of its data: all its sealed chunks, or an object's piece
	Slots       int
	LiveSlots   int // held by any disk
	Disks       []DiskUse
}

// DiskUse says how many slots of a segment a disk holds, by list or birth, and
// how many nobody else holds.
type DiskUse struct {
	Disk             id.Disk
	Slots, Exclusive int
}

// UsageReply is one page, in order, of one instant.
type UsageReply struct {
	Segments []SegmentUse
	More     bool
}

// CondemnRequest names segments to be emptied. Disk and Epoch are the caller's.
type CondemnRequest struct {
	Disk     id.Disk
	Epoch    id.Epoch
	Segments []id.Segment
}

// CondemnReply names those of the request that are condemned now, by this call
// or before.
type CondemnReply struct{ Condemned []id.Segment }

// Move says that the chunk in a slot of From is in slot To of another segment
// too, at Location.
type Move struct {
	From     id.Segment
	Slot     id.Slot
	To       id.Slot
	Location id.Location
}

// ForwardRequest records moves into Segment. Disk and Epoch are the caller's.
type ForwardRequest struct {
	Disk    id.Disk
	Epoch   id.Epoch
	Segment id.Segment
	Moves   []Move
}

// ForwardsRequest walks the segments above After that have moves; Max 0 means 64.
type ForwardsRequest struct {
	After id.Segment
	Max   int
}

// SlotMove says where the chunk of a slot is from now on.
type SlotMove struct {
	Slot id.Slot
	To   id.Ref
}

// Forward holds the moves out of one segment, in the order of its slots.
type Forward struct {
	From  id.Segment
	Moves []SlotMove
}

// ForwardsReply is one page, in order.
type ForwardsReply struct {
	Forwards []Forward
	More     bool
}
