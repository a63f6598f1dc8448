package wire

import (
	"encoding/binary"
	"math"

	"plinth/datanode"
)

// pass is what a coder does with the fields that a visitor names.
type pass uint8

const (
	sizing pass = iota
	encoding
	decoding
)

// spliceBytesMin is the least length at which a reply's bytes are sent from
// where they lie instead of being copied into the frame.
const spliceBytesMin = 16 << 10

// coder passes over the fields of a message. The same visitor sizes, encodes and
// decodes, so that the three cannot differ. After the first error it does
// nothing more.
type coder struct {
	pass    pass
	splice  bool   // sizing and encoding: long bytes stay where they are
	buf     []byte // encoding: exactly as long as sizing said; decoding: the message
	off     int    // bytes of buf used, or counted
	outside int    // bytes of splices
	splices []splice
	// aliased: what was decoded holds memory of buf.
	aliased bool
	err     *datanode.Error
}

// splice is bytes that follow the first off bytes of a frame's buffer.
type splice struct {
	off  int
	data []byte
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = datanode.Errorf(datanode.ErrInvalid, format, args...)
	}
}

// fixed returns the next n bytes to fill or to read; nil when sizing and after
// an error.
func (c *coder) fixed(n int) []byte {
	if c.pass == sizing {
		c.off += n
		return nil
	}
	if c.err != nil {
		return nil
	}
	if len(c.buf)-c.off < n {
		c.fail("message ends within a field")
		return nil
	}
	b := c.buf[c.off : c.off+n : c.off+n]
	c.off += n
	return b
}

// end fails a decoder that has not used the whole message: each side writes what
// the version that was agreed says, and nothing else.
func (c *coder) end() {
	if c.err == nil && c.pass == decoding && c.off != len(c.buf) {
		c.fail("message has %d bytes too many", len(c.buf)-c.off)
	}
}

func u8[T ~uint8](c *coder, v *T) {
	if b := c.fixed(1); b == nil {
		return
	} else if c.pass == encoding {
		b[0] = byte(*v)
	} else {
		*v = T(b[0])
	}
}

func u16[T ~uint16](c *coder, v *T) {
	if b := c.fixed(2); b == nil {
		return
	} else if c.pass == encoding {
		binary.LittleEndian.PutUint16(b, uint16(*v))
	} else {
		*v = T(binary.LittleEndian.Uint16(b))
	}
}

func u32[T ~uint32](c *coder, v *T) {
	if b := c.fixed(4); b == nil {
		return
	} else if c.pass == encoding {
		binary.LittleEndian.PutUint32(b, uint32(*v))
	} else {
		*v = T(binary.LittleEndian.Uint32(b))
	}
}

func u64[T ~uint64 | ~int64](c *coder, v *T) {
	if b := c.fixed(8); b == nil {
		return
	} else if c.pass == encoding {
		binary.LittleEndian.PutUint64(b, uint64(*v))
	} else {
		*v = T(binary.LittleEndian.Uint64(b))
	}
}

// integer is an int: 8 bytes, two's complement.
func (c *coder) integer(v *int) {
	wide := int64(*v)
	u64(c, &wide)
	if c.pass == decoding {
		if wide > math.MaxInt || wide < math.MinInt {
			c.fail("number %d is too large", wide)
			return
		}
		*v = int(wide)
	}
}

func (c *coder) flag(v *bool) {
	if b := c.fixed(1); b == nil {
		return
	} else if c.pass == encoding {
		b[0] = 0
		if *v {
			b[0] = 1
		}
	} else if b[0] > 1 {
		c.fail("flag of value %d", b[0])
	} else {
		*v = b[0] == 1
	}
}

func (c *coder) array16(v *[16]byte) {
	if b := c.fixed(16); b == nil {
		return
	} else if c.pass == encoding {
		copy(b, v[:])
	} else {
		copy(v[:], b)
	}
}

// count is the number of a list's entries or of bytes. Each takes at least unit
// bytes of the message, so that no more is allocated than was received.
func (c *coder) count(n *int, most, unit int, what string) bool {
	if c.pass != decoding && *n > most {
		c.fail("%d %s: at most %d", *n, what, most)
		return false
	}
	short := uint32(*n)
	u32(c, &short)
	if c.err != nil {
		return false
	}
	if c.pass == decoding {
		if uint64(short) > uint64(most) || uint64(short)*uint64(unit) > uint64(len(c.buf)-c.off) {
			c.fail("%d %s: at most %d, and %d bytes are left", short, what, most, len(c.buf)-c.off)
			return false
		}
		*n = int(short)
	}
	return true
}

// bytes is a counted run of bytes. Decoded, it lies in the coder's buffer.
func (c *coder) bytes(v *[]byte, most int) {
	n := len(*v)
	if !c.count(&n, most, 1, "bytes") {
		return
	}
	if c.splice && n >= spliceBytesMin {
		c.outside += n
		if c.pass == encoding {
			c.splices = append(c.splices, splice{c.off, *v})
		}
		return
	}
	b := c.fixed(n)
	switch {
	case c.pass == encoding:
		copy(b, *v)
	case c.pass == decoding && n == 0:
		*v = nil
	case c.pass == decoding:
		*v = b
		c.aliased = true
	}
}

// text is a counted string. Decoded, it is a copy.
func text[T ~string](c *coder, v *T, most int) {
	n := len(*v)
	if !c.count(&n, most, 1, "bytes of text") {
		return
	}
	b := c.fixed(n)
	switch c.pass {
	case encoding:
		copy(b, *v)
	case decoding:
		*v = T(b)
	}
}

// list is a counted list. An empty one is decoded as nil.
func list[T any](c *coder, v *[]T, most int, visit func(*coder, *T)) {
	n := len(*v)
	unit := 1
	if c.pass == decoding {
		var zero T
		least := coder{pass: sizing}
		visit(&least, &zero) // all its lists are empty
		unit = least.off
	}
	if !c.count(&n, most, unit, "entries") {
		return
	}
	if c.pass == decoding {
		*v = nil
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		if visit(c, &(*v)[i]); c.err != nil {
			return
		}
	}
}

// noteBytesMax bounds a text for people; more is cut off.
const noteBytesMax = 4096

func note(c *coder, v *string) {
	short := (*v)[:min(len(*v), noteBytesMax)]
	text(c, &short, noteBytesMax)
	if c.pass == decoding {
		*v = short
	}
}

// fault is an error that may be nil.
func fault(c *coder, v **datanode.Error) {
	some := *v != nil
	c.flag(&some)
	if c.err != nil || !some {
		return
	}
	if c.pass == decoding {
		*v = new(datanode.Error)
	}
	mistake(c, *v)
}

func mistake(c *coder, v *datanode.Error) {
	u16(c, &v.Code)
	note(c, &v.Text)
}

// decode fills v from a whole message and says whether v holds memory of it.
func decode[T any](message []byte, v *T, visit func(*coder, *T)) (aliased bool, err *datanode.Error) {
	c := coder{pass: decoding, buf: message}
	visit(&c, v)
	c.end()
	return c.aliased, c.err
}
