package chunk

import (
	"encoding/binary"

	"plinth/internal/id"
)

const adBytes = 32

// PartAD says where a part belongs. A part opens only under the same.
type PartAD struct {
	Disk   id.Disk
	Epoch  id.Epoch
	Pos    id.Pos
	Offset uint64 // first byte, within the disk
}

func (a PartAD) bytes() (b [adBytes]byte) {
	binary.LittleEndian.PutUint64(b[0:], uint64(a.Disk))
	binary.LittleEndian.PutUint64(b[8:], uint64(a.Epoch))
	binary.LittleEndian.PutUint64(b[16:], uint64(a.Pos))
	binary.LittleEndian.PutUint64(b[24:], a.Offset)
	return b
}

// UnitAD says which unit of which object a unit is. It opens only under the
// same. Where an object ends is for its manifest to say.
type UnitAD struct {
	Object [24]byte // the object's name, unique in the pool
	Unit   uint64   // 0, 1, 2 …
}

func (a UnitAD) bytes() (b [adBytes]byte) {
	copy(b[:], a.Object[:])
	binary.LittleEndian.PutUint64(b[24:], a.Unit)
	return b
}
