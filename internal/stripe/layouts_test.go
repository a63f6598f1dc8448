package stripe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

func numbers(n int) []id.Spindle {
	s := make([]id.Spindle, n)
	for i := range s {
		s[i] = id.Spindle(3*i + 1)
	}
	return s
}

func makeLayouts(t testing.TB, g Geometry, spindles int) *Layouts {
	t.Helper()
	l, err := MakeLayouts(g, numbers(spindles), 7)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// spread returns the smallest and largest count, over n spindles.
func spread(counts map[id.Spindle]int, n int) (lo, hi int) {
	for _, c := range counts {
		hi = max(hi, c)
	}
	lo = hi
	if len(counts) < n {
		return 0, hi
	}
	for _, c := range counts {
		lo = min(lo, c)
	}
	return lo, hi
}

func TestLayoutsAreBalanced(t *testing.T) {
	for _, c := range []struct {
		g             Geometry
		n             int
		lists         int // 0: not stated
		useGap, roles int // largest difference between two spindles
	}{
		{Geometry{1, 1}, 2, 2, 0, 0},
		{Geometry{2, 1}, 3, 3, 0, 0},
		{Geometry{8, 2}, 10, 10, 0, 0},
		{Geometry{8, 2}, 12, 660, 0, 0},
		{Geometry{8, 2}, 13, 286, 0, 3},
		{Geometry{4, 2}, 12, 256, 1, 3},
		{Geometry{8, 2}, 24, 256, 1, 3},
		{Geometry{2, 1}, 60, 768, 3, 1},
		{Geometry{16, 4}, 40, 0, 8, 4},
		{Geometry{8, 4}, 16, 0, 40, 40},
	} {
		l := makeLayouts(t, c.g, c.n)
		if c.lists != 0 && len(l.Lists) != c.lists {
			t.Errorf("%s over %d: %d layouts, want %d", c.g, c.n, len(l.Lists), c.lists)
		}
		uses := map[id.Spindle]int{}
		roles := make([]map[id.Spindle]int, c.g.Width())
		for i := range roles {
			roles[i] = map[id.Spindle]int{}
		}
		for _, list := range l.Lists {
			for role, s := range list {
				uses[s]++
				roles[role][s]++
			}
		}
		if lo, hi := spread(uses, c.n); hi-lo > c.useGap {
			t.Errorf("%s over %d: spindles are in %d to %d layouts", c.g, c.n, lo, hi)
		}
		for role := range roles {
			if lo, hi := spread(roles[role], c.n); hi-lo > c.roles {
				t.Errorf("%s over %d: spindles hold fragment %d in %d to %d layouts", c.g, c.n, role, lo, hi)
			}
		}
	}
}

func TestLayoutsOutliveLosses(t *testing.T) {
	for _, c := range []struct {
		g Geometry
		n int
	}{
		{Geometry{1, 1}, 3}, {Geometry{2, 1}, 4}, {Geometry{4, 2}, 8}, {Geometry{8, 2}, 12}, {Geometry{8, 2}, 14},
		{Geometry{8, 2}, 30}, {Geometry{3, 3}, 12}, {Geometry{8, 4}, 16}, {Geometry{4, 3}, 20},
	} {
		l := makeLayouts(t, c.g, c.n)
		spindles := numbers(c.n)
		eachCombination(c.n, c.g.M, func(lost []int) bool {
			whole := slices.ContainsFunc(l.Lists, func(list []id.Spindle) bool {
				return !slices.ContainsFunc(lost, func(i int) bool { return slices.Contains(list, spindles[i]) })
			})
			if !whole {
				t.Errorf("%s over %d: no layout without %v", c.g, c.n, lost)
			}
			return whole
		})
	}
}

func TestMakeLayoutsRefuses(t *testing.T) {
	for _, c := range []struct {
		g        Geometry
		spindles []id.Spindle
	}{
		{Geometry{8, 2}, numbers(9)}, {Geometry{0, 2}, numbers(9)}, {Geometry{1, 1}, []id.Spindle{4, 4}},
	} {
		if _, err := MakeLayouts(c.g, c.spindles, 1); err == nil {
			t.Errorf("%s over %v: layouts", c.g, c.spindles)
		}
	}
}

func TestLayoutsRoundTrip(t *testing.T) {
	for _, g := range append([]Geometry{{16, 16}}, geometries...) {
		for _, n := range []int{g.Width(), g.Width() + 2, 40} {
			l := makeLayouts(t, g, n)
			b := l.Marshal()
			got, err := UnmarshalLayouts(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Marshal(), b) || got.Version != 7 || got.Geometry != g || len(got.Lists) != len(l.Lists) {
				t.Errorf("%s over %d: round trip differs", g, n)
			}
			if len(b) > datanode.RegistryValueBytesMax/2+64 {
				t.Errorf("%s over %d: %d bytes", g, n, len(b))
			}
			again := makeLayouts(t, g, n)
			if !bytes.Equal(again.Marshal(), b) {
				t.Errorf("%s over %d: not the same twice", g, n)
			}
		}
	}
}

// reseal makes the checksum of b right again.
func reseal(b []byte) []byte {
	body := b[:len(b)-4]
	binary.LittleEndian.PutUint32(b[len(body):], crc32.Checksum(body, castagnoli))
	return b
}

func TestUnmarshalLayoutsRefuses(t *testing.T) {
	good := makeLayouts(t, Geometry{2, 1}, 4).Marshal()
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 0x10
		if _, err := UnmarshalLayouts(b); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
		if _, err := UnmarshalLayouts(good[:i]); err == nil {
			t.Errorf("accepted %d of %d bytes", i, len(good))
		}
	}
	for _, c := range []struct {
		name string
		at   int
		b    byte
		want error
	}{
		{"magic", 0, 'X', datanode.ErrCorrupt},
		{"version", 8, 2, ErrUnsupported},
		{"feature", 14, 1, ErrUnsupported},
		{"no data", 24, 0, datanode.ErrCorrupt},
		{"too wide", 25, 200, datanode.ErrCorrupt},
		{"reserved", 26, 1, datanode.ErrCorrupt},
		{"count", 28, 1, datanode.ErrCorrupt},
		{"large count", 31, 255, datanode.ErrCorrupt},
		{"a spindle twice", layoutsHeaderBytes, good[layoutsHeaderBytes+2], datanode.ErrCorrupt},
	} {
		b := slices.Clone(good)
		b[c.at] = c.b
		if c.name == "a spindle twice" {
			copy(b[c.at:c.at+2], good[c.at+2:])
		}
		if _, err := UnmarshalLayouts(reseal(b)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzUnmarshalLayouts(f *testing.F) {
	for _, g := range geometries {
		f.Add(makeLayouts(f, g, g.Width()+1).Marshal(), false)
	}
	spread, err := MakeSpreadLayouts(Geometry{1, 1}, nodesOf(3, 1), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(spread.Marshal(), false)
	grown, err := spread.Prepare(nodesOf(4, 1), func(id.Layout) bool { return false })
	if err != nil {
		f.Fatal(err)
	}
	f.Add(grown.Marshal(), true)
	rng := rand.New(rand.NewPCG(3, 4))
	f.Add(reseal(binary.LittleEndian.AppendUint64([]byte(layoutsMagic), rng.Uint64())), true)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= 4 {
			b = reseal(slices.Clone(b))
		}
		l, err := UnmarshalLayouts(b)
		if err == nil && !bytes.Equal(l.Marshal(), b) {
			t.Errorf("%d bytes are accepted but not what marshals", len(b))
		}
	})
}
