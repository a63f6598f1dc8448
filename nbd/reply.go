package nbd

import (
	"bytes"
	"encoding/binary"

	"plinth/nbd/internal/wire"
)

const (
	// holeUnitBytes is the unit, aligned in the export, in which a read's
	// payload is looked through for zeros.
	holeUnitBytes = 4 << 10
	// holeBytesMin is the least run of zeros that leaves a read's payload: a
	// shorter one costs more in chunks than it saves. A payload of nothing but
	// zeros is a hole at any length from holeUnitBytes up.
	holeBytesMin = 16 << 10
)

var zeroUnit [holeUnitBytes]byte

// encode makes the reply. Its bytes are valid until the request is released. A
// payload leaves only with a successful read.
func (r *request) encode(f form) {
	switch {
	case r.errno != 0 && f != formSimple:
		r.encodeError(f)
	case r.Type == wire.CmdRead && r.errno == 0 && r.buf != nil:
		r.encodeRead(f)
	case r.Type == wire.CmdBlockStatus && r.errno == 0:
		r.encodeStatus(f)
	case f == formExtended:
		wire.PutExtendedReply(r.head[:], r.chunk(wire.ChunkNone, true, 0))
		r.out = append(r.out, r.head[:])
	case f == formStructured && r.Type == wire.CmdRead:
		wire.PutChunk(r.head[:], r.chunk(wire.ChunkNone, true, 0))
		r.out = append(r.out, r.head[:wire.ChunkBytes])
	default:
		wire.PutReply(r.head[:], uint32(r.errno), r.Cookie)
		r.out = append(r.out, r.head[:wire.ReplyBytes])
	}
}

// chunk is the header of a chunk with n bytes of payload.
func (r *request) chunk(typ uint16, last bool, n int) wire.Chunk {
	c := wire.Chunk{Type: typ, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(n)}
	if last {
		c.Flags = wire.ChunkFlagDone
	}
	return c
}

// headBytes is the length of a chunk's header.
func (f form) headBytes() int {
	if f == formExtended {
		return wire.ExtendedReplyBytes
	}
	return wire.ChunkBytes
}

func (f form) putHead(b []byte, c wire.Chunk) {
	if f == formExtended {
		wire.PutExtendedReply(b, c)
	} else {
		wire.PutChunk(b, c)
	}
}

// appendHead puts a chunk's header behind more.
func (r *request) appendHead(f form, c wire.Chunk) {
	var b [wire.ExtendedReplyBytes]byte
	f.putHead(b[:], c)
	r.more = append(r.more, b[:f.headBytes()]...)
}

func (r *request) encodeError(f form) {
	text := r.errno.Error()
	r.more = r.more[:0]
	r.appendHead(f, r.chunk(wire.ChunkErr, true, 6+len(text)))
	r.more = binary.BigEndian.AppendUint32(r.more, uint32(r.errno))
	r.more = binary.BigEndian.AppendUint16(r.more, uint16(len(text)))
	r.more = append(r.more, text...)
	r.out = append(r.out, r.more)
}

// encodeRead sends the payload with its header in front as one piece of
// memory, or in chunks of data and holes.
func (r *request) encodeRead(f form) {
	if f == formSimple {
		b := r.buf.from(wire.ReplyBytes)
		wire.PutReply(b, 0, r.Cookie)
		r.out = append(r.out, b)
		return
	}
	data := r.buf.data()
	if !r.has(wire.CmdFlagDF) {
		if from, to := nextHole(data, r.Offset, 0); from < to {
			r.encodeHoles(f, data, from, to)
			return
		}
	}
	head := f.headBytes() + 8
	b := r.buf.from(head)
	f.putHead(b, r.chunk(wire.ChunkData, true, 8+len(data)))
	binary.BigEndian.PutUint64(b[head-8:], r.Offset)
	r.out = append(r.out, b)
}

// encodeHoles is encodeRead for a payload whose first hole is [from, to).
func (r *request) encodeHoles(f form, data []byte, from, to int) {
	r.more = r.more[:0]
	for at := 0; at < len(data); {
		start := len(r.more)
		if at < from {
			r.appendHead(f, r.chunk(wire.ChunkData, from == len(data), 8+from-at))
			r.more = binary.BigEndian.AppendUint64(r.more, r.Offset+uint64(at))
			r.out = append(r.out, r.more[start:], data[at:from])
			at = from
			continue
		}
		r.appendHead(f, r.chunk(wire.ChunkHole, to == len(data), 12))
		r.more = binary.BigEndian.AppendUint64(r.more, r.Offset+uint64(from))
		r.more = binary.BigEndian.AppendUint32(r.more, uint32(to-from))
		r.out = append(r.out, r.more[start:])
		at = to
		from, to = nextHole(data, r.Offset, at)
	}
}

// nextHole returns the first run of zeros in data at or after at that is worth
// a chunk, or len(data) twice. off is data's place in the export.
func nextHole(data []byte, off uint64, at int) (from, to int) {
	from = at
	for at < len(data) {
		end := min(len(data), at+holeUnitBytes-int((off+uint64(at))%holeUnitBytes))
		if bytes.Equal(data[at:end], zeroUnit[:end-at]) {
			at = end
			continue
		}
		if at-from >= holeBytesMin {
			return from, at
		}
		at, from = end, end
	}
	if n := len(data) - from; n >= holeBytesMin || from == 0 && n >= holeUnitBytes {
		return from, len(data)
	}
	return len(data), len(data)
}

// encodeStatus makes one chunk per context that was asked for.
func (r *request) encodeStatus(f form) {
	r.more = r.more[:0]
	for i, c := range r.contexts {
		n, typ := 4+8*len(r.runs[i]), wire.ChunkBlockStatus
		if f == formExtended {
			n, typ = 8+16*len(r.runs[i]), wire.ChunkBlockStatusExt
		}
		r.appendHead(f, r.chunk(typ, i == len(r.contexts)-1, n))
		r.more = binary.BigEndian.AppendUint32(r.more, uint32(c))
		if f == formExtended {
			r.more = binary.BigEndian.AppendUint32(r.more, uint32(len(r.runs[i])))
		}
		for _, s := range r.runs[i] {
			if f == formExtended {
				r.more = binary.BigEndian.AppendUint64(r.more, uint64(s.n))
				r.more = binary.BigEndian.AppendUint64(r.more, uint64(s.status))
			} else {
				r.more = binary.BigEndian.AppendUint32(r.more, uint32(s.n))
				r.more = binary.BigEndian.AppendUint32(r.more, s.status)
			}
		}
	}
	r.out = append(r.out, r.more)
}
