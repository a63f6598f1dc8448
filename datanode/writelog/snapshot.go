package writelog

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	snapshotHeadBytes = 8
	snapshotFileBytes = 24
	snapshotDiskBytes = 64
	// posMax bounds floors, so that appends never overflow a position.
	posMax = 1 << 62
)

// fileRef names a pinned file in a snapshot.
type fileRef struct {
	slot      uint32
	end       uint32 // how far it is valid, all of it stable
	seq, salt uint64
}

// appendSnapshot appends the data of a snapshot's frame: the pinned files by
// rising sequence, and the disks by number.
func (s *state) appendSnapshot(b []byte, pinned []fileRef) []byte {
	b = le.AppendUint32(b, uint32(len(pinned)))
	b = le.AppendUint32(b, uint32(len(s.disks)))
	for _, r := range pinned {
		b = le.AppendUint32(b, r.slot)
		b = le.AppendUint32(b, r.end)
		b = le.AppendUint64(b, r.seq)
		b = le.AppendUint64(b, r.salt)
	}
	for _, number := range slices.Sorted(maps.Keys(s.disks)) {
		d := s.disks[number]
		b = le.AppendUint64(b, uint64(number))
		b = le.AppendUint64(b, uint64(d.epoch))
		b = le.AppendUint64(b, d.born.seq)
		b = le.AppendUint32(b, d.born.off)
		b = le.AppendUint32(b, 0)
		for _, t := range d.streams {
			b = le.AppendUint64(b, uint64(t.first))
			b = le.AppendUint64(b, uint64(t.end))
		}
	}
	return b
}

var errSnapshot = errors.New("bad snapshot")

// parseSnapshot decodes a snapshot: disks without runs, and the pinned files.
func parseSnapshot(b []byte, g geometry) (*state, []fileRef, error) {
	if len(b) < snapshotHeadBytes {
		return nil, nil, fmt.Errorf("%w: %d bytes", errSnapshot, len(b))
	}
	files, disks := int64(le.Uint32(b)), int64(le.Uint32(b[4:]))
	if int64(len(b)) != snapshotHeadBytes+files*snapshotFileBytes+disks*snapshotDiskBytes {
		return nil, nil, fmt.Errorf("%w: %d bytes for %d files and %d disks", errSnapshot, len(b), files, disks)
	}
	b = b[snapshotHeadBytes:]
	refs := make([]fileRef, files)
	var last uint64
	for i := range refs {
		r := fileRef{le.Uint32(b), le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])}
		if int64(r.slot) >= int64(g.slots) || r.end < dataStart || int64(r.end) > g.fileBytes || r.seq <= last {
			return nil, nil, fmt.Errorf("%w: file %+v", errSnapshot, r)
		}
		refs[i], last, b = r, r.seq, b[snapshotFileBytes:]
	}
	s := newState()
	for range disks {
		number := id.Disk(le.Uint64(b))
		d := &disk{epoch: id.Epoch(le.Uint64(b[8:])), born: birth{le.Uint64(b[16:]), le.Uint32(b[24:])}}
		bad := number == 0 || d.epoch == 0 || s.disks[number] != nil
		for i := range d.streams {
			t := &d.streams[i]
			t.first, t.end = id.Pos(le.Uint64(b[32+16*i:])), id.Pos(le.Uint64(b[40+16*i:]))
			bad = bad || t.first == 0 || t.first > t.end || t.end > 2*posMax
		}
		if bad {
			return nil, nil, fmt.Errorf("%w: disk %d", errSnapshot, number)
		}
		s.disks[number], b = d, b[snapshotDiskBytes:]
	}
	return s, refs, nil
}

// parseFence decodes the data of a fence.
func parseFence(b []byte) (floor [datanode.Streams]id.Pos, err error) {
	if len(b) != fenceBytes {
		return floor, fmt.Errorf("a fence of %d bytes", len(b))
	}
	for i := range floor {
		if floor[i] = id.Pos(le.Uint64(b[8*i:])); floor[i] > posMax {
			return floor, fmt.Errorf("a floor of %d", floor[i])
		}
	}
	return floor, nil
}
