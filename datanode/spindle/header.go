package spindle

import (
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	fragmentMagic = "plinthFR"
	birthsAt      = 64
	birthBytes    = 18
	// sumsAt leaves room for all births, so that the length of a header depends
	// on the length of the data alone.
	sumsAt = birthsAt + datanode.BirthsMax*birthBytes
)

// AllocatedBytes returns what a fragment with that many bytes of data (a
// multiple of datanode.BlockBytes, at most datanode.FragmentBytesMax) takes
// from its spindle: header and data.
func AllocatedBytes(dataBytes int) int { return int(fragmentBlocks(uint32(dataBytes))) * blockBytes }

// headerBlocks returns the length of the header of a fragment.
func headerBlocks(dataBytes uint32) uint32 {
	return (sumsAt + dataBytes/blockBytes*4 + blockBytes - 1) / blockBytes
}

func fragmentBlocks(dataBytes uint32) uint32 { return headerBlocks(dataBytes) + dataBytes/blockBytes }

func checkFragmentBytes(n uint64) error {
	if n == 0 || n%blockBytes != 0 || n > datanode.FragmentBytesMax {
		return fmt.Errorf("fragment of %d bytes: not a multiple of %d from there to %d", n, blockBytes, datanode.FragmentBytesMax)
	}
	return nil
}

// header is the head of a fragment.
type header struct {
	datanode.SegmentHeader
	index  uint8
	serial uint64
	bytes  uint32   // of data
	sums   []uint32 // CRC32C of each data block
}

// checkSegmentHeader tests the bounds of what a host says about a segment.
func checkSegmentHeader(h *datanode.SegmentHeader) error {
	slots := 0
	for _, b := range h.Births {
		slots += int(b.Slots)
	}
	switch {
	case h.Segment == 0:
		return fmt.Errorf("segment 0")
	case h.Kind != datanode.KindChunks && h.Kind != datanode.KindObject:
		return fmt.Errorf("segment %s: kind %d", h.Segment, h.Kind)
	case h.K == 0 || int(h.K)+int(h.M) > datanode.WidthMax:
		return fmt.Errorf("segment %s: %d+%d fragments", h.Segment, h.K, h.M)
	case h.DataBytes > id.SegmentBytesMax:
		return fmt.Errorf("segment %s: %d bytes", h.Segment, h.DataBytes)
	case len(h.Births) > datanode.BirthsMax || slots > id.SlotsMax:
		return fmt.Errorf("segment %s: %d births of %d slots", h.Segment, len(h.Births), slots)
	}
	return nil
}

// encodeHeader writes the header of a fragment with this data to head, which has
// its length in blocks.
func encodeHeader(head []byte, pool *[16]byte, sh *datanode.SegmentHeader, index uint8, serial uint64, data []byte) {
	clear(head)
	copy(head, fragmentMagic)
	le.PutUint16(head[8:], version)
	head[10], head[11] = byte(sh.Kind), index
	le.PutUint64(head[16:], uint64(sh.Segment))
	le.PutUint64(head[24:], serial)
	le.PutUint32(head[32:], uint32(len(data)))
	le.PutUint32(head[36:], sh.DataBytes)
	head[40], head[41] = sh.K, sh.M
	le.PutUint16(head[42:], uint16(len(sh.Births)))
	copy(head[48:], pool[:])
	for i, birth := range sh.Births {
		at := head[birthsAt+i*birthBytes:]
		le.PutUint64(at, uint64(birth.Disk))
		le.PutUint64(at[8:], uint64(birth.Epoch))
		le.PutUint16(at[16:], birth.Slots)
	}
	for i := range len(data) / blockBytes {
		le.PutUint32(head[sumsAt+4*i:], checksum(data[i*blockBytes:(i+1)*blockBytes]))
	}
	le.PutUint32(head[44:], checksum(head))
}

// decodeHeader reads the header at the start of b. Its checksum covers all of
// its blocks, the zeros in them too; it is changed in b for a moment.
func decodeHeader(b []byte, pool *[16]byte) (*header, error) {
	if len(b) < blockBytes || string(b[:8]) != fragmentMagic {
		return nil, fmt.Errorf("fragment header: %w: not one", errDamaged)
	}
	n := le.Uint32(b[32:])
	if err := checkFragmentBytes(uint64(n)); err != nil {
		return nil, fmt.Errorf("fragment header: %w: %w", errDamaged, err)
	}
	head := int(headerBlocks(n)) * blockBytes
	if len(b) < head {
		return nil, fmt.Errorf("fragment header: %w: %d bytes of %d", errDamaged, len(b), head)
	}
	b = b[:head]
	sum := le.Uint32(b[44:])
	le.PutUint32(b[44:], 0)
	match := checksum(b) == sum
	le.PutUint32(b[44:], sum)
	if !match {
		return nil, fmt.Errorf("fragment header: %w: checksum", errDamaged)
	}
	if err := checkVersion("fragment header", le.Uint16(b[8:]), le.Uint32(b[12:])); err != nil {
		return nil, err
	}
	h := &header{
		SegmentHeader: datanode.SegmentHeader{
			Segment: id.Segment(le.Uint64(b[16:])), Kind: datanode.Kind(b[10]), K: b[40], M: b[41],
			DataBytes: le.Uint32(b[36:]),
		},
		index: b[11], serial: le.Uint64(b[24:]), bytes: n,
	}
	births := int(le.Uint16(b[42:]))
	if births > datanode.BirthsMax || [16]byte(b[48:]) != *pool {
		return nil, fmt.Errorf("fragment header: %w: %d births, pool %x", errDamaged, births, b[48:64])
	}
	for i := range births {
		at := b[birthsAt+i*birthBytes:]
		h.Births = append(h.Births, datanode.Birth{
			Disk: id.Disk(le.Uint64(at)), Epoch: id.Epoch(le.Uint64(at[8:])), Slots: le.Uint16(at[16:]),
		})
	}
	if err := checkSegmentHeader(&h.SegmentHeader); err != nil {
		return nil, fmt.Errorf("fragment header: %w: %w", errDamaged, err)
	}
	h.sums = make([]uint32, n/blockBytes)
	for i := range h.sums {
		h.sums[i] = le.Uint32(b[sumsAt+4*i:])
	}
	return h, nil
}
