package shelf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

var someSuperblock = superblock{poolID: [16]byte{1, 2, 3}, spindles: 12, logBytes: 4 << 30, spindleBytes: 64 << 30}

func mend(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[superblockSum:], crc32.Checksum(b[:superblockSum], castagnoli))
	return b
}

func TestSuperblock(t *testing.T) {
	b := someSuperblock.encode()
	if got, err := decodeSuperblock(b); err != nil || got != someSuperblock {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, err := decodeSuperblock(bad); !known(err) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for n := range b {
		if _, err := decodeSuperblock(b[:n]); !known(err) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	newer, featured := bytes.Clone(b), bytes.Clone(b)
	newer[8], featured[10] = 2, 1
	for _, b := range [][]byte{mend(newer), append(newer, 0), mend(featured)} {
		if _, err := decodeSuperblock(b); !errors.Is(err, ErrNewer) {
			t.Errorf("a newer superblock: %v", err)
		}
	}
	compatible := bytes.Clone(b)
	compatible[12] = 1
	if got, err := decodeSuperblock(mend(compatible)); err != nil || got != someSuperblock {
		t.Errorf("a compatible feature: %+v, %v", got, err)
	}
}

func known(err error) bool {
	return errors.Is(err, ErrForeign) || errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged)
}

func FuzzSuperblock(f *testing.F) {
	f.Add(someSuperblock.encode())
	f.Add([]byte(superblockMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == superblockBytes {
			b = mend(bytes.Clone(b))
		}
		s, err := decodeSuperblock(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		if again, err := decodeSuperblock(s.encode()); err != nil || again != s {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}
