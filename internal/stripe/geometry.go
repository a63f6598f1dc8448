package stripe

import (
	"fmt"
	"strconv"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
)

// Geometry is how a segment becomes fragments: K of data, M of parity. Any K of
// them are enough to compute the others.
type Geometry struct{ K, M int }

// ParseGeometry reads "8+2", as String writes it.
func ParseGeometry(s string) (Geometry, error) {
	k, m, ok := strings.Cut(s, "+")
	var g Geometry
	var err1, err2 error
	g.K, err1 = strconv.Atoi(k)
	g.M, err2 = strconv.Atoi(m)
	if !ok || err1 != nil || err2 != nil || g.String() != s {
		return Geometry{}, fmt.Errorf("stripe geometry %q is not of the form 8+2", s)
	}
	return g, g.Validate()
}

// DefaultGeometry returns the widest of 8+2, 4+2, 2+1 and 1+1 that has a
// spindle for each fragment. Below two spindles it is an error: data would have
// one copy.
func DefaultGeometry(spindles int) (Geometry, error) {
	switch {
	case spindles >= 10:
		return Geometry{8, 2}, nil
	case spindles >= 6:
		return Geometry{4, 2}, nil
	case spindles >= 3:
		return Geometry{2, 1}, nil
	case spindles == 2:
		return Geometry{1, 1}, nil
	}
	return Geometry{}, fmt.Errorf("%d spindles cannot hold a segment redundantly: it takes 2", spindles)
}

// ChooseGeometry returns the stripes of a new pool over that many spindles: those
// that are wanted, or the default for the zero value.
func ChooseGeometry(want Geometry, spindles int) (Geometry, error) {
	if want == (Geometry{}) {
		return DefaultGeometry(spindles)
	}
	if err := want.Validate(); err != nil {
		return want, err
	}
	if want.Width() > spindles {
		return want, fmt.Errorf("stripes of %s need %d spindles, and there are %d", want, want.Width(), spindles)
	}
	return want, nil
}

func (g Geometry) String() string { return fmt.Sprintf("%d+%d", g.K, g.M) }

// Validate reports a geometry that cannot be used.
func (g Geometry) Validate() error {
	if g.K < 1 || g.M < 1 || g.K > datanode.WidthMax || g.M > datanode.WidthMax || g.Width() > datanode.WidthMax {
		return fmt.Errorf("stripe geometry %s: each part is at least 1 and their sum at most %d", g, datanode.WidthMax)
	}
	return nil
}

// Width returns the number of fragments of a stripe.
func (g Geometry) Width() int { return g.K + g.M }

// NominalBytes returns the length of the longest data fragment, a multiple of
// datanode.BlockBytes. Addresses in a segment are in units of it: it never
// changes for a geometry.
func (g Geometry) NominalBytes() int {
	return id.SegmentBytesMax / g.K / datanode.BlockBytes * datanode.BlockBytes
}

// Locate returns the bytes of a fragment that ref names. It tests nothing: a
// ref out of bounds gives a range that reading refuses.
func (g Geometry) Locate(ref id.Ref) Range {
	n := g.NominalBytes()
	a := ref.Location.Start()
	return Range{
		Segment: ref.Segment, Index: uint8(a / n),
		Offset: uint32(a % n), Length: uint32(ref.Location.Len()),
	}
}

// Range is bytes Offset to Offset+Length of one fragment of a segment.
type Range struct {
	Segment id.Segment
	Index   uint8
	Offset  uint32
	Length  uint32
}

func (r Range) String() string {
	return fmt.Sprintf("segment %s, fragment %d, bytes %d+%d", r.Segment, r.Index, r.Offset, r.Length)
}

func (r Range) end() uint64 { return uint64(r.Offset) + uint64(r.Length) }

// blocks returns the half-open run of blocks that the range touches.
func (r Range) blocks() (first, end int) {
	return int(r.Offset / datanode.BlockBytes), int((r.end() + datanode.BlockBytes - 1) / datanode.BlockBytes)
}
