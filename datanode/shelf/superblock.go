package shelf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	superblockMagic   = "PLNTNODE"
	superblockVersion = 1
	superblockBytes   = 64
	superblockSum     = superblockBytes - 4

	spindlesMax = 1 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superblock is the content of the file "node": what the node was made as.
type superblock struct {
	poolID       [16]byte
	spindles     int // 1 to spindlesMax
	logBytes     int64
	spindleBytes int64
}

func (s superblock) encode() []byte {
	b := make([]byte, superblockBytes)
	copy(b, superblockMagic)
	binary.LittleEndian.PutUint16(b[8:], superblockVersion)
	binary.LittleEndian.PutUint16(b[14:], uint16(s.spindles))
	copy(b[16:], s.poolID[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(s.logBytes))
	binary.LittleEndian.PutUint64(b[40:], uint64(s.spindleBytes))
	binary.LittleEndian.PutUint32(b[superblockSum:], crc32.Checksum(b[:superblockSum], castagnoli))
	return b
}

// decodeSuperblock is the reverse of encode. Errors: ErrForeign, ErrNewer,
// ErrDamaged.
func decodeSuperblock(b []byte) (superblock, error) {
	if len(b) < 12 || string(b[:8]) != superblockMagic {
		return superblock{}, fmt.Errorf("%w: it does not begin with %q", ErrForeign, superblockMagic)
	}
	if v, f := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:]); v != superblockVersion || f != 0 {
		return superblock{}, fmt.Errorf("%w: version %d with features %#x, this program knows version %d without any",
			ErrNewer, v, f, superblockVersion)
	}
	if len(b) != superblockBytes {
		return superblock{}, fmt.Errorf("%w: %d bytes, not %d", ErrDamaged, len(b), superblockBytes)
	}
	if crc32.Checksum(b[:superblockSum], castagnoli) != binary.LittleEndian.Uint32(b[superblockSum:]) {
		return superblock{}, fmt.Errorf("%w: its checksum does not match", ErrDamaged)
	}
	s := superblock{
		poolID:       [16]byte(b[16:32]),
		spindles:     int(binary.LittleEndian.Uint16(b[14:])),
		logBytes:     int64(binary.LittleEndian.Uint64(b[32:])),
		spindleBytes: int64(binary.LittleEndian.Uint64(b[40:])),
	}
	if s.spindles < 1 || s.spindles > spindlesMax || s.logBytes <= 0 || s.spindleBytes <= 0 ||
		!bytes.Equal(b[48:superblockSum], make([]byte, superblockSum-48)) {
		return superblock{}, fmt.Errorf("%w: its fields are out of bounds", ErrDamaged)
	}
	return s, nil
}

// readSuperblock reads the node's superblock. Errors: ErrNoNode, those of
// decodeSuperblock and of the file system.
func (p place) readSuperblock() (superblock, error) {
	path := p.path(superblockName)
	f, err := p.fs.Open(path)
	if isNotExist(err) {
		return superblock{}, fmt.Errorf("%w in %s: create one there, or name the directory that has it", ErrNoNode, p.dir)
	}
	if err != nil {
		return superblock{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, superblockBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return superblock{}, fmt.Errorf("read %s: %w", path, err)
	}
	s, err := decodeSuperblock(b)
	if err != nil {
		return superblock{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// writeSuperblock makes the superblock appear, whole and durable.
func (p place) writeSuperblock(s superblock) error { return p.writeFile(superblockName, s.encode()) }
