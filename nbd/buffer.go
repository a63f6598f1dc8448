package nbd

import (
	"math/bits"
	"sync"
)

// Payload buffers come in size classes, powers of two from 4 KiB to 32 MiB,
// each with room for a reply header in front, so that a reply is one piece of
// memory.
const (
	bufferBitsMin = 12
	bufferBitsMax = 25
	// bufferHead keeps the payload aligned to a cache line.
	bufferHead = 64
)

var bufferPools [bufferBitsMax - bufferBitsMin + 1]sync.Pool

// buffer is a payload of n bytes with room for a header before it. It may hold
// bytes of earlier requests, of other exports too: only what a device filled
// may leave.
type buffer struct {
	mem   []byte
	n     int
	class int
}

func bufferClass(n int) int {
	return max(bits.Len(uint(n-1)), bufferBitsMin) - bufferBitsMin
}

// bufferBytes is what a payload of n bytes, 1 to PayloadBytesMax, is charged.
func bufferBytes(n int) int64 { return 1 << (bufferClass(n) + bufferBitsMin) }

// getBuffer returns a buffer of n bytes, 1 to PayloadBytesMax.
func getBuffer(n int) *buffer {
	class := bufferClass(n)
	b, ok := bufferPools[class].Get().(*buffer)
	if !ok {
		b = &buffer{mem: make([]byte, bufferHead+bufferBytes(n)), class: class}
	}
	b.n = n
	return b
}

func (b *buffer) put() { bufferPools[b.class].Put(b) }

// data is the payload.
func (b *buffer) data() []byte { return b.mem[bufferHead : bufferHead+b.n] }

// from is the payload with room for a header of n bytes, at most bufferHead, in
// front of it.
func (b *buffer) from(n int) []byte { return b.mem[bufferHead-n : bufferHead+b.n] }
