package spindle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	blockBytes = datanode.BlockBytes
	version    = 1

	superName  = "spindle"
	superMagic = "plinthSP"
	slabMagic  = "plinthSL"
	headBytes  = 64 // of superblock and meta header, and what is used of a slab's first block

	entryBytes    = 64
	entriesInTurn = blockBytes / entryBytes // entries of one table block
)

var (
	// ErrVersion is returned by Open for a spindle that a newer program wrote.
	// The caller leaves it alone.
	ErrVersion = errors.New("the spindle was written by a newer version of plinth: use that version, or a newer one")

	// errDamaged: a structure fails its checks.
	errDamaged = errors.New("damaged")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// super is a spindle's superblock.
type super struct {
	pool    [16]byte
	spindle id.Spindle
	// identity is drawn when the spindle is made; 0: by a program that drew none.
	identity  uint64 // 48 bits
	sizeBytes int64
	slabBytes int64
}

func (s *super) encode() []byte {
	b := make([]byte, headBytes)
	copy(b, superMagic)
	le.PutUint16(b[8:], version)
	copy(b[16:], s.pool[:])
	le.PutUint64(b[32:], uint64(s.spindle)|s.identity<<16)
	le.PutUint64(b[40:], uint64(s.sizeBytes))
	le.PutUint64(b[48:], uint64(s.slabBytes))
	le.PutUint32(b[60:], checksum(b[:60]))
	return b
}

func decodeSuper(b []byte) (*super, error) {
	if err := checkHead("superblock", superMagic, b); err != nil {
		return nil, err
	}
	s := &super{
		pool:      [16]byte(b[16:]),
		spindle:   id.Spindle(le.Uint16(b[32:])),
		identity:  le.Uint64(b[32:]) >> 16,
		sizeBytes: int64(le.Uint64(b[40:])),
		slabBytes: int64(le.Uint64(b[48:])),
	}
	if err := checkSizes(s.sizeBytes, s.slabBytes); err != nil {
		return nil, fmt.Errorf("superblock: %w: %w", errDamaged, err)
	}
	return s, nil
}

// checkHead tests what superblock, slab header and meta header have in common,
// in every version to come: a magic, a version, incompat bits, and at 60 a CRC of
// the bytes before it.
func checkHead(what, magic string, b []byte) error {
	switch {
	case len(b) < headBytes || string(b[:8]) != magic:
		return fmt.Errorf("%s: %w: not one", what, errDamaged)
	case le.Uint32(b[60:]) != checksum(b[:60]):
		return fmt.Errorf("%s: %w: checksum", what, errDamaged)
	}
	return checkVersion(what, le.Uint16(b[8:]), le.Uint32(b[12:]))
}

// checkVersion tests a version and incompat bits whose checksum holds.
func checkVersion(what string, v uint16, incompat uint32) error {
	switch {
	case v > version:
		return fmt.Errorf("%s: version %d, known up to %d: %w", what, v, version, ErrVersion)
	case incompat != 0:
		return fmt.Errorf("%s: features %#x: %w", what, incompat, ErrVersion)
	case v == 0:
		return fmt.Errorf("%s: %w: version 0", what, errDamaged)
	}
	return nil
}

// geometry is how a slab is divided: a header block, table blocks, data blocks.
type geometry struct {
	blocks      uint32 // in all
	tableBlocks uint32
}

// slabGeometry gives a table an entry for each data block, so that it never
// runs out of entries before its slab runs out of blocks.
func slabGeometry(slabBytes int64) geometry {
	blocks := uint32(slabBytes / blockBytes)
	return geometry{blocks, (blocks - 1 + entriesInTurn) / (entriesInTurn + 1)}
}

func (g geometry) data() extent {
	first := 1 + g.tableBlocks
	return extent{first, g.blocks - first}
}

// slabHeader is a slab's first block.
type slabHeader struct {
	pool    [16]byte
	spindle id.Spindle
	slab    uint32
	// tableBlocks is how many blocks of the table may hold entries.
	tableBlocks uint32
}

func (h *slabHeader) encode() []byte {
	b := make([]byte, blockBytes)
	copy(b, slabMagic)
	le.PutUint16(b[8:], version)
	copy(b[16:], h.pool[:])
	le.PutUint16(b[32:], uint16(h.spindle))
	le.PutUint32(b[36:], h.slab)
	le.PutUint32(b[40:], h.tableBlocks)
	le.PutUint32(b[60:], checksum(b[:60]))
	return b
}

func decodeSlabHeader(b []byte) (*slabHeader, error) {
	if err := checkHead("slab header", slabMagic, b); err != nil {
		return nil, err
	}
	return &slabHeader{
		pool:        [16]byte(b[16:]),
		spindle:     id.Spindle(le.Uint16(b[32:])),
		slab:        le.Uint32(b[36:]),
		tableBlocks: le.Uint32(b[40:]),
	}, nil
}

// seed starts the checksums of a slab's entries, so that an entry counts only
// in the slab and slot that it was written to.
func (h *slabHeader) seed() uint32 {
	var b [24]byte
	copy(b[:], h.pool[:])
	le.PutUint32(b[16:], uint32(h.spindle))
	le.PutUint32(b[20:], h.slab)
	return checksum(b[:])
}

// entry is a row of a slab's table: one part of a fragment.
type entry struct {
	name
	part, parts uint16
	serial      uint64
	extent             // in blocks of the slab
	bytes       uint32 // data of the whole fragment
}

const entryUsed = 1

func entryChecksum(b []byte, seed, slot uint32) uint32 {
	var s [4]byte
	le.PutUint32(s[:], slot)
	return crc32.Update(crc32.Update(seed, castagnoli, s[:]), castagnoli, b[:entryBytes-4])
}

func (e *entry) encode(seed, slot uint32) []byte {
	b := make([]byte, entryBytes)
	b[0], b[1] = entryUsed, e.index
	le.PutUint16(b[2:], e.part)
	le.PutUint16(b[4:], e.parts)
	le.PutUint64(b[8:], uint64(e.segment))
	le.PutUint64(b[16:], e.serial)
	le.PutUint32(b[24:], e.start)
	le.PutUint32(b[28:], e.n)
	le.PutUint32(b[32:], e.bytes)
	le.PutUint32(b[60:], entryChecksum(b, seed, slot))
	return b
}

// decodeEntry reads a row of a slab with these data blocks. A row of zeros is
// empty; one that fails its checks was torn or damaged, and is not there.
func decodeEntry(b []byte, data extent, seed, slot uint32) (e entry, used bool, err error) {
	if len(b) < entryBytes {
		return e, false, fmt.Errorf("table entry: %w: %d bytes", errDamaged, len(b))
	}
	b = b[:entryBytes]
	if [entryBytes]byte(b) == [entryBytes]byte{} {
		return e, false, nil
	}
	e = entry{
		name:   name{id.Segment(le.Uint64(b[8:])), b[1]},
		part:   le.Uint16(b[2:]),
		parts:  le.Uint16(b[4:]),
		serial: le.Uint64(b[16:]),
		extent: extent{le.Uint32(b[24:]), le.Uint32(b[28:])},
		bytes:  le.Uint32(b[32:]),
	}
	switch {
	case le.Uint32(b[60:]) != entryChecksum(b, seed, slot):
		return entry{}, false, fmt.Errorf("table entry: %w: checksum", errDamaged)
	case b[0] != entryUsed || e.segment == 0 || e.index >= datanode.WidthMax || e.serial == 0 ||
		checkFragmentBytes(uint64(e.bytes)) != nil || e.part >= e.parts || e.n == 0 ||
		uint32(e.parts) > fragmentBlocks(e.bytes) || e.n > fragmentBlocks(e.bytes) ||
		e.start < data.start || uint64(e.start)+uint64(e.n) > uint64(data.end()):
		return entry{}, false, fmt.Errorf("table entry: %w: %+v", errDamaged, e)
	}
	return e, true, nil
}
