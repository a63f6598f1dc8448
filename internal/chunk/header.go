package chunk

import (
	"encoding/binary"
	"fmt"

	"plinth/internal/id"
)

const version = 1

// Header is what the first bytes of everything sealed say. It is readable
// without a key, and not to be trusted before the whole has been opened.
type Header struct {
	Suite       Suite
	Codec       Codec
	Kind        Kind
	Len         int            // of all that is sealed, header included; bytes, a multiple of id.Unit
	PlainLen    int            // bytes, 1 to PlainBytesMax; a valid Size for a chunk
	Pad         int            // zero bytes at the end of the payload, 0 to 15
	Key         id.Key         // never 0
	Counter     uint32         // of this seal under Key; never 0
	Fingerprint id.Fingerprint // of a chunk; zero for other kinds
}

// ParseHeader reads the header at the start of b, which may go on behind the
// sealed chunk: in a segment the next one starts Len bytes on. Every field is
// checked against its bounds and the others, so that a buffer of Len or
// PlainLen bytes may be made; Len may still exceed len(b). Errors: ErrCorrupt,
// ErrUnsupported.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < headerBytes {
		return Header{}, fmt.Errorf("%w: %d bytes are no header", ErrCorrupt, len(b))
	}
	h := Header{
		Suite:    Suite(b[1] >> 4),
		Codec:    Codec(b[1] & 15),
		Len:      int(binary.LittleEndian.Uint16(b[2:])) * id.Unit,
		Key:      id.Key(binary.LittleEndian.Uint32(b[4:])),
		Counter:  binary.LittleEndian.Uint32(b[8:]),
		PlainLen: int(binary.LittleEndian.Uint16(b[12:])) + 1,
		Kind:     Kind(b[14] >> 4),
		Pad:      int(b[14] & 15),
	}
	switch {
	case b[0] == 0:
		return Header{}, fmt.Errorf("%w: version 0", ErrCorrupt)
	case b[0] != version:
		return Header{}, fmt.Errorf("%w: version %d", ErrUnsupported, b[0])
	case b[15] != 0:
		return Header{}, fmt.Errorf("%w: flags %#02x", ErrUnsupported, b[15])
	case !h.Suite.Valid():
		return Header{}, fmt.Errorf("%w: %s", ErrUnsupported, h.Suite)
	case h.Codec > S2:
		return Header{}, fmt.Errorf("%w: %s", ErrUnsupported, h.Codec)
	case h.Kind < KindChunk || h.Kind > KindUnit:
		return Header{}, fmt.Errorf("%w: %s", ErrUnsupported, h.Kind)
	}
	if h.Kind == KindChunk {
		if len(b) < chunkHeaderBytes {
			return Header{}, fmt.Errorf("%w: %d bytes are no chunk header", ErrCorrupt, len(b))
		}
		h.Fingerprint = id.Fingerprint(b[headerBytes:chunkHeaderBytes])
	}
	return h, h.check()
}

// check compares the fields of one header with each other.
func (h *Header) check() error {
	data := h.payload() - h.Pad
	switch {
	case h.Key == 0 || h.Counter == 0:
		return fmt.Errorf("%w: key %d, counter %d", ErrCorrupt, h.Key, h.Counter)
	case h.payload() <= 0:
		return fmt.Errorf("%w: %d bytes in all", ErrCorrupt, h.Len)
	case h.Codec == Raw && data != h.PlainLen,
		h.Codec != Raw && (data < 1 || data >= h.PlainLen):
		return fmt.Errorf("%w: %d bytes for %d bytes of plaintext, %s", ErrCorrupt, data, h.PlainLen, h.Codec)
	case h.Kind == KindChunk && Size(h.PlainLen).Validate() != nil:
		return fmt.Errorf("%w: a chunk of %d bytes", ErrCorrupt, h.PlainLen)
	case h.Kind == KindUnit && (h.Suite != AES256GCM || h.Codec != Raw):
		return fmt.Errorf("%w: a unit under %s, %s", ErrCorrupt, h.Suite, h.Codec)
	}
	return nil
}

// put writes the header to the start of b.
func (h *Header) put(b []byte) {
	b[0] = version
	b[1] = byte(h.Suite)<<4 | byte(h.Codec)
	binary.LittleEndian.PutUint16(b[2:], uint16(h.Len/id.Unit))
	binary.LittleEndian.PutUint32(b[4:], uint32(h.Key))
	binary.LittleEndian.PutUint32(b[8:], h.Counter)
	binary.LittleEndian.PutUint16(b[12:], uint16(h.PlainLen-1))
	b[14] = byte(h.Kind)<<4 | byte(h.Pad)
	b[15] = 0
	if h.Kind == KindChunk {
		copy(b[headerBytes:], h.Fingerprint[:])
	}
}

// bytes returns the header's own length.
func (h *Header) bytes() int {
	if h.Kind == KindChunk {
		return chunkHeaderBytes
	}
	return headerBytes
}

// tag returns the length of what stands behind the payload: an XTS chunk has
// its fingerprint instead.
func (h *Header) tag() int {
	if h.Kind == KindChunk && h.Suite == AES256XTS {
		return 0
	}
	return tagBytes
}

// payload returns the length of the ciphertext without tag, a multiple of
// id.Unit.
func (h *Header) payload() int { return h.Len - h.bytes() - h.tag() }

// Authenticator appends to dst the bytes of a sealed chunk, part or unit that
// commit to all of it, 32 to 48 of them, for a MAC chain over a log: who knows
// them knows which plaintext alone can come out of Open. They are the header
// and the tag; of an XTS chunk the header, since its fingerprint is verified
// whenever it is opened. Nothing here is verified. Errors: as ParseHeader, and
// ErrCorrupt if sealed is not exactly the length its header states.
func Authenticator(dst, sealed []byte) ([]byte, error) {
	h, err := parseWhole(sealed)
	if err != nil {
		return nil, err
	}
	dst = append(dst, sealed[:h.bytes()]...)
	return append(dst, sealed[h.Len-h.tag():]...), nil
}

// parseWhole is ParseHeader for a slice that holds one sealed thing exactly.
func parseWhole(sealed []byte) (Header, error) {
	h, err := ParseHeader(sealed)
	if err == nil && h.Len != len(sealed) {
		err = fmt.Errorf("%w: %d bytes where the header states %d", ErrCorrupt, len(sealed), h.Len)
	}
	return h, err
}
