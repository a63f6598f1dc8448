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

// featureMarks is set in the head of a map that has or had snapshots: whoever
// does not know them would delete what they show.
const featureMarks = 1 << 0

// head is the row that is written with every batch.
type head struct {
	gen     id.Gen // highest applied
	floor   id.Gen // no entry is of an older generation; genEnd without entries
	updates uint64 // ever applied, for estimates
	marked  bool   // there were snapshots, in this map or in one that it began with
	view    view
	state   []byte
}

func (h *head) encode() []byte {
	b := make([]byte, 0, headBytes+intervalBytes*len(h.view)+len(h.state))
	features := uint32(0)
	if h.marked {
		features = featureMarks
	}
	b = binary.LittleEndian.AppendUint16(b, headVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.view)))
	b = binary.LittleEndian.AppendUint32(b, features)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.gen))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.floor))
	b = binary.LittleEndian.AppendUint64(b, h.updates)
	return append(h.view.append(b), h.state...)
}

func parseHead(b []byte) (head, error) {
	if len(b) < headBytes {
		return head{}, fmt.Errorf("%w: a head of %d bytes", ErrCorrupt, len(b))
	}
	if v := binary.LittleEndian.Uint16(b); v != headVersion {
		return head{}, fmt.Errorf("%w: head version %d", ErrUnsupported, v)
	}
	features := binary.LittleEndian.Uint32(b[4:])
	if features&^featureMarks != 0 {
		return head{}, fmt.Errorf("%w: head features %#x", ErrUnsupported, features)
	}
	h := head{
		gen:     id.Gen(binary.LittleEndian.Uint64(b[8:])),
		floor:   id.Gen(binary.LittleEndian.Uint64(b[16:])),
		updates: binary.LittleEndian.Uint64(b[24:]),
		marked:  features&featureMarks != 0,
	}
	v, rest, err := parseView(b[headBytes:], int(binary.LittleEndian.Uint16(b[2:])))
	if err != nil {
		return head{}, err
	}
	if len(rest) > StateBytesMax {
		return head{}, fmt.Errorf("%w: a state of %d bytes", ErrCorrupt, len(rest))
	}
	h.view, h.state = v, append([]byte{}, rest...)
	if h.view.ends() || !h.view.contains(h.gen) {
		return head{}, fmt.Errorf("%w: generation %d under view %v", ErrCorrupt, h.gen, h.view)
	}
	return h, nil
}
