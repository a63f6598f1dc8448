package disk

import (
	"encoding/binary"
	"fmt"

	"plinth/internal/id"
	"plinth/internal/logrec"
)

const (
	stateVersion = 1
	stateBytes   = 64
)

// state is how far the map has come: it lies in each of the map's batches.
type state struct {
	through    id.Pos // operations up to here are in the map
	throughMAC logrec.MAC
	result     id.Pos // results up to here are in the map
	resultMAC  logrec.MAC
	bytes      int64 // the disk's size
}

func (s state) marshal() []byte {
	be := binary.BigEndian
	b := append(make([]byte, 0, stateBytes), stateVersion, 0, 0, 0, 0, 0, 0, 0)
	b = be.AppendUint64(b, uint64(s.through))
	b = append(b, s.throughMAC[:]...)
	b = be.AppendUint64(b, uint64(s.result))
	b = append(b, s.resultMAC[:]...)
	return be.AppendUint64(b, uint64(s.bytes))
}

func unmarshalState(b []byte) (state, error) {
	be := binary.BigEndian
	if len(b) != stateBytes {
		return state{}, fmt.Errorf("map state of %d bytes, not %d: %w", len(b), stateBytes, ErrCorrupt)
	}
	if be.Uint64(b) != stateVersion<<56 { // the zero bytes are for features
		return state{}, fmt.Errorf("map state of version %d, features %x: a newer plinth wrote it", b[0], b[1:8])
	}
	s := state{
		through:    id.Pos(be.Uint64(b[8:])),
		throughMAC: logrec.MAC(b[16:32]),
		result:     id.Pos(be.Uint64(b[32:])),
		resultMAC:  logrec.MAC(b[40:56]),
		bytes:      int64(be.Uint64(b[56:])),
	}
	if s.bytes < 0 || s.bytes > logrec.DiskBytesMax {
		return state{}, fmt.Errorf("map state says %d bytes: %w", s.bytes, ErrCorrupt)
	}
	return s, nil
}
