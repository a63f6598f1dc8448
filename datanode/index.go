package datanode

import "plinth/internal/id"

// FingerprintsMax bounds one Lookup, SegmentsMax one Publish or SetLists.
const (
	FingerprintsMax = 8192
	SegmentsMax     = 256
)

// LookupRequest looks fingerprints up for a disk.
type LookupRequest struct {
	Disk         id.Disk
	Epoch        id.Epoch
	Seq          id.Seq // of the registrations
	Fingerprints []id.Fingerprint
}

// Hit answers one fingerprint.
type Hit struct {
	Found bool
	Ref   id.Ref
}

// LookupReply answers the fingerprints in their order.
type LookupReply struct{ Hits []Hit }

// SlotEntry describes one slot of a segment.
type SlotEntry struct {
	Slot        id.Slot
	Fingerprint id.Fingerprint
	Location    id.Location
	PlainBytes  uint32 // the chunk's size before compression
}

// SegmentEntry makes a segment known.
type SegmentEntry struct {
	Header        SegmentHeader
	FragmentBytes uint32 // of each fragment's data
	Slots         []SlotEntry
}

// PublishRequest makes segments known.
type PublishRequest struct{ Segments []SegmentEntry }

// ListSegmentsRequest walks a disk's segments above After; Max 0 means 4096.
type ListSegmentsRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
	After id.Segment
	Max   int
}

// ListSegmentsReply is one page, in order.
type ListSegmentsReply struct {
	Segments []id.Segment
	More     bool
}

// List is a disk's reference list of one segment.
type List struct {
	Segment id.Segment
	// Bits has bit s&7 of byte s>>3 set for each live slot s; empty for none.
	Bits []byte
	// Slots describes live slots, while the index is incomplete: the index
	// takes in what it lacks.
	Slots []SlotEntry
}

// SetListsRequest replaces a disk's lists. Seq is above every earlier Seq of
// the same epoch.
type SetListsRequest struct {
	Disk  id.Disk
	Epoch id.Epoch
	Seq   id.Seq
	Lists []List
}

// SetListsReply names the lists that were left because they are newer.
type SetListsReply struct{ Refused []id.Segment }

// CompleteIndexRequest names the incarnation (Status) that is complete.
type CompleteIndexRequest struct{ Incarnation uint64 }

// State of a segment in the index.
type State uint8

const (
	StateLive      State = 1
	StateCondemned State = 2
	StateForwarded State = 3
	StateDeleting  State = 4
)

// DescribeSegmentsRequest describes named segments, or walks all above After.
type DescribeSegmentsRequest struct {
	Segments []id.Segment // empty: walk
	After    id.Segment
	Max      int  // of a walk; 0 means 256
	Slots    bool // include slot tables and lists
}

// SegmentDescription is what the index knows about a segment.
type SegmentDescription struct {
	Segment       id.Segment
	Known         bool
	State         State
	Kind          Kind
	FragmentBytes uint32
	K, M          uint8
	SlotCount     int
	SealedBytes   int64 // of all slots
	PlainBytes    int64
	Slots         []SlotEntry
	// Dangling lists the slots that no row of the index leads to: the index is
	// damaged. Publishing or stating the slots again mends it.
	Dangling []id.Slot
	Births   []Birth
	Lists    []DiskList
}

// DiskList is one disk's reference list, births not yet cleared included.
type DiskList struct {
	Disk  id.Disk
	Epoch id.Epoch
	Seq   id.Seq
	Bits  []byte
}

// DescribeSegmentsReply is one page.
type DescribeSegmentsReply struct {
	Segments []SegmentDescription
	More     bool
}

// ReclaimRequest deletes up to Max segments; 0 means 256.
type ReclaimRequest struct{ Max int }

// ReclaimReply says what was deleted.
type ReclaimReply struct {
	Deleted []id.Segment
	More    bool
}
