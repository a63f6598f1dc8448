package logrec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"plinth/datanode"
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
	TypeWrite  Type = 1
	TypePart   Type = 2
	TypeZero   Type = 3
	TypeTrim   Type = 4
	TypeResize Type = 6
	TypeResult Type = 16

	typeOptional Type = 128 // this and above may be skipped
)

// Optional reports whether a reader that does not know the type may skip it.
func (t Type) Optional() bool { return t >= typeOptional }

const (
	writeHeaderBytes = 12
	partHeaderBytes  = 12
	rangeBytes       = 16

	// DiskBytesMax bounds a disk's size, and so every offset in a record.
	DiskBytesMax = 1 << 56
)

// Op is a decoded record of the operations stream. Slices lie in the record.
type Op struct {
	Type   Type
	First  id.LBA   // write: of the first chunk
	Chunks [][]byte // write: sealed chunks of consecutive LBAs
	Off    int64    // part, zero, trim: byte offset in the disk
	Len    int64    // part, zero, trim: bytes; resize: the disk's size
	Sealed []byte   // part
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
	}
	return op, fmt.Errorf("operation of type %d: %w", t, ErrUnsupported)
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

// UpdatesMax bounds the updates, and the trims, of one result record.
const UpdatesMax = 16384

const (
	resultVersion     = 1
	resultMore        = 1
	resultHeaderBytes = 4 + 8 + 16 + 8 + 8 + 4 + 4
	updateBytes       = 8 + 16 + 8 + 2 + 4
)

// Update is what a chunk of the disk became. A zero Ref is a zero chunk.
type Update struct {
	LBA         id.LBA
	Fingerprint id.Fingerprint
	Ref         id.Ref
}

// Extent is a half-open run of chunks.
type Extent struct{ First, End id.LBA }

// Result is one record of the results stream.
type Result struct {
	// More says that further records of the same commit follow.
	More bool
	// Through is the last operation that the commit covers, MAC the operations
	// chain's there.
	Through id.Pos
	MAC     [16]byte
	// Gen is the map's generation for the trims and updates.
	Gen id.Gen
	// SizeBytes is the disk's size after the operation at Through.
	SizeBytes int64
	// Trims apply before Updates.
	Trims   []Extent
	Updates []Update
}

// Append encodes the record at dst's end. It panics if there are more than
// UpdatesMax trims or updates: Cut first.
func (r *Result) Append(dst []byte) []byte {
	if len(r.Updates) > UpdatesMax || len(r.Trims) > UpdatesMax {
		panic("result record is too long")
	}
	var flags byte
	if r.More {
		flags = resultMore
	}
	be := binary.BigEndian
	dst = append(dst, resultVersion, flags, 0, 0)
	dst = be.AppendUint64(dst, uint64(r.Through))
	dst = append(dst, r.MAC[:]...)
	dst = be.AppendUint64(dst, uint64(r.Gen))
	dst = be.AppendUint64(dst, uint64(r.SizeBytes))
	dst = be.AppendUint32(dst, uint32(len(r.Trims)))
	dst = be.AppendUint32(dst, uint32(len(r.Updates)))
	for _, t := range r.Trims {
		dst = be.AppendUint64(dst, uint64(t.First))
		dst = be.AppendUint64(dst, uint64(t.End))
	}
	for _, u := range r.Updates {
		dst = be.AppendUint64(dst, uint64(u.LBA))
		dst = append(dst, u.Fingerprint[:]...)
		dst = be.AppendUint64(dst, uint64(u.Ref.Segment))
		dst = be.AppendUint16(dst, uint16(u.Ref.Slot))
		dst = be.AppendUint32(dst, uint32(u.Ref.Location))
	}
	return dst
}

// DecodeResult decodes a result record. Errors: ErrCorrupt, ErrUnsupported.
func DecodeResult(data []byte) (*Result, error) {
	if len(data) < resultHeaderBytes {
		return nil, fmt.Errorf("result of %d bytes: %w", len(data), ErrCorrupt)
	}
	if data[0] != resultVersion || data[1]&^resultMore != 0 || data[2] != 0 || data[3] != 0 {
		return nil, fmt.Errorf("result version %d, flags %#x: %w", data[0], data[1], ErrUnsupported)
	}
	be := binary.BigEndian
	r := &Result{
		More:      data[1]&resultMore != 0,
		Through:   id.Pos(be.Uint64(data[4:])),
		MAC:       [16]byte(data[12:28]),
		Gen:       id.Gen(be.Uint64(data[28:])),
		SizeBytes: int64(be.Uint64(data[36:])),
	}
	trims, updates := be.Uint32(data[44:]), be.Uint32(data[48:])
	rest := data[resultHeaderBytes:]
	if r.SizeBytes < 0 || r.SizeBytes > DiskBytesMax || trims > UpdatesMax || updates > UpdatesMax ||
		len(rest) != int(trims)*rangeBytes+int(updates)*updateBytes {
		return nil, fmt.Errorf("result of %d trims, %d updates in %d bytes: %w", trims, updates, len(data), ErrCorrupt)
	}
	for ; trims > 0; trims, rest = trims-1, rest[rangeBytes:] {
		e := Extent{id.LBA(be.Uint64(rest)), id.LBA(be.Uint64(rest[8:]))}
		if e.First >= e.End || e.End > math.MaxInt64 {
			return nil, fmt.Errorf("result trims chunks %d to %d: %w", e.First, e.End, ErrCorrupt)
		}
		r.Trims = append(r.Trims, e)
	}
	r.Updates = make([]Update, 0, updates)
	for ; updates > 0; updates, rest = updates-1, rest[updateBytes:] {
		r.Updates = append(r.Updates, Update{
			LBA:         id.LBA(be.Uint64(rest)),
			Fingerprint: id.Fingerprint(rest[8:24]),
			Ref: id.Ref{
				Segment:  id.Segment(be.Uint64(rest[24:])),
				Slot:     id.Slot(be.Uint16(rest[32:])),
				Location: id.Location(be.Uint32(rest[34:])),
			},
		})
	}
	return r, nil
}

// Cut divides a result of any length into records of at most UpdatesMax
// updates and trims each, More set on all but the last.
func (r *Result) Cut() []*Result {
	var cut []*Result
	trims, updates := r.Trims, r.Updates
	for {
		part := *r
		nt, nu := min(len(trims), UpdatesMax), 0
		if nt == len(trims) { // trims come before every update
			nu = min(len(updates), UpdatesMax)
		}
		part.Trims, part.Updates = trims[:nt], updates[:nu]
		trims, updates = trims[nt:], updates[nu:]
		part.More = len(trims)+len(updates) > 0
		cut = append(cut, &part)
		if !part.More {
			return cut
		}
	}
}

// A full result must fit a log record.
const _ = uint(datanode.RecordBytesMax - resultHeaderBytes - UpdatesMax*(updateBytes+rangeBytes))
