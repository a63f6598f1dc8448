package nbd

import (
	"context"
	"sync/atomic"

	"plinth/nbd/internal/wire"
)

// form is how requests and replies look on a connection, as negotiated.
type form uint8

const (
	formSimple     form = iota // compact requests, simple replies
	formStructured             // compact requests, structured replies
	formExtended               // extended requests and replies
)

// limits are what a connection's requests are judged by.
type limits struct {
	size     int64 // of the device, bytes
	readOnly bool
	cache    bool // CACHE is offered
	fastZero bool // FAST_ZERO is offered
	form     form
	contexts contexts // of BLOCK_STATUS
}

// request is one request in flight: from its header's arrival until its reply
// is written. One goroutine at a time owns it: the reader, a worker, the
// writer.
type request struct {
	wire.Request
	// ctx is the device call's.
	ctx context.Context
	// buf is a write's payload or room for a read's. nil: no payload.
	buf *buffer
	// poured is how much of a write the device has; buf is the rest.
	poured uint64
	// charged is what the request took from the window, in bytes.
	charged int64
	// due is for overdue.go; substitute is an answer that stands for one whose
	// device has not returned, and is not the window's.
	due        atomic.Int64
	substitute bool
	// refused requests came after shutdown began and do not hold it up.
	refused bool
	errno   Errno
	// contexts are those that a BLOCK_STATUS asks for; runs is the answer of
	// each, all of the same length in bytes.
	contexts contexts
	runs     [][]run

	// out is the reply, set by encode: pieces of head, more and buf.
	out  [][]byte
	head [wire.ExtendedReplyBytes]byte
	more []byte
}

func (r *request) has(flag uint16) bool { return r.Flags&flag != 0 }

func (r *request) fua() bool { return r.has(wire.CmdFlagFUA) }

// moreBytesKept bounds what a request keeps for the next one.
const moreBytesKept = 4 << 10

// reset gives up what the request held.
func (r *request) reset() {
	if r.buf != nil {
		r.buf.put()
		r.buf = nil
	}
	clear(r.out) // they may point into the buffer
	if r.out = r.out[:0]; cap(r.more) > moreBytesKept {
		r.out, r.more = nil, nil
	}
	r.ctx, r.runs, r.errno, r.poured = nil, nil, 0, 0
}

// check judges a request header (magic apart) by the protocol's rules, before
// anything is allocated for it. The range of a BLOCK_STATUS with a payload is
// in the payload, and not judged here.
func check(h *wire.Request, l *limits) Errno {
	allowed := wire.CmdFlagFUA // existing clients set it on any command
	changes, ranged := isChange(h.Type), true
	payload := false // one may follow
	switch h.Type {
	case wire.CmdRead:
		if l.form != formSimple {
			allowed |= wire.CmdFlagDF
		}
	case wire.CmdWrite:
		payload = true
		if l.form == formExtended && !payloadFollows(h) {
			return EINVAL
		}
	case wire.CmdTrim:
	case wire.CmdWriteZeroes:
		allowed |= wire.CmdFlagNoHole
		if l.fastZero {
			allowed |= wire.CmdFlagFastZero
		}
	case wire.CmdCache:
		if !l.cache {
			return EINVAL
		}
	case wire.CmdBlockStatus:
		if len(l.contexts) == 0 {
			return EINVAL
		}
		payload = true
		allowed |= wire.CmdFlagReqOne
	case wire.CmdFlush:
		ranged = false
	default:
		return EINVAL
	}
	if l.form == formExtended && payload {
		allowed |= wire.CmdFlagPayloadLen
	}
	switch {
	case h.Flags&^allowed != 0:
		return EINVAL
	case !ranged:
		if h.Offset != 0 || h.Length != 0 {
			return EINVAL
		}
		return 0
	case changes && l.readOnly:
		return EPERM
	case h.Type == wire.CmdWrite && h.Length > PayloadBytesMax:
		return EINVAL
	case h.Type == wire.CmdBlockStatus && payloadFollows(h):
		return 0
	}
	return checkRange(h, l)
}

// payloadFollows reports the flag that means it in extended requests.
func payloadFollows(h *wire.Request) bool { return h.Flags&wire.CmdFlagPayloadLen != 0 }

// checkRange judges offset and length.
func checkRange(h *wire.Request, l *limits) Errno {
	size := uint64(l.size)
	switch {
	// Subtracted, not added: offset + length may exceed 64 bits.
	case h.Offset > size || h.Length > size-h.Offset:
		return beyondEnd(h.Type)
	case h.Type == wire.CmdRead && h.Length > PayloadBytesMax:
		if l.form == formSimple {
			return EINVAL
		}
		return EOVERFLOW
	case h.Type == wire.CmdBlockStatus && h.Length == 0:
		return EINVAL
	}
	return 0
}

// payloadHeld is the number of bytes to be held for an accepted request.
func payloadHeld(h *wire.Request) int {
	if h.Type == wire.CmdWrite || h.Type == wire.CmdRead {
		return int(h.Length)
	}
	return 0
}
