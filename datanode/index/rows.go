package index

import (
	"encoding/binary"
	mathbits "math/bits"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// rowVersion begins each value. Another one is refused.
const rowVersion = 1

const (
	segmentRowBytes = 32 // without births
	birthBytes      = 18
	printRowBytes   = 5
	listRowBytes    = 33 // without bits
	moveBytes       = 16
	bitsBytesMax    = id.SlotsMax / 8
	countersBytes   = 41
)

var le = binary.LittleEndian

// segmentRow is a segment's header and state.
type segmentRow struct {
	state         datanode.State
	kind          datanode.Kind
	k, m          uint8
	dataBytes     uint32
	fragmentBytes uint32
	// sealedBytes and plainBytes sum the slot table.
	sealedBytes, plainBytes int64
	births                  []datanode.Birth
}

func (r *segmentRow) encode() []byte {
	b := make([]byte, 0, segmentRowBytes+len(r.births)*birthBytes)
	b = append(b, rowVersion, byte(r.state), byte(r.kind), r.k, r.m, 0, 0)
	b = append(b, byte(len(r.births)))
	b = le.AppendUint32(b, r.dataBytes)
	b = le.AppendUint32(b, r.fragmentBytes)
	b = le.AppendUint64(b, uint64(r.sealedBytes))
	b = le.AppendUint64(b, uint64(r.plainBytes))
	for _, birth := range r.births {
		b = le.AppendUint64(b, uint64(birth.Disk))
		b = le.AppendUint64(b, uint64(birth.Epoch))
		b = le.AppendUint16(b, birth.Slots)
	}
	return b
}

func corrupt(what string) error {
	return datanode.Errorf(datanode.ErrCorrupt, "index: %s", what)
}

func decodeSegment(b []byte) (*segmentRow, error) {
	if len(b) < segmentRowBytes || b[0] != rowVersion || b[5] != 0 || b[6] != 0 {
		return nil, corrupt("segment row")
	}
	r := &segmentRow{
		state: datanode.State(b[1]), kind: datanode.Kind(b[2]), k: b[3], m: b[4],
		dataBytes: le.Uint32(b[8:]), fragmentBytes: le.Uint32(b[12:]),
		sealedBytes: int64(le.Uint64(b[16:])), plainBytes: int64(le.Uint64(b[24:])),
	}
	n := int(b[7])
	if len(b) != segmentRowBytes+n*birthBytes || r.state < datanode.StateLive || r.state > datanode.StateDeleting {
		return nil, corrupt("segment row")
	}
	r.births = make([]datanode.Birth, n)
	for i := range r.births {
		p := b[segmentRowBytes+i*birthBytes:]
		r.births[i] = datanode.Birth{Disk: id.Disk(le.Uint64(p)), Epoch: id.Epoch(le.Uint64(p[8:])), Slots: le.Uint16(p[16:])}
	}
	if checkBirths(r.births) != nil {
		return nil, corrupt("segment row")
	}
	return r, nil
}

func (r *segmentRow) slotCount() int { return slotCount(r.births) }

func slotCount(births []datanode.Birth) int {
	n := 0
	for _, b := range births {
		n += int(b.Slots)
	}
	return n
}

// bornTo reports whether the disk has a birth above an epoch.
func (r *segmentRow) bornTo(d id.Disk, above id.Epoch) bool {
	return slices.ContainsFunc(r.births, func(b datanode.Birth) bool { return b.Disk == d && b.Epoch > above })
}

// birthEpoch returns the epoch of a disk's first birth.
func (r *segmentRow) birthEpoch(d id.Disk) id.Epoch {
	i := slices.IndexFunc(r.births, func(b datanode.Birth) bool { return b.Disk == d })
	return r.births[i].Epoch
}

// birthBits adds to bits the slots of a disk's births above an epoch.
func (r *segmentRow) birthBits(d id.Disk, above id.Epoch, bits []byte) []byte {
	slot := id.Slot(0)
	for _, b := range r.births {
		if b.Disk == d && b.Epoch > above {
			for n := range id.Slot(b.Slots) {
				bits = setBit(bits, slot+n)
			}
		}
		slot += id.Slot(b.Slots)
	}
	return bits
}

// slotsVersion begins a slot table whose slots tell only what does not follow from
// the one before. In a table of version 1 each has 26 bytes.
const slotsVersion = 2

const (
	// slotBytes is what a slot takes that follows from the one before: the length,
	// in units, and the fingerprint.
	slotBytes = 2 + len(id.Fingerprint{})
	// slotToldBytes is what tells the rest of one that does not.
	slotToldBytes = 2 + 4 + 4
	slotTold      = 1 << 15 // beside the length
)

// follows reports whether a slot is where, and as large before compression, as the
// one before says.
func follows(before, s *datanode.SlotEntry) bool {
	return s.Slot == before.Slot+1 && s.Location.Start() == before.Location.Start()+before.Location.Len() &&
		s.PlainBytes == before.PlainBytes
}

// encodeSlots writes a slot table, whose slots ascend.
func encodeSlots(slots []datanode.SlotEntry) []byte {
	b := make([]byte, 0, 1+len(slots)*(slotBytes+1)+slotToldBytes)
	b = append(b, slotsVersion)
	for i := range slots {
		s := &slots[i]
		units := uint16(s.Location.Len() / id.Unit)
		if i > 0 && follows(&slots[i-1], s) {
			b = le.AppendUint16(b, units)
		} else {
			b = le.AppendUint16(b, units|slotTold)
			b = le.AppendUint16(b, uint16(s.Slot))
			b = le.AppendUint32(b, uint32(s.Location.Start()/id.Unit))
			b = le.AppendUint32(b, s.PlainBytes)
		}
		b = append(b, s.Fingerprint[:]...)
	}
	return b
}

func decodeSlots(b []byte) ([]datanode.SlotEntry, error) {
	if len(b) > 0 && b[0] == rowVersion {
		return decodeWideSlots(b)
	}
	if len(b) < 1 || b[0] != slotsVersion {
		return nil, corrupt("slot table")
	}
	slots := make([]datanode.SlotEntry, 0, (len(b)-1)/slotBytes)
	for p := b[1:]; len(p) > 0; {
		s, rest, ok := decodeSlot(p, slots)
		if !ok {
			return nil, corrupt("slot table")
		}
		slots, p = append(slots, s), rest
	}
	return slots, nil
}

// decodeSlot reads the slot that comes after some.
func decodeSlot(p []byte, before []datanode.SlotEntry) (s datanode.SlotEntry, rest []byte, ok bool) {
	if len(p) < slotBytes {
		return s, nil, false
	}
	head := le.Uint16(p)
	length := int(head&^slotTold) * id.Unit
	var start int
	if head&slotTold != 0 {
		if len(p) < slotBytes+slotToldBytes {
			return s, nil, false
		}
		s.Slot, s.PlainBytes = id.Slot(le.Uint16(p[2:])), le.Uint32(p[8:])
		start = int(le.Uint32(p[4:])) * id.Unit
		p = p[slotToldBytes:]
	} else if n := len(before); n > 0 {
		last := &before[n-1]
		s.Slot, s.PlainBytes = last.Slot+1, last.PlainBytes
		start = last.Location.Start() + last.Location.Len()
	} else {
		return s, nil, false
	}
	copy(s.Fingerprint[:], p[2:])
	s.Location, ok = id.MakeLocation(start, length)
	if n := len(before); n > 0 {
		told := head&slotTold != 0
		ok = ok && s.Slot > before[n-1].Slot && told != follows(&before[n-1], &s)
	}
	return s, p[slotBytes:], ok && s.Slot < id.SlotsMax
}

// wideSlotBytes is what a slot takes in a table of version 1.
const wideSlotBytes = 26

func decodeWideSlots(b []byte) ([]datanode.SlotEntry, error) {
	if (len(b)-1)%wideSlotBytes != 0 || (len(b)-1)/wideSlotBytes > id.SlotsMax {
		return nil, corrupt("slot table")
	}
	slots := make([]datanode.SlotEntry, (len(b)-1)/wideSlotBytes)
	for i := range slots {
		p := b[1+i*wideSlotBytes:]
		slots[i] = datanode.SlotEntry{
			Slot: id.Slot(le.Uint16(p)), Fingerprint: id.Fingerprint(p[2:18]),
			Location: id.Location(le.Uint32(p[18:])), PlainBytes: le.Uint32(p[22:]),
		}
		if slots[i].Slot >= id.SlotsMax || i > 0 && slots[i].Slot <= slots[i-1].Slot {
			return nil, corrupt("slot table")
		}
	}
	return slots, nil
}

func encodePrint(l id.Location) []byte {
	return le.AppendUint32(append(make([]byte, 0, printRowBytes), rowVersion), uint32(l))
}

// decodePrint returns where a row of a fingerprint says that its chunk is.
func decodePrint(key, value []byte) (id.Ref, error) {
	if len(key) != printKeyBytes || len(value) != printRowBytes || value[0] != rowVersion {
		return id.Ref{}, corrupt("fingerprint row")
	}
	r := id.Ref{
		Segment:  id.Segment(binary.BigEndian.Uint64(key[printPrefixBytes:])),
		Slot:     id.Slot(binary.BigEndian.Uint16(key[printPrefixBytes+8:])),
		Location: id.Location(le.Uint32(value[1:])),
	}
	if r.Slot >= id.SlotsMax {
		return id.Ref{}, corrupt("fingerprint row")
	}
	return r, nil
}

// update orders the changes of one list.
type update struct {
	epoch id.Epoch
	seq   id.Seq
}

func (u update) less(v update) bool {
	return u.epoch < v.epoch || u.epoch == v.epoch && u.seq < v.seq
}

// listRow is a disk's reference list of one segment.
type listRow struct {
	last update // of anything that changed it
	set  update // of the last SetLists, zero if there was none
	bits []byte // without zero bytes at the end
}

func (r *listRow) encode() []byte {
	b := append(make([]byte, 0, listRowBytes+len(r.bits)), rowVersion)
	for _, u := range []update{r.last, r.set} {
		b = le.AppendUint64(b, uint64(u.epoch))
		b = le.AppendUint64(b, uint64(u.seq))
	}
	return append(b, r.bits...)
}

// decodeList returns a row of its own: the bits are a copy.
func decodeList(b []byte) (*listRow, error) {
	if len(b) < listRowBytes || b[0] != rowVersion || len(b) > listRowBytes+bitsBytesMax {
		return nil, corrupt("reference list")
	}
	r := &listRow{
		last: update{id.Epoch(le.Uint64(b[1:])), id.Seq(le.Uint64(b[9:]))},
		set:  update{id.Epoch(le.Uint64(b[17:])), id.Seq(le.Uint64(b[25:]))},
		bits: slices.Clone(b[listRowBytes:]),
	}
	if r.last.less(r.set) || len(r.bits) > 0 && r.bits[len(r.bits)-1] == 0 {
		return nil, corrupt("reference list")
	}
	return r, nil
}

// encodeMoves writes moves, whose slots ascend.
func encodeMoves(moves []datanode.SlotMove) []byte {
	b := append(make([]byte, 0, 1+len(moves)*moveBytes), rowVersion)
	for i := range moves {
		m := &moves[i]
		b = le.AppendUint16(b, uint16(m.Slot))
		b = le.AppendUint64(b, uint64(m.To.Segment))
		b = le.AppendUint16(b, uint16(m.To.Slot))
		b = le.AppendUint32(b, uint32(m.To.Location))
	}
	return b
}

func decodeMoves(b []byte) ([]datanode.SlotMove, error) {
	if len(b) < 1 || b[0] != rowVersion || (len(b)-1)%moveBytes != 0 || (len(b)-1)/moveBytes > id.SlotsMax {
		return nil, corrupt("moves")
	}
	moves := make([]datanode.SlotMove, (len(b)-1)/moveBytes)
	for i := range moves {
		p := b[1+i*moveBytes:]
		moves[i] = datanode.SlotMove{Slot: id.Slot(le.Uint16(p)), To: id.Ref{
			Segment: id.Segment(le.Uint64(p[2:])), Slot: id.Slot(le.Uint16(p[10:])), Location: id.Location(le.Uint32(p[12:])),
		}}
		m := &moves[i]
		if m.Slot >= id.SlotsMax || m.To.Slot >= id.SlotsMax || m.To.Segment == 0 || i > 0 && m.Slot <= moves[i-1].Slot {
			return nil, corrupt("moves")
		}
	}
	return moves, nil
}

// hasBit reports whether bits have one set.
func hasBit(bits []byte, s id.Slot) bool { return int(s>>3) < len(bits) && bits[s>>3]&(1<<(s&7)) != 0 }

// setBit returns bits with one more set, longer if need be.
func setBit(bits []byte, s id.Slot) []byte {
	for len(bits) <= int(s>>3) {
		bits = append(bits, 0)
	}
	bits[s>>3] |= 1 << (s & 7)
	return bits
}

// trimBits cuts zero bytes off the end.
func trimBits(bits []byte) []byte {
	for len(bits) > 0 && bits[len(bits)-1] == 0 {
		bits = bits[:len(bits)-1]
	}
	return bits
}

// orBits returns bits with more of them set, longer if need be.
func orBits(bits, more []byte) []byte {
	for len(bits) < len(more) {
		bits = append(bits, 0)
	}
	for i, b := range more {
		bits[i] |= b
	}
	return bits
}

func popcount(b []byte) int {
	n := 0
	for ; len(b) >= 8; b = b[8:] {
		n += mathbits.OnesCount64(le.Uint64(b))
	}
	for _, x := range b {
		n += mathbits.OnesCount8(x)
	}
	return n
}

// counters are what Status tells, kept with each change.
type counters struct {
	segments, fingerprints, plainBytes, sealedBytes, objectBytes int64
}

func (c *counters) fields() [5]*int64 {
	return [5]*int64{&c.segments, &c.fingerprints, &c.plainBytes, &c.sealedBytes, &c.objectBytes}
}

func (c *counters) encode() []byte {
	b := append(make([]byte, 0, countersBytes), rowVersion)
	for _, f := range c.fields() {
		b = le.AppendUint64(b, uint64(*f))
	}
	return b
}

func decodeCounters(b []byte) (counters, error) {
	var c counters
	if len(b) != countersBytes || b[0] != rowVersion {
		return c, corrupt("counters")
	}
	for i, f := range c.fields() {
		*f = int64(le.Uint64(b[1+8*i:]))
	}
	return c, nil
}
