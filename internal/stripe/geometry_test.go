package stripe

import (
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// geometries are those that tests go through.
var geometries = []Geometry{{1, 1}, {2, 1}, {4, 2}, {8, 2}, {3, 3}}

func TestParseGeometry(t *testing.T) {
	for _, g := range append([]Geometry{{31, 1}, {1, 31}, {16, 16}}, geometries...) {
		got, err := ParseGeometry(g.String())
		if err != nil || got != g {
			t.Errorf("%s parses as %v, %v", g, got, err)
		}
	}
	for _, s := range []string{"", "8", "+", "8+", "+2", "8+0", "0+2", "31+2", "-1+2", "8+2+1", " 8+2", "08+2", "8-2",
		"9223372036854775807+9223372036854775807"} {
		if g, err := ParseGeometry(s); err == nil {
			t.Errorf("%q parses as %v", s, g)
		}
	}
}

func TestDefaultGeometry(t *testing.T) {
	for n, want := range map[int]string{2: "1+1", 3: "2+1", 5: "2+1", 6: "4+2", 9: "4+2", 10: "8+2", 100: "8+2"} {
		if g, err := DefaultGeometry(n); err != nil || g.String() != want {
			t.Errorf("%d spindles: %s, %v, want %s", n, g, err, want)
		}
	}
	for _, n := range []int{-1, 0, 1} {
		if g, err := DefaultGeometry(n); err == nil {
			t.Errorf("%d spindles: %s", n, g)
		}
	}
}

func TestLocate(t *testing.T) {
	for _, g := range geometries {
		n := g.NominalBytes()
		if n%datanode.BlockBytes != 0 || n*g.K > id.SegmentBytesMax || (n+datanode.BlockBytes)*g.K <= id.SegmentBytesMax {
			t.Errorf("%s: nominal length %d", g, n)
		}
		for fragment := range g.K {
			for _, offset := range []int{0, id.Unit, n - 4096} {
				location, ok := id.MakeLocation(fragment*n+offset, 4096)
				if !ok {
					t.Fatalf("%s: no location for byte %d of fragment %d", g, offset, fragment)
				}
				want := Range{Segment: 9, Index: uint8(fragment), Offset: uint32(offset), Length: 4096}
				if got := g.Locate(id.Ref{Segment: 9, Location: location}); got != want {
					t.Errorf("%s: located at %s, want %s", g, got, want)
				}
			}
		}
	}
}
