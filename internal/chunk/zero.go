package chunk

import (
	"bytes"
	"encoding/binary"
)

var zeros [4 << 10]byte

// IsZero reports whether p holds nothing but zero bytes. An empty p does.
func IsZero(p []byte) bool {
	// Most data shows in its first word; only the rest is worth a call.
	if len(p) >= 8 && binary.NativeEndian.Uint64(p) != 0 {
		return false
	}
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
