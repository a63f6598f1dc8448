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

// LayoutsMax bounds the lists of Layouts. With the widest stripes they take
// 128 KiB, half of what a registry value may.
const LayoutsMax = 2048

const (
	layoutsMagic       = "PLNLAYTS"
	layoutsVersion     = 1
	layoutsHeaderBytes = 32
	// featureSpare: some lists are spare.
	featureSpare = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Layouts is the lists of spindles that stripes of a pool use. A segment's
// layout number is an index of Lists; Lists[l][i] is the spindle of fragment i.
// It is immutable once shared. Version rises with every change. The last Spare lists
// are for new segments that no other list can take: they hold more of a stripe on one
// node than its parity is, for as long as a node is away.
type Layouts struct {
	Version  uint64
	Geometry Geometry
	Lists    [][]id.Spindle
	Spare    int
}

// Validate reports layouts that cannot be used.
func (l *Layouts) Validate() error {
	if err := l.Geometry.Validate(); err != nil {
		return err
	}
	if len(l.Lists) < 1 || len(l.Lists) > LayoutsMax {
		return fmt.Errorf("%d stripe layouts, want 1 to %d", len(l.Lists), LayoutsMax)
	}
	if l.Spare < 0 || l.Spare >= len(l.Lists) {
		return fmt.Errorf("%d of %d stripe layouts are spare", l.Spare, len(l.Lists))
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

// Spindles returns all spindles of the layouts, in order.
func (l *Layouts) Spindles() []id.Spindle {
	all := slices.Concat(l.Lists...)
	slices.Sort(all)
	return slices.Compact(all)
}

// Marshal returns valid layouts as bytes: at most 128 KiB and a header.
func (l *Layouts) Marshal() []byte {
	b := make([]byte, 0, layoutsHeaderBytes+2*len(l.Lists)*l.Geometry.Width()+4)
	b = append(b, layoutsMagic...)
	b = binary.LittleEndian.AppendUint32(b, layoutsVersion)
	features := uint32(0)
	if l.Spare > 0 {
		features = featureSpare
	}
	b = binary.LittleEndian.AppendUint32(b, features)
	b = binary.LittleEndian.AppendUint64(b, l.Version)
	b = append(b, byte(l.Geometry.K), byte(l.Geometry.M), byte(l.Spare), byte(l.Spare>>8))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Lists)))
	for _, list := range l.Lists {
		for _, s := range list {
			b = binary.LittleEndian.AppendUint16(b, uint16(s))
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
	if f&^featureSpare != 0 {
		return nil, fmt.Errorf("%w: required features %#x", ErrUnsupported, f)
	}
	body := b[:len(b)-4]
	if sum := crc32.Checksum(body, castagnoli); sum != binary.LittleEndian.Uint32(b[len(body):]) {
		return nil, corrupt("checksum fails")
	}
	l := &Layouts{
		Version:  binary.LittleEndian.Uint64(b[16:]),
		Geometry: Geometry{int(b[24]), int(b[25])},
		Spare:    int(binary.LittleEndian.Uint16(b[26:])),
	}
	if err := l.Geometry.Validate(); err != nil {
		return nil, corrupt("%v", err)
	}
	count, width := binary.LittleEndian.Uint32(b[28:]), l.Geometry.Width()
	if l.Spare != 0 != (f != 0) || count > LayoutsMax || len(body) != layoutsHeaderBytes+2*int(count)*width {
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
	if err := l.Validate(); err != nil {
		return nil, corrupt("%v", err)
	}
	return l, nil
}
