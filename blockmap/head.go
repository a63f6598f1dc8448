package blockmap

import (
	"encoding/binary"
	"fmt"

	"plinth/internal/id"
)

const (
	headVersion = 1
	headBytes   = 32
)

// head is the row that is written with every batch.
type head struct {
	gen     id.Gen // highest applied
	floor   id.Gen // no entry is of an older generation; genEnd without entries
	updates uint64 // ever applied, for estimates
	view    view
	state   []byte
}

func (h *head) encode() []byte {
	b := make([]byte, 0, headBytes+16*len(h.view)+len(h.state))
	b = binary.LittleEndian.AppendUint16(b, headVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.view)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.gen))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.floor))
	b = binary.LittleEndian.AppendUint64(b, h.updates)
	for _, in := range h.view {
		b = binary.LittleEndian.AppendUint64(b, uint64(in.From))
		b = binary.LittleEndian.AppendUint64(b, uint64(in.End))
	}
	return append(b, h.state...)
}

func parseHead(b []byte) (head, error) {
	if len(b) < headBytes {
		return head{}, fmt.Errorf("%w: a head of %d bytes", ErrCorrupt, len(b))
	}
	if v := binary.LittleEndian.Uint16(b); v != headVersion {
		return head{}, fmt.Errorf("%w: head version %d", ErrUnsupported, v)
	}
	if bits := binary.LittleEndian.Uint32(b[4:]); bits != 0 {
		return head{}, fmt.Errorf("%w: head features %#x", ErrUnsupported, bits)
	}
	intervals := int(binary.LittleEndian.Uint16(b[2:]))
	if intervals > intervalsMax || len(b) < headBytes+16*intervals ||
		len(b) > headBytes+16*intervals+StateBytesMax {
		return head{}, fmt.Errorf("%w: a head of %d bytes with %d intervals", ErrCorrupt, len(b), intervals)
	}
	h := head{
		gen:     id.Gen(binary.LittleEndian.Uint64(b[8:])),
		floor:   id.Gen(binary.LittleEndian.Uint64(b[16:])),
		updates: binary.LittleEndian.Uint64(b[24:]),
	}
	b = b[headBytes:]
	for range intervals {
		h.view = append(h.view, interval{
			From: id.Gen(binary.LittleEndian.Uint64(b)),
			End:  id.Gen(binary.LittleEndian.Uint64(b[8:])),
		})
		b = b[16:]
	}
	h.state = append([]byte{}, b...)
	if err := h.view.validate(); err != nil {
		return head{}, err
	}
	if !h.view.contains(h.gen) {
		return head{}, fmt.Errorf("%w: generation %d is not in the view", ErrCorrupt, h.gen)
	}
	return h, nil
}
