package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"plinth/datanode"
)

// FrameBytesMax bounds a message with its header: a description of all slots
// that may be in transit takes half of it.
const FrameBytesMax = 64 << 20

// headerBytes is the length of a frame's header.
const headerBytes = 16

// kind is a frame's type. Kinds are never renumbered.
type kind uint8

const (
	kindRequest kind = 1 // a call: timeout, then its request
	kindReply   kind = 2 // its reply
	kindError   kind = 3 // or the error
	kindCancel  kind = 4 // nobody waits for the call any more
	kindPing    kind = 5 // says that the sender lives
	kindGoodbye kind = 6 // an error; the sender hangs up
)

// controlBytesMax bounds frames that are neither requests nor replies.
const controlBytesMax = 16 + noteBytesMax

// header begins each frame.
type header struct {
	length uint32 // of what follows the header
	kind   kind
	call   Call
	slot   uint16
	seq    uint64
}

func (h header) put(b []byte) {
	binary.LittleEndian.PutUint32(b, h.length)
	b[4], b[5] = byte(h.kind), byte(h.call)
	binary.LittleEndian.PutUint16(b[6:], h.slot)
	binary.LittleEndian.PutUint64(b[8:], h.seq)
}

// parseHeader checks what can be checked of a header by itself.
func parseHeader(b []byte) (header, error) {
	h := header{
		length: binary.LittleEndian.Uint32(b), kind: kind(b[4]), call: Call(b[5]),
		slot: binary.LittleEndian.Uint16(b[6:]), seq: binary.LittleEndian.Uint64(b[8:]),
	}
	most := uint32(FrameBytesMax - headerBytes)
	switch h.kind {
	case kindRequest, kindReply, kindError:
		if !h.call.known() {
			return h, fmt.Errorf("frame of unknown call %d", h.call)
		}
	case kindCancel, kindPing:
		most = 0
	case kindGoodbye:
		most = controlBytesMax
	default:
		return h, fmt.Errorf("frame of unknown kind %d", h.kind)
	}
	if h.length > most {
		return h, fmt.Errorf("frame of kind %d with %d bytes: at most %d", h.kind, h.length, most)
	}
	return h, nil
}

// frame is a message's bytes: buf, with the splices where they belong. It is
// shared, and its memory reused when the last holder lets go of it.
type frame struct {
	refs    atomic.Int32
	buf     []byte // header first
	splices []splice
	bytes   int // of buf and splices
	memory  *[]byte
	extra   *[]byte      // memory of the splices, reused with the frame
	done    func(*frame) // called once, by the last holder
}

// timeoutBytes is the length of what lies between a request's header and its
// message: the milliseconds that are left, 0 for no deadline.
const timeoutBytes = 4

// newFrame returns a frame held once, with an uninitialised buffer of that length.
func newFrame(bytes int) *frame {
	f := &frame{memory: take(bytes), bytes: bytes}
	f.buf = (*f.memory)[:bytes]
	f.refs.Store(1)
	return f
}

func (f *frame) hold() { f.refs.Add(1) }

func (f *frame) release() {
	if f.refs.Add(-1) > 0 {
		return
	}
	if f.done != nil {
		f.done(f)
	}
	give(f.memory)
	give(f.extra)
	f.buf, f.memory, f.extra = nil, nil, nil
}

// keep makes the frame's memory the garbage collector's: somebody has slices of
// it.
func (f *frame) keep() { f.memory = nil }

func (f *frame) header() header {
	h, _ := parseHeader(f.buf)
	return h
}

// message is what follows the header.
func (f *frame) message() []byte { return f.buf[headerBytes:] }

// compose encodes a message into a frame, leaving room for a prefix behind the
// header, whose length it fills in. With splice, long bytes of v are referred
// to and must not change while the frame is in use. Error: ErrInvalid.
func compose[T any](h header, prefix int, v *T, visit func(*coder, *T), splice bool) (*frame, *datanode.Error) {
	size := coder{pass: sizing, splice: splice}
	visit(&size, v)
	if size.err != nil {
		return nil, size.err
	}
	all := headerBytes + prefix + size.off + size.outside
	if all > FrameBytesMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "%s: message of %d bytes: at most %d", h.call, all, FrameBytesMax)
	}
	f := newFrame(headerBytes + prefix + size.off)
	f.bytes = all
	h.length = uint32(all - headerBytes)
	h.put(f.buf)
	c := coder{pass: encoding, splice: splice, buf: f.buf, off: headerBytes + prefix}
	visit(&c, v)
	f.splices = c.splices
	return f, nil
}

// composeError makes the frame of an error.
func composeError(h header, e *datanode.Error) *frame {
	if h.kind != kindGoodbye {
		h.kind = kindError
	}
	f, err := compose(h, 0, e, mistake, false)
	if err != nil {
		panic(err) // its text is cut to size
	}
	return f
}

// composeEmpty makes a frame of a header alone.
func composeEmpty(h header) *frame {
	f := newFrame(headerBytes)
	h.put(f.buf)
	return f
}

// Memory is reused by powers of two, from the least to the largest.
const (
	memoryBitsMin = 9
	memoryBitsMax = 26
)

var memories [memoryBitsMax - memoryBitsMin + 1]sync.Pool

// take returns at least that much memory.
func take(bytes int) *[]byte {
	class := max(bits.Len(uint(max(bytes, 1)-1)), memoryBitsMin) - memoryBitsMin
	if b, ok := memories[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<(class+memoryBitsMin))
	return &b
}

func give(b *[]byte) {
	if b != nil {
		memories[bits.Len(uint(cap(*b)))-1-memoryBitsMin].Put(b)
	}
}
