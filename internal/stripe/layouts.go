package stripe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// ErrUnsupported is returned by UnmarshalLayouts for a version or feature this
// program does not know: a newer one wrote it.
var ErrUnsupported = errors.New("stripe layouts have an unsupported format")

const (
	// LayoutsMax bounds the lists of new Layouts. With the widest stripes they take
	// 128 KiB, half of what a registry value may.
	LayoutsMax = 2048
	// GrownMax bounds the lists of Layouts that were changed since, and GrownBytesMax
	// what they take.
	GrownMax      = 8192
	GrownBytesMax = 248 << 10
)

const (
	layoutsMagic       = "PLNLAYTS"
	layoutsVersion     = 1
	layoutsHeaderBytes = 32
	// featureSpare: the last lists are spare, all others usual. featureKinds: each list
	// has a kind.
	featureSpare = 1
	featureKinds = 2
)

// Kind says what a list of Layouts is for.
type Kind uint8

const (
	// Usual lists are for new segments.
	Usual Kind = iota
	// Spare ones are for new segments that no usual list can take: they hold more of a
	// stripe on one node than its parity is, for as long as a node is away.
	Spare
	// Old ones get nothing new, and what lies there stays. OldSpare ones were spare.
	Old
	OldSpare
	// Leaving ones have spindles of a node that is being emptied, or were Old when a
	// rebalance began: what lies there is to be moved.
	Leaving
	// Coming ones will be Usual, and ComingSpare ones Spare, when everybody knows them.
	Coming
	ComingSpare
	// Free ones have nothing but what writers that died left there and no index knows, and
	// nodes that were told so learn nothing of it: another list may take their place.
	Free

	kinds
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Layouts is the lists of spindles that stripes of a pool use. A segment's
// layout number is an index of Lists; Lists[l][i] is the spindle of fragment i.
// It is immutable once shared. Version rises with every change. Kinds are those of the
// lists; nil: all are Usual.
type Layouts struct {
	Version  uint64
	Geometry Geometry
	Lists    [][]id.Spindle
	Kinds    []Kind
}

// Has reports whether there is a list of that number, for anything but a new one.
func (l *Layouts) Has(n id.Layout) bool { return int(n) < len(l.Lists) }

// Kind returns what a list is for, Free for one that is not there.
func (l *Layouts) Kind(n id.Layout) Kind {
	switch {
	case int(n) >= len(l.Lists):
		return Free
	case l.Kinds == nil:
		return Usual
	}
	return l.Kinds[n]
}

// of returns the lists of a kind.
func (l *Layouts) of(k Kind) (out []id.Layout) {
	for n := range l.Lists {
		if l.Kind(id.Layout(n)) == k {
			out = append(out, id.Layout(n))
		}
	}
	return out
}

// Any reports whether some list is of a kind.
func (l *Layouts) Any(k Kind) bool {
	return slices.Contains(l.Kinds, k) || k == Usual && l.Kinds == nil
}

// Validate reports layouts that cannot be used.
func (l *Layouts) Validate() error {
	if err := l.Geometry.Validate(); err != nil {
		return err
	}
	if len(l.Lists) < 1 || len(l.Lists) > listsMax(l.Geometry) {
		return fmt.Errorf("%d stripe layouts, want 1 to %d", len(l.Lists), listsMax(l.Geometry))
	}
	if l.Kinds != nil && (len(l.Kinds) != len(l.Lists) || slices.Max(l.Kinds) >= kinds) {
		return fmt.Errorf("%d kinds of %d stripe layouts, or unknown ones", len(l.Kinds), len(l.Lists))
	}
	if !l.Any(Usual) {
		return errors.New("no stripe layout is for new segments")
	}
	for n, list := range l.Lists {
		if len(list) != l.Geometry.Width() {
			return fmt.Errorf("layout %d has %d spindles, geometry %s wants %d", n, len(list), l.Geometry, l.Geometry.Width())
		}
		for i, s := range list {
			if slices.Contains(list[:i], s) {
				return fmt.Errorf("layout %d has spindle %d twice", n, s)
			}
		}
	}
	return nil
}

// listsMax bounds the lists of layouts of g.
func listsMax(g Geometry) int { return min(GrownMax, GrownBytesMax/(2*g.Width()+1)) }

// Spindles returns all spindles of the layouts that are not free, in order.
func (l *Layouts) Spindles() []id.Spindle {
	var in []bool // by spindle: far fewer than the lists have entries, which are dear to sort
	for n, list := range l.Lists {
		if l.Kind(id.Layout(n)) == Free {
			continue
		}
		for _, s := range list {
			if int(s) >= len(in) {
				in = append(in, make([]bool, int(s)+1-len(in))...)
			}
			in[s] = true
		}
	}
	var all []id.Spindle
	for s, is := range in {
		if is {
			all = append(all, id.Spindle(s))
		}
	}
	return all
}

// Used are the spindles of the lists that are for new segments.
func (l *Layouts) Used() map[id.Spindle]bool {
	used := make(map[id.Spindle]bool)
	for n, list := range l.Lists {
		if k := l.Kind(id.Layout(n)); k == Usual || k == Spare {
			for _, s := range list {
				used[s] = true
			}
		}
	}
	return used
}

// tail returns how many of the last lists are spare, false if kinds say more than that.
func (l *Layouts) tail() (spare int, ok bool) {
	usual := len(l.Kinds)
	for usual > 0 && l.Kinds[usual-1] == Spare {
		usual--
	}
	for _, k := range l.Kinds[:usual] {
		if k != Usual {
			return 0, false
		}
	}
	return len(l.Kinds) - usual, true
}

// Marshal returns valid layouts as bytes: GrownBytesMax at most and a header.
func (l *Layouts) Marshal() []byte {
	b := make([]byte, 0, layoutsHeaderBytes+2*len(l.Lists)*l.Geometry.Width()+len(l.Kinds)+4)
	b = append(b, layoutsMagic...)
	b = binary.LittleEndian.AppendUint32(b, layoutsVersion)
	features := uint32(0)
	spare, plain := l.tail()
	switch {
	case !plain:
		features = featureKinds
	case spare > 0:
		features = featureSpare
	}
	b = binary.LittleEndian.AppendUint32(b, features)
	b = binary.LittleEndian.AppendUint64(b, l.Version)
	b = append(b, byte(l.Geometry.K), byte(l.Geometry.M), byte(spare), byte(spare>>8))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Lists)))
	for _, list := range l.Lists {
		for _, s := range list {
			b = binary.LittleEndian.AppendUint16(b, uint16(s))
		}
	}
	if !plain {
		for _, k := range l.Kinds {
			b = append(b, byte(k))
		}
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// UnmarshalLayouts reads what Marshal wrote. Errors: ErrUnsupported, and
// datanode.ErrCorrupt for anything else that is not valid layouts. It keeps
// nothing of b.
func UnmarshalLayouts(b []byte) (*Layouts, error) {
	corrupt := func(format string, args ...any) error {
		return datanode.Errorf(datanode.ErrCorrupt, "read stripe layouts: "+format, args...)
	}
	if len(b) < layoutsHeaderBytes+4 || !bytes.HasPrefix(b, []byte(layoutsMagic)) {
		return nil, corrupt("%d bytes are none", len(b))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != layoutsVersion {
		return nil, fmt.Errorf("%w: version %d", ErrUnsupported, v)
	}
	f := binary.LittleEndian.Uint32(b[12:])
	if f > featureKinds {
		return nil, fmt.Errorf("%w: required features %#x", ErrUnsupported, f)
	}
	body := b[:len(b)-4]
	if sum := crc32.Checksum(body, castagnoli); sum != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, corrupt("checksum fails")
	}
	l := &Layouts{
		Version:  binary.LittleEndian.Uint64(b[16:]),
		Geometry: Geometry{int(b[24]), int(b[25])},
	}
	spare := int(binary.LittleEndian.Uint16(b[26:]))
	if err := l.Geometry.Validate(); err != nil {
		return nil, corrupt("%v", err)
	}
	count, width := binary.LittleEndian.Uint32(b[28:]), l.Geometry.Width()
	each := 2 * width
	if f == featureKinds {
		each++
	}
	if spare != 0 != (f == featureSpare) || spare > int(count) || count > GrownMax || len(body) != layoutsHeaderBytes+int(count)*each {
		return nil, corrupt("%d bytes for %d layouts of %d", len(b), count, width)
	}
	l.Lists = make([][]id.Spindle, count)
	at := body[layoutsHeaderBytes:]
	for n := range l.Lists {
		l.Lists[n] = make([]id.Spindle, width)
		for i := range l.Lists[n] {
			l.Lists[n][i] = id.Spindle(binary.LittleEndian.Uint16(at))
			at = at[2:]
		}
	}
	if f != 0 {
		l.Kinds = make([]Kind, count)
	}
	for n := range l.Kinds {
		switch {
		case f == featureKinds:
			l.Kinds[n] = Kind(at[n])
		case n >= int(count)-spare:
			l.Kinds[n] = Spare
		}
	}
	if _, plain := l.tail(); plain && f == featureKinds {
		return nil, corrupt("kinds that say nothing")
	}
	if err := l.Validate(); err != nil {
		return nil, corrupt("%v", err)
	}
	return l, nil
}

// WidthOf returns the width of the stripes of marshalled layouts.
func WidthOf(b []byte) (int, error) {
	l, err := UnmarshalLayouts(b)
	if err != nil {
		return 0, err
	}
	return l.Geometry.Width(), nil
}

// Without reports whether there is a usual layout with none of some spindles.
func (l *Layouts) Without(avoid []id.Spindle) bool {
	return slices.ContainsFunc(l.of(Usual), func(n id.Layout) bool {
		return !slices.ContainsFunc(l.Lists[n], func(s id.Spindle) bool { return slices.Contains(avoid, s) })
	})
}
