package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// envelopeBytes is what an envelope adds to its body.
const envelopeBytes = 8 + 2 + 2 + 4 + 4 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrForeign: the bytes are something else, or damaged.
	ErrForeign = errors.New("not the structure expected, or damaged")
	// ErrNewer: a newer program wrote them.
	ErrNewer = errors.New("written by a newer version of plinth; use that version")
)

// Magic names a structure: eight printable bytes.
type Magic [8]byte

// Seal returns body in an envelope of that magic and version, with no incompat
// bit set:
//
//	 0  8B   magic
//	 8  u16  version
//	10  u16  zero
//	12  u32  incompat bits
//	16  u32  length of the body
//	20  …    body
//	    u32  CRC32C of all before
//
// Integers are little endian.
func Seal(magic Magic, version uint16, body []byte) []byte {
	b := make([]byte, 0, envelopeBytes+len(body))
	b = append(b, magic[:]...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Version returns that of an envelope that Open has taken.
func Version(b []byte) uint16 { return binary.LittleEndian.Uint16(b[8:]) }

// Open returns the body of an envelope, a part of b. Errors: ErrForeign,
// ErrNewer.
func Open(magic Magic, version uint16, b []byte) ([]byte, error) {
	if len(b) < envelopeBytes || Magic(b[:8]) != magic {
		return nil, fmt.Errorf("%w: no magic %q", ErrForeign, magic[:])
	}
	end := len(b) - 4
	switch {
	case crc32.Checksum(b[:end], castagnoli) != binary.LittleEndian.Uint32(b[end:]):
		return nil, fmt.Errorf("%w: checksum of %q", ErrForeign, magic[:])
	case binary.LittleEndian.Uint16(b[8:]) > version:
		return nil, fmt.Errorf("%w: %q version %d", ErrNewer, magic[:], binary.LittleEndian.Uint16(b[8:]))
	case binary.LittleEndian.Uint16(b[8:]) == 0 || binary.LittleEndian.Uint16(b[10:]) != 0:
		return nil, fmt.Errorf("%w: version or reserved bytes of %q", ErrForeign, magic[:])
	case binary.LittleEndian.Uint32(b[12:]) != 0:
		return nil, fmt.Errorf("%w: %q incompat bits %#x", ErrNewer, magic[:], binary.LittleEndian.Uint32(b[12:]))
	case uint64(binary.LittleEndian.Uint32(b[16:])) != uint64(end-20):
		return nil, fmt.Errorf("%w: length of %q", ErrForeign, magic[:])
	}
	return b[20:end], nil
}
