package stripe

import (
	"fmt"

	"github.com/klauspost/reedsolomon"

	"plinth/datanode"
	"plinth/internal/id"
)

// Segment is a packed segment, ready to be written: K+M fragments of
// FragmentBytes each, parity computed. Header.Segment is zero until Store.Write
// sets it; it may change until Write returns nil.
type Segment struct {
	Header        datanode.SegmentHeader
	FragmentBytes uint32
	Slots         []datanode.SlotEntry // in order, slot i at i
	Fragments     [][]byte             // data, then parity
}

// Ref says where a slot is. It panics for a slot the segment does not have.
func (s *Segment) Ref(slot id.Slot) id.Ref {
	return id.Ref{Segment: s.Header.Segment, Slot: slot, Location: s.Slots[slot].Location}
}

// Entry returns what the index is told about the segment. It shares the
// segment's slices.
func (s *Segment) Entry() datanode.SegmentEntry {
	return datanode.SegmentEntry{Header: s.Header, FragmentBytes: s.FragmentBytes, Slots: s.Slots}
}

// newSegment returns a segment with fragments of zeros.
func newSegment(g Geometry, kind datanode.Kind, dataBytes, fragmentBytes int, births []datanode.Birth) *Segment {
	return &Segment{
		Header: datanode.SegmentHeader{
			Kind: kind, K: uint8(g.K), M: uint8(g.M),
			DataBytes: uint32(dataBytes), Births: births,
		},
		FragmentBytes: uint32(fragmentBytes),
		Fragments:     reedsolomon.AllocAligned(g.Width(), fragmentBytes),
	}
}

// encode computes parity from the data fragments.
func (s *Segment) encode(g Geometry) error {
	if err := g.coder().Encode(s.Fragments); err != nil {
		return fmt.Errorf("compute parity: %w", err)
	}
	return nil
}

func roundUp(n, unit int) int { return (n + unit - 1) / unit * unit }
