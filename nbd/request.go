package nbd

import (
	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd/internal/wire"
)

// request is one request in flight: from its header's arrival until its reply
// is written. One goroutine at a time owns it: the reader, a worker, the
// writer.
type request struct {
	protocol.TransmissionRequestHeader
	// buf is a write's payload or room for a read's. nil: no payload.
	buf *buffer
	// charged is what the request took from the window, in bytes.
	charged int64
	// refused requests came after shutdown began and do not hold it up.
	refused bool
	errno   Errno
	head    [wire.ReplyBytes]byte
}

func (r *request) fua() bool { return r.CommandFlags&wire.CmdFlagFUA != 0 }

// frame returns the reply's bytes. They are valid until the request is
// released. A payload leaves only with a successful read.
func (r *request) frame() []byte {
	b := r.head[:]
	if r.Type == wire.CmdRead && r.errno == 0 && r.buf != nil {
		b = r.buf.reply()
	}
	wire.PutReply(b, uint32(r.errno), r.Handle)
	return b
}

// check judges a request header (magic apart) by the protocol's rules, before
// anything is allocated for it. size is the device's, in bytes.
func check(h protocol.TransmissionRequestHeader, size int64, readOnly bool) Errno {
	allowedFlags := wire.CmdFlagFUA // existing clients set it on any command
	changes, ranged := false, true
	switch h.Type {
	case wire.CmdRead:
	case wire.CmdWrite, wire.CmdTrim:
		changes = true
	case wire.CmdWriteZeroes:
		changes = true
		allowedFlags |= wire.CmdFlagNoHole
	case wire.CmdFlush:
		ranged = false
	default:
		return EINVAL
	}
	switch {
	case h.CommandFlags&^allowedFlags != 0:
		return EINVAL
	case !ranged:
		if h.Offset != 0 || h.Length != 0 {
			return EINVAL
		}
		return 0
	case changes && readOnly:
		return EPERM
	case (h.Type == wire.CmdRead || h.Type == wire.CmdWrite) && h.Length > PayloadBytesMax:
		return EINVAL
	// Subtracted, not added: offset + length may exceed 64 bits.
	case h.Offset > uint64(size) || uint64(h.Length) > uint64(size)-h.Offset:
		return beyondEnd(h.Type)
	}
	return 0
}

// payloadIn is the number of bytes that follow h on the wire.
func payloadIn(h protocol.TransmissionRequestHeader) int {
	if h.Type == wire.CmdWrite {
		return int(h.Length)
	}
	return 0
}

// payloadHeld is the number of bytes to be held for an accepted request.
func payloadHeld(h protocol.TransmissionRequestHeader) int {
	if h.Type == wire.CmdWrite || h.Type == wire.CmdRead {
		return int(h.Length)
	}
	return 0
}
