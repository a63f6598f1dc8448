package stripe

import (
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
)

// ObjectUnitsMax returns how many units of that many bytes one segment holds.
func ObjectUnitsMax(g Geometry, unitBytes int) int {
	if unitBytes <= 0 {
		return 0
	}
	return g.K * (g.NominalBytes() / unitBytes)
}

// PackObject packs a piece of a checkpoint object: 1 to ObjectUnitsMax units,
// all of the first one's length but the last, which may be shorter. A fragment
// holds FragmentBytes/len(units[0]) of them, so that ObjectRange finds each
// without a table. The segment has one slot, 0, born held by (disk, epoch),
// with neither fingerprint nor location. Units are copied.
func PackObject(g Geometry, disk id.Disk, epoch id.Epoch, units [][]byte) (*Segment, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	if len(units) == 0 || len(units) > ObjectUnitsMax(g, len(units[0])) {
		return nil, fmt.Errorf("pack object: %d units do not fit in a segment of geometry %s", len(units), g)
	}
	unitBytes, dataBytes := len(units[0]), 0
	for i, u := range units {
		if len(u) == 0 || len(u) > unitBytes || len(u) < unitBytes && i < len(units)-1 {
			return nil, fmt.Errorf("pack object: unit %d has %d bytes, the first %d", i, len(u), unitBytes)
		}
		dataBytes += len(u)
	}
	perFragment := (len(units) + g.K - 1) / g.K
	fragmentBytes := roundUp(perFragment*unitBytes, datanode.BlockBytes)
	s := newSegment(g, datanode.KindObject, dataBytes, fragmentBytes,
		[]datanode.Birth{{Disk: disk, Epoch: epoch, Slots: 1}})
	s.Slots = []datanode.SlotEntry{{}}
	last, end := 0, 0
	for n, u := range units {
		r := ObjectRange(0, s.FragmentBytes, unitBytes, n, len(u))
		if r.Offset == 0 && n > 0 {
			clear(s.Fragments[r.Index-1][end:])
		}
		end = int(r.Offset) + copy(s.Fragments[r.Index][r.Offset:], u)
		last = int(r.Index)
	}
	s.clearData(g, last, end)
	return s, s.encode(g)
}

// ObjectRange returns where unit n of a segment lies, of which length bytes are
// used. FragmentBytes is the segment's, unitBytes the length of the object's
// full units. A segment whose only unit is a short one has it at the start.
func ObjectRange(seg id.Segment, fragmentBytes uint32, unitBytes, n, length int) Range {
	perFragment := max(1, int(fragmentBytes)/unitBytes)
	return Range{
		Segment: seg, Index: uint8(n / perFragment),
		Offset: uint32(n % perFragment * unitBytes), Length: uint32(length),
	}
}
