package datanode

import "plinth/internal/id"

const (
	// BlockBytes is the unit in which fragments are checksummed and allocated.
	BlockBytes = 4096
	// FragmentBytesMax bounds a fragment's data (k = 1).
	FragmentBytesMax = id.SegmentBytesMax
	// WidthMax bounds k+m.
	WidthMax = 32
	// BirthsMax bounds the runs of slots of one segment: they must fit in the
	// fragment's header.
	BirthsMax = 64
)

// Kind says what a segment holds.
type Kind uint8

const (
	// KindChunks is a pack of sealed chunks with a slot table.
	KindChunks Kind = 1
	// KindObject is a piece of a checkpoint object; it has one slot, 0.
	KindObject Kind = 2
)

// Birth is a run of consecutive slots born held by a disk. The runs of a
// segment follow each other from slot 0 on.
type Birth struct {
	Disk  id.Disk
	Epoch id.Epoch
	Slots uint16
}

// SegmentHeader is what every fragment of a segment repeats in its header.
type SegmentHeader struct {
	Segment id.Segment
	Kind    Kind
	K, M    uint8
	// DataBytes is the length of the segment's data without parity or rounding.
	DataBytes uint32
	Births    []Birth
}

// Fragment is one piece of a segment, for one spindle. Index counts the data
// fragments 0 to K-1, then parity.
type Fragment struct {
	Spindle id.Spindle
	Index   uint8
	Data    []byte // a multiple of BlockBytes
}

// WriteFragmentsRequest stores fragments of one segment, each on another
// spindle.
type WriteFragmentsRequest struct {
	Header        SegmentHeader
	LayoutVersion uint64
	Replace       bool
	Fragments     []Fragment
}

// WriteFragmentsReply has an error or nil for each fragment of the request.
type WriteFragmentsReply struct{ Errors []*Error }

// DiscardFragmentsRequest names a segment that nobody refers to.
type DiscardFragmentsRequest struct{ Segment id.Segment }

// FragmentRange names bytes of one fragment.
type FragmentRange struct {
	Spindle id.Spindle
	Segment id.Segment
	Index   uint8
	Offset  uint32
	Length  uint32
}

// ReadFragmentsRequest reads ranges. With Verify, offsets and lengths are
// multiples of BlockBytes, Length 0 means to the end, and every block's checksum
// is tested. With Discard (a scrub) no data is returned.
type ReadFragmentsRequest struct {
	Ranges  []FragmentRange
	Verify  bool
	Discard bool
	// Into is memory that the answers may lie in, one behind the other, if it has
	// room for all of them and Verify is not set. It is the caller's, who does not
	// use it during the call and then owns what the answers have of it. A node on
	// another machine never sees it.
	Into []byte
}

// FragmentData answers one range.
type FragmentData struct {
	Err  *Error
	Data []byte
	// Bad lists, after Verify, the blocks (offset in the fragment / BlockBytes)
	// whose checksum fails; their bytes in Data are as read.
	Bad []uint32
	// BadHeader: the fragment's header fails its checksum, so that no block
	// could be tested; the data is as read.
	BadHeader bool
	// Bytes is the length of the whole fragment's data, and Header its segment
	// header: filled after Verify unless BadHeader.
	Bytes  uint32
	Header SegmentHeader
}

// ReadFragmentsReply answers the ranges in their order.
type ReadFragmentsReply struct{ Results []FragmentData }

// ListFragmentsRequest lists a spindle's fragments after (Segment, Index);
// Max 0 means 4096.
type ListFragmentsRequest struct {
	Spindle id.Spindle
	Started bool // false: from the beginning, Segment and Index are ignored
	Segment id.Segment
	Index   uint8
	Max     int
}

// FragmentInfo is a row of a spindle's table.
type FragmentInfo struct {
	Segment        id.Segment
	Index          uint8
	Bytes          uint32 // data
	AllocatedBytes uint32 // data and header, as taken from the spindle
}

// ListFragmentsReply is one page; More says that there are further rows.
type ListFragmentsReply struct {
	Fragments []FragmentInfo
	More      bool
}

// ReplaceSpindleRequest names a spindle on whose directory a new drive is mounted.
type ReplaceSpindleRequest struct{ Spindle id.Spindle }

// AddSpindleRequest has a node get one more spindle. Spindle is how many it has, and so the
// number of the new one there; of several nodes Node is the one that is meant.
type AddSpindleRequest struct {
	Spindle id.Spindle
	Node    id.Node
}

// ReserveRequest sets a host's reservation.
type ReserveRequest struct {
	Host  string // the host session's name
	Bytes int64  // of fragments, parity and headers included
	Force bool
}
