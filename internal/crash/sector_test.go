package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
)

const (
	// sectorBytes is what each write consists of.
	sectorBytes = 512
	// chunkSectors is a chunk of the disks under test.
	chunkSectors = 8
)

var (
	sectorMagic = [8]byte([]byte("plsector"))
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// fillSectors makes p, whole sectors from sector first of a disk on, say that
// they are of write seq, which is not 0. Odd writes do not compress.
func fillSectors(p []byte, first int64, seq uint64) {
	le := binary.LittleEndian
	for ; len(p) > 0; p, first = p[sectorBytes:], first+1 {
		copy(p, sectorMagic[:])
		le.PutUint64(p[8:], seq)
		le.PutUint64(p[16:], uint64(first))
		x := seq*0x9e3779b97f4a7c15 ^ uint64(first)
		for i := 24; i < sectorBytes-8; i += 8 {
			if seq%2 == 1 {
				x ^= x << 13
				x ^= x >> 7
				x ^= x << 17
			}
			le.PutUint64(p[i:], x)
		}
		le.PutUint64(p[sectorBytes-8:], uint64(crc32.Checksum(p[:sectorBytes-8], castagnoli)))
	}
}

// parseSector returns the number of the write that a sector is of, 0 for zeros.
func parseSector(p []byte, sector int64) (uint64, error) {
	le := binary.LittleEndian
	if [8]byte(p[:8]) != sectorMagic {
		for _, b := range p[:sectorBytes] {
			if b != 0 {
				return 0, errors.New("neither zeros nor a sector that was written")
			}
		}
		return 0, nil
	}
	seq, place := le.Uint64(p[8:]), int64(le.Uint64(p[16:]))
	switch sum := uint64(crc32.Checksum(p[:sectorBytes-8], castagnoli)); {
	case sum != le.Uint64(p[sectorBytes-8:]):
		return seq, fmt.Errorf("write %d with a wrong checksum", seq)
	case place != sector:
		return seq, fmt.Errorf("write %d of sector %d", seq, place)
	}
	return seq, nil
}

func TestSector(t *testing.T) {
	p := make([]byte, 3*sectorBytes)
	if seq, err := parseSector(p, 9); seq != 0 || err != nil {
		t.Errorf("zeros are %d, %v", seq, err)
	}
	fillSectors(p, 7, 5)
	for i := range int64(3) {
		s := p[i*sectorBytes : (i+1)*sectorBytes]
		if seq, err := parseSector(s, 7+i); seq != 5 || err != nil {
			t.Errorf("sector %d is %d, %v", i, seq, err)
		}
		if _, err := parseSector(s, 8+i); err == nil {
			t.Errorf("sector %d passes in another place", i)
		}
		s[100]++
		if _, err := parseSector(s, 7+i); err == nil {
			t.Errorf("sector %d passes with a changed byte", i)
		}
	}
}
