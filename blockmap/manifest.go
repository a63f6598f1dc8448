package blockmap

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

const (
	manifestMagic   = "plinmap\x00"
	manifestVersion = 1
	manifestHeader  = 32
	crcBytes        = 4

	// ManifestBytesMax bounds a manifest: 64 MiB name 600,000 tables, which map
	// an exbibyte.
	ManifestBytesMax = 64 << 20

	tablesMax    = 1 << 20
	filesMax     = 16
	fileBytesMax = 16 << 20
	nameBytesMax = 255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest is what a checkpoint's bytes say. Its slices lie in those bytes.
type manifest struct {
	state  []byte
	files  []manifestFile  // of Pebble, but tables
	tables []manifestTable // by rising number
}

type manifestFile struct {
	name  string
	bytes []byte
}

type manifestTable struct {
	number uint64
	bytes  int64
	object Object
}

// encode returns the manifest's bytes (docs/format/map.md).
func (f *manifest) encode() ([]byte, error) {
	b := make([]byte, manifestHeader)
	copy(b, manifestMagic)
	binary.LittleEndian.PutUint16(b[8:], manifestVersion)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(f.state)))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(f.files)))
	binary.LittleEndian.PutUint32(b[24:], uint32(len(f.tables)))
	b = append(b, f.state...)
	for _, file := range f.files {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(file.name)))
		b = append(b, file.name...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(file.bytes)))
		b = append(b, file.bytes...)
	}
	for _, t := range f.tables {
		if len(t.object) > ObjectBytesMax {
			return nil, fmt.Errorf("%w: an object's descriptor of %d bytes", ErrInvalid, len(t.object))
		}
		b = binary.LittleEndian.AppendUint64(b, t.number)
		b = binary.LittleEndian.AppendUint64(b, uint64(t.bytes))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(t.object)))
		b = append(b, t.object...)
	}
	if len(b)+crcBytes > ManifestBytesMax || len(f.tables) > tablesMax {
		return nil, fmt.Errorf("a manifest of %d tables and %d bytes is too large", len(f.tables), len(b))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

func parseManifest(b []byte) (*manifest, error) {
	if len(b) < manifestHeader+crcBytes || len(b) > ManifestBytesMax {
		return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrCorrupt, len(b))
	}
	body, sum := b[:len(b)-crcBytes], binary.LittleEndian.Uint32(b[len(b)-crcBytes:])
	if string(b[:8]) != manifestMagic {
		return nil, fmt.Errorf("%w: not a manifest", ErrCorrupt)
	}
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, fmt.Errorf("%w: a manifest's checksum", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != manifestVersion {
		return nil, fmt.Errorf("%w: manifest version %d", ErrUnsupported, v)
	}
	if bits := binary.LittleEndian.Uint32(b[12:]); bits != 0 {
		return nil, fmt.Errorf("%w: manifest features %#x", ErrUnsupported, bits)
	}
	stateBytes := binary.LittleEndian.Uint32(b[16:])
	files := binary.LittleEndian.Uint32(b[20:])
	tables := binary.LittleEndian.Uint32(b[24:])
	if stateBytes > StateBytesMax || files > filesMax || tables > tablesMax {
		return nil, fmt.Errorf("%w: a manifest with %d bytes of state, %d files, %d tables",
			ErrCorrupt, stateBytes, files, tables)
	}
	r := reader{rest: body[manifestHeader:]}
	f := &manifest{state: r.take(int(stateBytes))}
	for range files {
		name := string(r.take(int(r.u16())))
		f.files = append(f.files, manifestFile{name, r.bytes(fileBytesMax)})
		if r.short || !plainName(name) {
			return nil, fmt.Errorf("%w: a manifest's file %q", ErrCorrupt, name)
		}
	}
	last := uint64(0)
	for range tables {
		t := manifestTable{number: r.u64(), bytes: int64(r.u64())}
		t.object = r.bytes(ObjectBytesMax)
		if r.short || t.number <= last || t.bytes <= 0 {
			return nil, fmt.Errorf("%w: a manifest's table %d", ErrCorrupt, t.number)
		}
		last = t.number
		f.tables = append(f.tables, t)
	}
	if r.short || len(r.rest) != 0 {
		return nil, fmt.Errorf("%w: a manifest's length", ErrCorrupt)
	}
	return f, nil
}

// objects returns copies of the objects that the manifest names.
func (f *manifest) objects() []Object {
	out := make([]Object, len(f.tables))
	for i, t := range f.tables {
		out[i] = slices.Clone(t.object)
	}
	return out
}

// ManifestObjects returns the objects that a manifest names. Errors: ErrCorrupt,
// ErrUnsupported.
func ManifestObjects(b []byte) ([]Object, error) {
	f, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	return f.objects(), nil
}

// plainName reports whether a name is one of a file that Pebble keeps beside
// its tables: it stays in its directory and is no table.
func plainName(name string) bool {
	if len(name) == 0 || len(name) > nameBytesMax || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	_, isTable := parseTableName(name)
	return !isTable
}

// reader takes fields from the front of bytes; short stays set after the first
// that is not there.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short = true
		return nil
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) number(n int) uint64 {
	var b [8]byte
	copy(b[:], r.take(n))
	return binary.LittleEndian.Uint64(b[:])
}

func (r *reader) u16() uint64 { return r.number(2) }
func (r *reader) u64() uint64 { return r.number(8) }

// bytes takes a length of 4 bytes and as many bytes, at most most.
func (r *reader) bytes(most int) []byte {
	n := r.number(4)
	if n > uint64(most) {
		r.short = true
		return nil
	}
	return r.take(int(n))
}
