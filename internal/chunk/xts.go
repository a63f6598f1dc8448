package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

const (
	xtsKeyBytes = 64

	// tweakBytes is how much of the tweak stream is computed at a time: enough
	// that the calls per batch cost nothing, and the batch stays in L1.
	tweakBytes = 4 << 10
)

// xts is AES-256 in XTS mode (IEEE 1619-2018, NIST SP 800-38E) over whole
// blocks, without ciphertext stealing. The usual loop does tweak, XOR, AES, XOR
// block by block and so waits for each; here a batch's tweaks come first, the
// XORs go over the batch at once, and the AES calls in between depend on
// nothing, so that the processor overlaps them.
type xts struct {
	data, tweak cipher.Block
}

// newXTS takes the key of the data, then the key of the tweak.
func newXTS(key *[xtsKeyBytes]byte) *xts {
	return &xts{data: newAES(key[:xtsKeyBytes/2]), tweak: newAES(key[xtsKeyBytes/2:])}
}

func newAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // key lengths are fixed by the callers' types
	}
	return b
}

// encrypt turns src into dst, both of one length, a multiple of 16; they are
// the same or do not overlap. Sector numbers the data unit. The batch is
// scratch.
func (x *xts) encrypt(dst, src []byte, sector uint64, batch *[tweakBytes]byte) {
	for stream := x.start(sector, batch); len(src) > 0; {
		t := stream.fill(batch, len(src))
		n := len(t)
		subtle.XORBytes(dst, src[:n], t)
		for i := 0; i+16 <= n; i += 16 {
			b := dst[i : i+16 : i+16]
			x.data.Encrypt(b, b)
		}
		subtle.XORBytes(dst, dst[:n], t)
		dst, src = dst[n:], src[n:]
	}
}

// decrypt is encrypt's reverse, written out because a call through a variable
// costs a fifth of the speed.
func (x *xts) decrypt(dst, src []byte, sector uint64, batch *[tweakBytes]byte) {
	for stream := x.start(sector, batch); len(src) > 0; {
		t := stream.fill(batch, len(src))
		n := len(t)
		subtle.XORBytes(dst, src[:n], t)
		for i := 0; i+16 <= n; i += 16 {
			b := dst[i : i+16 : i+16]
			x.data.Decrypt(b, b)
		}
		subtle.XORBytes(dst, dst[:n], t)
		dst, src = dst[n:], src[n:]
	}
}

// tweaks is the stream of tweaks of one sector: the next one, as a
// little-endian 128-bit number.
type tweaks struct{ lo, hi uint64 }

func (x *xts) start(sector uint64, batch *[tweakBytes]byte) tweaks {
	first := batch[:aes.BlockSize]
	binary.LittleEndian.PutUint64(first, sector)
	clear(first[8:])
	x.tweak.Encrypt(first, first)
	return tweaks{binary.LittleEndian.Uint64(first), binary.LittleEndian.Uint64(first[8:])}
}

// fill writes the next tweaks for at most n bytes, a multiple of 16, to batch
// and returns the part of it that they fill.
func (s *tweaks) fill(batch *[tweakBytes]byte, n int) []byte {
	lo, hi := s.lo, s.hi
	t := batch[:min(n, tweakBytes)]
	for i := 0; i+16 <= len(t); i += 16 {
		binary.LittleEndian.PutUint64(t[i:], lo)
		binary.LittleEndian.PutUint64(t[i+8:], hi)
		// Times x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1.
		carry := 0x87 & -(hi >> 63)
		lo, hi = lo<<1^carry, hi<<1|lo>>63
	}
	s.lo, s.hi = lo, hi
	return t
}
