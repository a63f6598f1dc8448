package stripe

import (
	"fmt"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

// Segment is a packed segment, ready to be written: K+M fragments of
// FragmentBytes each, parity computed. Header.Segment is zero until Store.Write
// sets it; it may change until Write returns nil.
type Segment struct {
	Header        datanode.SegmentHeader
	FragmentBytes uint32
	Slots         []datanode.SlotEntry // in order, slot i at i
	Fragments     [][]byte             // data, then parity; parts of memory, until Free
	memory        []byte
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

// newSegment returns a segment whose data fragments are yet to be filled: they
// have old bytes.
func newSegment(g Geometry, kind datanode.Kind, dataBytes, fragmentBytes int, births []datanode.Birth) *Segment {
	s := &Segment{
		Header: datanode.SegmentHeader{
			Kind: kind, K: uint8(g.K), M: uint8(g.M),
			DataBytes: uint32(dataBytes), Births: births,
		},
		FragmentBytes: uint32(fragmentBytes),
		Fragments:     make([][]byte, g.Width()),
		memory:        fragmentMemory(g, g.Width()*fragmentBytes),
	}
	for i := range s.Fragments {
		s.Fragments[i] = s.memory[i*fragmentBytes : (i+1)*fragmentBytes : (i+1)*fragmentBytes]
	}
	return s
}

// Free gives up the fragments; their memory goes to another segment. Nobody uses
// them any more.
func (s *Segment) Free() {
	if m := s.memory; cap(m) >= pooledBytesMin {
		memories.Put(&m)
	}
	s.Fragments, s.memory = nil, nil
}

// pooledBytesMin is the least that is kept for another segment: what is short
// comes with short rounds, which are few.
const pooledBytesMin = id.SegmentBytesMax / 2

// memories holds *[]byte of fragments. A full segment's are made of some ten
// thousand pages, which the kernel would otherwise clear for each.
var memories sync.Pool

// fragmentMemory returns n bytes for fragments, of any content, aligned for direct writes.
func fragmentMemory(g Geometry, n int) []byte {
	if n < pooledBytesMin {
		return vfsx.AlignedBytes(n)
	}
	if b, _ := memories.Get().(*[]byte); b != nil && cap(*b) >= n {
		return (*b)[:n]
	}
	return vfsx.AlignedBytes(g.Width() * g.NominalBytes())[:n] // as the longest needs
}

// clearData makes zeros of the data fragments from a place on.
func (s *Segment) clearData(g Geometry, fragment, offset int) {
	clear(s.Fragments[fragment][offset:])
	for _, f := range s.Fragments[fragment+1 : g.K] {
		clear(f)
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
