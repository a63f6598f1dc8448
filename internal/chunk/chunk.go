package chunk

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"

	"plinth/internal/id"
)

var (
	// ErrCorrupt is returned by ParseHeader and the Open methods for bytes that
	// are malformed, do not authenticate, or do not hold what was asked for. The
	// caller reads another copy or reconstructs; it never uses the bytes.
	ErrCorrupt = errors.New("sealed data is corrupt")

	// ErrUnknownKey is returned by Keys for a key id that the pool has no key
	// for, and passed on by the Open methods.
	ErrUnknownKey = errors.New("unknown data key")

	// ErrUnsupported is returned by ParseHeader and the Open methods for a
	// version, suite, codec, kind or flag this program does not know: a newer
	// program wrote it, or the header is damaged (a header is understood before
	// it is authenticated, so try another copy as for ErrCorrupt).
	ErrUnsupported = errors.New("sealed data has an unsupported format")
)

// Suite is a cipher suite, chosen per disk and recorded in each header.
type Suite uint8

const (
	// AES256GCM encrypts and authenticates. It is the default.
	AES256GCM Suite = 1
	// AES256XTS encrypts only: a chunk's fingerprint is verified whenever it is
	// opened, and parts carry a keyed hash.
	AES256XTS Suite = 2
)

// ParseSuite returns the suite of that name, as flags spell it.
func ParseSuite(name string) (Suite, error) {
	for _, s := range []Suite{AES256GCM, AES256XTS} {
		if name == s.String() {
			return s, nil
		}
	}
	return 0, fmt.Errorf("cipher suite %q is neither %s nor %s", name, AES256GCM, AES256XTS)
}

func (s Suite) String() string {
	switch s {
	case AES256GCM:
		return "aes-256-gcm"
	case AES256XTS:
		return "aes-256-xts"
	}
	return fmt.Sprintf("suite(%d)", uint8(s))
}

// Valid reports whether this program knows the suite.
func (s Suite) Valid() bool { return s == AES256GCM || s == AES256XTS }

// Codec says how the plaintext was compressed before encryption.
type Codec uint8

const (
	Raw Codec = 0 // stored as it is
	S2  Codec = 1 // one S2 block
)

func (c Codec) String() string {
	switch c {
	case Raw:
		return "raw"
	case S2:
		return "s2"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Kind says what was sealed, and so what its associated data is.
type Kind uint8

const (
	KindChunk Kind = 1 // a whole chunk; associated data: the header with its fingerprint
	KindPart  Kind = 2 // a write of part of a chunk; associated data: header, PartAD
	KindUnit  Kind = 3 // a unit of a checkpoint object; associated data: header, UnitAD
)

func (k Kind) String() string {
	switch k {
	case KindChunk:
		return "chunk"
	case KindPart:
		return "part"
	case KindUnit:
		return "unit"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

const (
	// PlainBytesMax is the largest plaintext of anything sealed.
	PlainBytesMax = 64 << 10

	// SealedBytesMax is the largest sealed length that ParseHeader accepts.
	SealedBytesMax = chunkHeaderBytes + PlainBytesMax + tagBytes

	headerBytes      = 16 // of a part or unit
	chunkHeaderBytes = 32 // of a chunk: with fingerprint
	tagBytes         = 16
)

// SealedCap returns the spare capacity, in bytes, with which sealing a
// plaintext of that many bytes does not have to grow its destination.
func SealedCap(plainBytes int) int {
	return chunkHeaderBytes + s2.MaxEncodedLen(plainBytes) + id.Unit - 1 + tagBytes
}

// UnitSealedBytes returns the exact sealed length of a unit of that many
// plaintext bytes: units are never compressed, so that unit n of an object
// lies at n times the sealed length of a full one.
func UnitSealedBytes(plainBytes int) int {
	return headerBytes + plainBytes + padding(plainBytes) + tagBytes
}

// padding returns how many zero bytes bring n to a multiple of id.Unit.
func padding(n int) int { return -n & (id.Unit - 1) }
