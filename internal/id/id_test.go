package id

import "testing"

func TestSegmentPacksLayoutAndNumber(t *testing.T) {
	for _, c := range []struct {
		l Layout
		n uint64
	}{{0, 1}, {65535, SegmentNumberMax}, {7, 1 << 40}} {
		s := MakeSegment(c.l, c.n)
		if s.Layout() != c.l || s.Number() != c.n {
			t.Errorf("MakeSegment(%d, %d) = %s", c.l, c.n, s)
		}
	}
}

func TestLocation(t *testing.T) {
	for _, c := range []struct {
		start, length int
		ok            bool
	}{
		{0, 16, true},
		{SegmentBytesMax - 16, 16, true},
		{16, (1<<13 - 1) * Unit, true},
		{SegmentBytesMax, 16, false},
		{8, 16, false},
		{0, 24, false},
		{0, 0, false},
		{-16, 16, false},
		{0, 1 << 17, false},
	} {
		l, ok := MakeLocation(c.start, c.length)
		if ok != c.ok {
			t.Errorf("MakeLocation(%d, %d): ok = %v", c.start, c.length, ok)
		}
		if ok && (l.Start() != c.start || l.Len() != c.length) {
			t.Errorf("MakeLocation(%d, %d) = %d+%d", c.start, c.length, l.Start(), l.Len())
		}
	}
}
