package logrec

import (
	"encoding/binary"
	"errors"
	"fmt"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

var (
	// ErrCorrupt: a record does not decode or its MAC is not the chain's. The
	// caller refuses to open the disk and says where.
	ErrCorrupt = errors.New("log record is corrupt")
	// ErrUnsupported: a record of a type or version that a newer plinth wrote.
	ErrUnsupported = errors.New("log record needs a newer plinth")
)

// Type says what a record is. Values are durable.
type Type uint8

const (
	TypeWrite    Type = 1
	TypePart     Type = 2
	TypeZero     Type = 3
	TypeTrim     Type = 4
	TypeSnapshot Type = 5
	TypeResize   Type = 6
	TypeRollback Type = 7
	TypeResult   Type = 16
	TypePatch    Type = 17

	typeOptional Type = 128 // this and above may be skipped
	TypeDone     Type = 128 // of either stream
)

// Optional reports whether a reader that does not know the type may skip it.
func (t Type) Optional() bool { return t >= typeOptional }

const (
	writeHeaderBytes = 12
	partHeaderBytes  = 12
	rangeBytes       = 16
	markBytes        = 24

	// DiskBytesMax bounds a disk's size, and so every offset in a record.
	DiskBytesMax = 1 << 56
)

// Op is a decoded record of the operations stream. Slices lie in the record.
type Op struct {
	Type   Type
	First  id.LBA   // write: of the first chunk
	Chunks [][]byte // write: sealed chunks of consecutive LBAs
	Off    int64    // part, zero, trim: byte offset in the disk
	Len    int64    // part, zero, trim: bytes; resize, rollback: the disk's size
	Sealed []byte   // part
	// Snapshot is the one that is taken or gone back to, Group the first of those
	// taken at the same instant, 0 of one alone.
	Snapshot id.Snapshot
	Group    id.Snapshot
}

// AppendWrite starts a write record at dst's end: its header for n chunks. The
// caller appends the n sealed chunks.
func AppendWrite(dst []byte, first id.LBA, n int) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(first))
	return binary.BigEndian.AppendUint32(dst, uint32(n))
}

// AppendPart starts a part record: its header. The caller appends the sealed
// part.
func AppendPart(dst []byte, off int64, plainBytes int) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(off))
	return binary.BigEndian.AppendUint32(dst, uint32(plainBytes))
}

// AppendRange encodes a zero or trim record.
func AppendRange(dst []byte, off, n int64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(off))
	return binary.BigEndian.AppendUint64(dst, uint64(n))
}

// AppendResize encodes a resize record.
func AppendResize(dst []byte, size int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(size))
}

// AppendSnapshot encodes a snapshot record.
func AppendSnapshot(dst []byte, s, group id.Snapshot) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(s))
	dst = binary.BigEndian.AppendUint64(dst, uint64(group))
	return binary.BigEndian.AppendUint64(dst, 0)
}

// AppendRollback encodes a rollback record; size is the disk's after it.
func AppendRollback(dst []byte, s id.Snapshot, size int64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(s))
	dst = binary.BigEndian.AppendUint64(dst, uint64(size))
	return binary.BigEndian.AppendUint64(dst, 0)
}

// DecodeOp decodes a record of the operations stream. It checks structure and
// bounds, not authenticity. Errors: ErrCorrupt, ErrUnsupported.
func DecodeOp(t Type, data []byte) (Op, error) {
	op := Op{Type: t}
	switch t {
	case TypeWrite:
		return decodeWrite(data)
	case TypePart:
		if len(data) <= partHeaderBytes {
			return op, fmt.Errorf("part of %d bytes: %w", len(data), ErrCorrupt)
		}
		off, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint32(data[8:])
		if off > DiskBytesMax || n == 0 || n > chunk.PlainBytesMax {
			return op, fmt.Errorf("part of %d bytes at %d: %w", n, off, ErrCorrupt)
		}
		op.Off, op.Len, op.Sealed = int64(off), int64(n), data[partHeaderBytes:]
		return op, nil
	case TypeZero, TypeTrim:
		if len(data) != rangeBytes {
			return op, fmt.Errorf("range record of %d bytes: %w", len(data), ErrCorrupt)
		}
		off, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
		if off > DiskBytesMax || n > DiskBytesMax-off || n == 0 {
			return op, fmt.Errorf("range of %d bytes at %d: %w", n, off, ErrCorrupt)
		}
		op.Off, op.Len = int64(off), int64(n)
		return op, nil
	case TypeResize:
		if len(data) != 8 || binary.BigEndian.Uint64(data) > DiskBytesMax {
			return op, fmt.Errorf("resize record: %w", ErrCorrupt)
		}
		op.Len = int64(binary.BigEndian.Uint64(data))
		return op, nil
	case TypeSnapshot, TypeRollback:
		return decodeMark(t, data)
	}
	return op, fmt.Errorf("operation of type %d: %w", t, ErrUnsupported)
}

func decodeMark(t Type, data []byte) (Op, error) {
	op := Op{Type: t}
	if len(data) != markBytes || binary.BigEndian.Uint64(data) == 0 {
		return op, fmt.Errorf("mark record of %d bytes: %w", len(data), ErrCorrupt)
	}
	op.Snapshot = id.Snapshot(binary.BigEndian.Uint64(data))
	second, features := binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data[16:])
	if features != 0 {
		return op, fmt.Errorf("mark with features %#x: %w", features, ErrUnsupported)
	}
	if t == TypeSnapshot {
		op.Group = id.Snapshot(second)
		return op, nil
	}
	if second > DiskBytesMax {
		return op, fmt.Errorf("rollback to %d bytes: %w", second, ErrCorrupt)
	}
	op.Len = int64(second)
	return op, nil
}

func decodeWrite(data []byte) (Op, error) {
	op := Op{Type: TypeWrite}
	if len(data) < writeHeaderBytes {
		return op, fmt.Errorf("write of %d bytes: %w", len(data), ErrCorrupt)
	}
	first, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint32(data[8:])
	rest := data[writeHeaderBytes:]
	if n == 0 || int(n) > len(rest)/id.Unit || first > DiskBytesMax/uint64(chunk.SizeMin) {
		return op, fmt.Errorf("write of %d chunks at chunk %d: %w", n, first, ErrCorrupt)
	}
	op.First = id.LBA(first)
	op.Chunks = make([][]byte, 0, n)
	for range n {
		h, err := chunk.ParseHeader(rest)
		if err != nil || h.Len > len(rest) || h.Kind != chunk.KindChunk {
			return op, fmt.Errorf("write at chunk %d: chunk of %d bytes, %w (%v)", first, h.Len, ErrCorrupt, err)
		}
		op.Chunks = append(op.Chunks, rest[:h.Len:h.Len])
		rest = rest[h.Len:]
	}
	if len(rest) != 0 {
		return op, fmt.Errorf("write at chunk %d: %d bytes too many: %w", first, len(rest), ErrCorrupt)
	}
	return op, nil
}
