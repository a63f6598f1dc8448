package rebuild

import (
	"math/bits"

	"plinth/internal/id"
)

// Bits is a set of layouts.
type Bits []byte

func (b Bits) has(l id.Layout) bool { return int(l/8) < len(b) && b[l/8]>>(l%8)&1 != 0 }

func (b *Bits) set(l id.Layout) {
	for int(l/8) >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[l/8] |= 1 << (l % 8)
}

func (b Bits) clear(l id.Layout) {
	if int(l/8) < len(b) {
		b[l/8] &^= 1 << (l % 8)
	}
}

// count returns how many there are.
func (b Bits) count() (n int) {
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}
