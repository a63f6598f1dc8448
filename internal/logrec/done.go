package logrec

import (
	"encoding/binary"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// ChangesMax and OwnersMax bound one record.
	ChangesMax = 2048
	OwnersMax  = 256

	doneVersion     = 1
	doneHeaderBytes = 4 + 4 + 4
	changeBytes     = 16 + 8 + 8
	ownerBytes      = 8 + 8
)

// Change says how far a change that a host has forwarded is done.
type Change struct {
	Tag id.Tag
	End int64 // byte offset in the disk; all of the change before it is in the log
}

// OwnerEnd says where what an owner has appended ends.
type OwnerEnd struct {
	Epoch id.Epoch
	Pos   id.Pos // of operations; the last of its that is in the log, or one known to be
}

// Done is a record of either stream. Behind operations it says for which change they
// are: in the same append, as its last record. In the results it repeats, before a
// result, what the operations that the result covers said.
type Done struct {
	Changes []Change
	Owners  []OwnerEnd
}

// Append encodes the record at dst's end. It panics beyond ChangesMax and OwnersMax.
func (d *Done) Append(dst []byte) []byte {
	if len(d.Changes) > ChangesMax || len(d.Owners) > OwnersMax {
		panic("record of what was done is too long")
	}
	be := binary.BigEndian
	dst = append(dst, doneVersion, 0, 0, 0)
	dst = be.AppendUint32(dst, uint32(len(d.Changes)))
	dst = be.AppendUint32(dst, uint32(len(d.Owners)))
	for i := range d.Changes {
		c := &d.Changes[i]
		dst = append(dst, c.Tag.Session[:]...)
		dst = be.AppendUint64(dst, c.Tag.Number)
		dst = be.AppendUint64(dst, uint64(c.End))
	}
	for _, o := range d.Owners {
		dst = be.AppendUint64(dst, uint64(o.Epoch))
		dst = be.AppendUint64(dst, uint64(o.Pos))
	}
	return dst
}

// DecodeDone decodes the record. Errors: ErrCorrupt, and ErrUnsupported for one that may
// be skipped.
func DecodeDone(data []byte) (*Done, error) {
	if len(data) < doneHeaderBytes {
		return nil, fmt.Errorf("record of what was done, of %d bytes: %w", len(data), ErrCorrupt)
	}
	be := binary.BigEndian
	if be.Uint32(data) != doneVersion<<24 {
		return nil, fmt.Errorf("record of what was done, of version %d, features %x: %w", data[0], data[1:4], ErrUnsupported)
	}
	changes, owners, rest := be.Uint32(data[4:]), be.Uint32(data[8:]), data[doneHeaderBytes:]
	if changes > ChangesMax || owners > OwnersMax || len(rest) != int(changes)*changeBytes+int(owners)*ownerBytes {
		return nil, fmt.Errorf("%d changes and %d owners in %d bytes: %w", changes, owners, len(data), ErrCorrupt)
	}
	d := &Done{}
	for ; changes > 0; changes, rest = changes-1, rest[changeBytes:] {
		c := Change{id.Tag{Session: [16]byte(rest), Number: be.Uint64(rest[16:])}, int64(be.Uint64(rest[24:]))}
		if c.Tag.Number>>id.TagNumberBits != 0 || c.End < 0 || c.End > DiskBytesMax {
			return nil, fmt.Errorf("change %d to %d: %w", c.Tag.Number, c.End, ErrCorrupt)
		}
		d.Changes = append(d.Changes, c)
	}
	for ; owners > 0; owners, rest = owners-1, rest[ownerBytes:] {
		d.Owners = append(d.Owners, OwnerEnd{id.Epoch(be.Uint64(rest)), id.Pos(be.Uint64(rest[8:]))})
	}
	return d, nil
}

const _ = uint(datanode.RecordBytesMax - doneHeaderBytes - ChangesMax*changeBytes - OwnersMax*ownerBytes)
