package writelog

import (
	"fmt"
	"hash/crc32"
)

const (
	pageBytes = 4096
	// dataStart is where the snapshot's frame lies: a header's two copies take a
	// page each, so that no single bad sector loses a file.
	dataStart   = 2 * pageBytes
	headerBytes = 128
	superBytes  = 64

	fileMagic     = "plinlogF"
	superMagic    = "plinlogS"
	formatVersion = 1
	// featureEarly is the bit of header.early.
	featureEarly = 1
)

// header is what a file begins with.
type header struct {
	seq      uint64 // 1, 2, 3 …, rising with each file of the log
	salt     uint64
	pool     [16]byte
	boot     [16]byte
	prevSeq  uint64 // the head before this one, 0 for none
	prevEnd  uint32 // how far that is valid and, unless early, stable
	slot     uint32
	fileSize uint64
	// early: the file began before the one before it was stable. It was as soon as a
	// frame tells that some of this file is.
	early bool
}

func (h *header) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, fileMagic)
	le.PutUint16(b[8:], formatVersion)
	if h.early {
		le.PutUint32(b[12:], featureEarly)
	}
	le.PutUint64(b[16:], h.seq)
	le.PutUint64(b[24:], h.salt)
	copy(b[32:], h.pool[:])
	copy(b[48:], h.boot[:])
	le.PutUint64(b[64:], h.prevSeq)
	le.PutUint32(b[72:], h.prevEnd)
	le.PutUint32(b[76:], h.slot)
	le.PutUint64(b[80:], h.fileSize)
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// parseFileHeader decodes one copy of a header. Errors: errNoFrame for bytes
// that are none, errUnsupported.
func parseFileHeader(b []byte) (header, error) {
	if err := checkEnvelope(b, fileMagic, headerBytes, featureEarly); err != nil {
		return header{}, err
	}
	return header{
		seq: le.Uint64(b[16:]), salt: le.Uint64(b[24:]),
		pool: [16]byte(b[32:48]), boot: [16]byte(b[48:64]),
		prevSeq: le.Uint64(b[64:]), prevEnd: le.Uint32(b[72:]), slot: le.Uint32(b[76:]),
		fileSize: le.Uint64(b[80:]), early: le.Uint32(b[12:])&featureEarly != 0,
	}, nil
}

// super is what a log is created with.
type super struct {
	pool [16]byte
	geometry
}

func (s *super) encode() []byte {
	b := make([]byte, superBytes)
	copy(b, superMagic)
	le.PutUint16(b[8:], formatVersion)
	copy(b[16:], s.pool[:])
	le.PutUint64(b[32:], uint64(s.fileBytes))
	le.PutUint32(b[40:], uint32(s.slots))
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// parseSuper decodes a superblock and checks its geometry. Errors: errNoFrame,
// errUnsupported, a bad geometry.
func parseSuper(b []byte) (super, error) {
	if err := checkEnvelope(b, superMagic, superBytes, 0); err != nil {
		return super{}, err
	}
	s := super{pool: [16]byte(b[16:32])}
	s.fileBytes = int64(le.Uint64(b[32:]))
	s.slots = int(le.Uint32(b[40:]))
	return s, s.geometry.validate()
}

// checkEnvelope checks magic, version, that no feature bits but the known are set,
// and the checksum in the last 4 of size bytes.
func checkEnvelope(b []byte, magic string, size int, known uint32) error {
	if len(b) < size || string(b[:8]) != magic || le.Uint32(b[size-4:]) != crc32.Checksum(b[:size-4], castagnoli) {
		return errNoFrame
	}
	if v := le.Uint16(b[8:]); v != formatVersion {
		return fmt.Errorf("version %d: %w", v, errUnsupported)
	}
	if bits := le.Uint32(b[12:]); bits&^known != 0 {
		return fmt.Errorf("required features %#x: %w", bits, errUnsupported)
	}
	return nil
}
