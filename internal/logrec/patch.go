package logrec

import (
	"encoding/binary"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
)

// PatchesMax bounds the patches of one record.
const PatchesMax = 4096

const (
	patchVersion     = 1
	patchHeaderBytes = 8
	patchBytes       = 8 + 8 + 8 + 2 + 8 + 2 + 4
)

// Patch says that the sealed chunk of one version of a chunk has moved. It
// applies where the version still names the old slot.
type Patch struct {
	LBA     id.LBA
	Gen     id.Gen
	Segment id.Segment // that it was in
	Slot    id.Slot
	To      id.Ref
}

// AppendPatches encodes a patch record at dst's end: one step of the map. It
// panics unless there are 1 to PatchesMax patches.
func AppendPatches(dst []byte, ps []Patch) []byte {
	if len(ps) == 0 || len(ps) > PatchesMax {
		panic("patch record is empty or too long")
	}
	be := binary.BigEndian
	dst = append(dst, patchVersion, 0, 0, 0)
	dst = be.AppendUint32(dst, uint32(len(ps)))
	for i := range ps {
		p := &ps[i]
		dst = be.AppendUint64(dst, uint64(p.LBA))
		dst = be.AppendUint64(dst, uint64(p.Gen))
		dst = be.AppendUint64(dst, uint64(p.Segment))
		dst = be.AppendUint16(dst, uint16(p.Slot))
		dst = be.AppendUint64(dst, uint64(p.To.Segment))
		dst = be.AppendUint16(dst, uint16(p.To.Slot))
		dst = be.AppendUint32(dst, uint32(p.To.Location))
	}
	return dst
}

// DecodePatches decodes a patch record. Errors: ErrCorrupt, ErrUnsupported.
func DecodePatches(data []byte) ([]Patch, error) {
	if len(data) < patchHeaderBytes {
		return nil, fmt.Errorf("patches of %d bytes: %w", len(data), ErrCorrupt)
	}
	be := binary.BigEndian
	if be.Uint32(data) != patchVersion<<24 {
		return nil, fmt.Errorf("patches of version %d, features %x: %w", data[0], data[1:4], ErrUnsupported)
	}
	n, rest := be.Uint32(data[4:]), data[patchHeaderBytes:]
	if n == 0 || n > PatchesMax || len(rest) != int(n)*patchBytes {
		return nil, fmt.Errorf("%d patches in %d bytes: %w", n, len(data), ErrCorrupt)
	}
	ps := make([]Patch, n)
	for i := range ps {
		ps[i] = Patch{
			LBA: id.LBA(be.Uint64(rest)), Gen: id.Gen(be.Uint64(rest[8:])),
			Segment: id.Segment(be.Uint64(rest[16:])), Slot: id.Slot(be.Uint16(rest[24:])),
			To: id.Ref{
				Segment: id.Segment(be.Uint64(rest[26:])), Slot: id.Slot(be.Uint16(rest[34:])),
				Location: id.Location(be.Uint32(rest[36:])),
			},
		}
		if ps[i].Segment == 0 || ps[i].To.Segment == 0 {
			return nil, fmt.Errorf("patch of chunk %d from segment %s to %s: %w", ps[i].LBA, ps[i].Segment, ps[i].To.Segment, ErrCorrupt)
		}
		rest = rest[patchBytes:]
	}
	return ps, nil
}

const _ = uint(datanode.RecordBytesMax - patchHeaderBytes - PatchesMax*patchBytes)
