package logrec

import (
	"encoding/binary"
	"fmt"
	"math"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// UpdatesMax bounds the updates, and the trims, of one result record.
	UpdatesMax = 16384
	// UpdateBytes is what an update takes in it.
	UpdateBytes = 8 + 16 + 8 + 2 + 4
)

const (
	resultVersion     = 1
	resultMarkVersion = 2 // of a record with a mark
	resultMore        = 1
	resultHeaderBytes = 4 + 8 + 16 + 8 + 8 + 4 + 4
	resultMarkBytes   = 16
)

// Mark is a mark in a disk's history: a snapshot that is taken, or the rollback
// to one. Without one it is zero.
type Mark struct {
	Kind     Type // 0, TypeSnapshot or TypeRollback
	Snapshot id.Snapshot
}

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
	// Mark comes after all else of the commit; its last record has it.
	Mark Mark
	// Trims apply before Updates.
	Trims   []Extent
	Updates []Update
}

// Append encodes the record at dst's end. It panics if there are more than
// UpdatesMax trims or updates, or a mark although more follow: Cut first.
func (r *Result) Append(dst []byte) []byte {
	marked := r.Mark != Mark{}
	if len(r.Updates) > UpdatesMax || len(r.Trims) > UpdatesMax || marked && r.More {
		panic("result record is not one of a cut")
	}
	var flags, version byte = 0, resultVersion
	if r.More {
		flags = resultMore
	}
	if marked {
		version = resultMarkVersion
	}
	be := binary.BigEndian
	dst = append(dst, version, flags, 0, 0)
	dst = be.AppendUint64(dst, uint64(r.Through))
	dst = append(dst, r.MAC[:]...)
	dst = be.AppendUint64(dst, uint64(r.Gen))
	dst = be.AppendUint64(dst, uint64(r.SizeBytes))
	dst = be.AppendUint32(dst, uint32(len(r.Trims)))
	dst = be.AppendUint32(dst, uint32(len(r.Updates)))
	if marked {
		dst = append(dst, byte(r.Mark.Kind), 0, 0, 0, 0, 0, 0, 0)
		dst = be.AppendUint64(dst, uint64(r.Mark.Snapshot))
	}
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
	if data[0] != resultVersion && data[0] != resultMarkVersion || data[1]&^resultMore != 0 || data[2] != 0 || data[3] != 0 {
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
	if data[0] == resultMarkVersion {
		var err error
		if r.Mark, rest, err = decodeResultMark(rest, r.More); err != nil {
			return nil, err
		}
	}
	if r.SizeBytes < 0 || r.SizeBytes > DiskBytesMax || trims > UpdatesMax || updates > UpdatesMax ||
		len(rest) != int(trims)*rangeBytes+int(updates)*UpdateBytes {
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
	for ; updates > 0; updates, rest = updates-1, rest[UpdateBytes:] {
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

// decodeResultMark takes the mark from the front of what follows the header.
func decodeResultMark(data []byte, more bool) (Mark, []byte, error) {
	if len(data) < resultMarkBytes {
		return Mark{}, nil, fmt.Errorf("result whose mark has %d bytes: %w", len(data), ErrCorrupt)
	}
	kind := binary.BigEndian.Uint64(data)
	m := Mark{Type(data[0]), id.Snapshot(binary.BigEndian.Uint64(data[8:]))}
	if kind != uint64(TypeSnapshot)<<56 && kind != uint64(TypeRollback)<<56 {
		return m, nil, fmt.Errorf("result with a mark of kind %x: %w", kind, ErrUnsupported)
	}
	if m.Snapshot == 0 || more {
		return m, nil, fmt.Errorf("result with a mark of snapshot %d, more records: %v: %w", m.Snapshot, more, ErrCorrupt)
	}
	return m, data[resultMarkBytes:], nil
}

// Cut divides a result of any length into records of at most UpdatesMax
// updates and trims each, More set on all but the last, which has the mark.
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
		if part.More {
			part.Mark = Mark{}
		}
		cut = append(cut, &part)
		if !part.More {
			return cut
		}
	}
}

// A full result must fit a log record.
const _ = uint(datanode.RecordBytesMax - resultHeaderBytes - resultMarkBytes - UpdatesMax*(UpdateBytes+rangeBytes))
