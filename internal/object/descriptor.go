package object

import (
	"encoding/binary"
	"fmt"

	"plinth/internal/id"
)

const (
	descriptorVersion = 1
	descriptorBytes   = 44
	pieceBytes        = 12

	bytesMax    = 1 << 40
	segmentsMax = 1 << 20
)

// descriptor names an object and where it lies.
type descriptor struct {
	id       [24]byte
	bytes    int64
	segments []piece
}

type piece struct {
	segment       id.Segment
	fragmentBytes uint32
}

func objectID(disk id.Disk, epoch id.Epoch, count uint64) (b [24]byte) {
	binary.BigEndian.PutUint64(b[:], uint64(disk))
	binary.BigEndian.PutUint64(b[8:], uint64(epoch))
	binary.BigEndian.PutUint64(b[16:], count)
	return b
}

func (d *descriptor) disk() id.Disk { return id.Disk(binary.BigEndian.Uint64(d.id[:])) }

func (d *descriptor) units() uint64 { return uint64((d.bytes + UnitBytes - 1) / UnitBytes) }

// unitLen returns the plaintext length of a unit.
func (d *descriptor) unitLen(u uint64) int { return int(min(UnitBytes, d.bytes-int64(u)*UnitBytes)) }

func (d *descriptor) marshal() []byte {
	be := binary.BigEndian
	b := append(make([]byte, 0, descriptorBytes+pieceBytes*len(d.segments)), descriptorVersion, 0, 0, 0)
	b = append(b, d.id[:]...)
	b = be.AppendUint64(b, uint64(d.bytes))
	b = be.AppendUint32(b, UnitBytes)
	b = be.AppendUint32(b, uint32(len(d.segments)))
	for _, p := range d.segments {
		b = be.AppendUint64(b, uint64(p.segment))
		b = be.AppendUint32(b, p.fragmentBytes)
	}
	return b
}

func unmarshal(b []byte) (*descriptor, error) {
	be := binary.BigEndian
	if len(b) < descriptorBytes {
		return nil, fmt.Errorf("descriptor of %d bytes: %w", len(b), ErrCorrupt)
	}
	if b[0] != descriptorVersion || b[1]|b[2]|b[3] != 0 || be.Uint32(b[36:]) != UnitBytes {
		return nil, fmt.Errorf("object of version %d, unit %d: a newer plinth wrote it", b[0], be.Uint32(b[36:]))
	}
	size, n := be.Uint64(b[28:]), be.Uint32(b[40:])
	rest := b[descriptorBytes:]
	if size > bytesMax || n > segmentsMax || len(rest) != int(n)*pieceBytes {
		return nil, fmt.Errorf("descriptor of %d bytes in %d segments: %w", size, n, ErrCorrupt)
	}
	d := &descriptor{id: [24]byte(b[4:28]), bytes: int64(size)}
	for ; len(rest) > 0; rest = rest[pieceBytes:] {
		d.segments = append(d.segments, piece{id.Segment(be.Uint64(rest)), be.Uint32(rest[8:])})
	}
	return d, nil
}
