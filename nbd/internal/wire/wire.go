// Package wire holds the numbers and fixed headers of the NBD protocol that
// server and client share: those of go-nbd's protocol package under this
// project's names, and those it lacks. All integers are big-endian.
//
// Source: the NBD protocol, proto.md of the NetworkBlockDevice project,
// sections "Values" and "Transmission".
package wire

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Magic numbers.
const (
	MagicInit        = protocol.NEGOTIATION_MAGIC_OLDSTYLE
	MagicOption      = protocol.NEGOTIATION_MAGIC_OPTION
	MagicOptionReply = protocol.NEGOTIATION_MAGIC_REPLY
	MagicRequest     = protocol.TRANSMISSION_MAGIC_REQUEST
	MagicReply       = protocol.TRANSMISSION_MAGIC_REPLY

	MagicChunk           = uint32(0x668e33ef) // structured reply
	MagicExtendedRequest = uint32(0x21e41c71)
	MagicExtendedReply   = uint32(0x6e8a278c)
)

// Handshake flags of the server (16 bits) and of the client (32 bits).
const (
	HandshakeFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	HandshakeNoZeroes      = uint16(1 << 1)

	ClientFixedNewstyle = uint32(1 << 0)
	ClientNoZeroes      = uint32(1 << 1)
)

// Option numbers.
const (
	OptExportName = uint32(1)
	OptAbort      = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList       = protocol.NEGOTIATION_ID_OPTION_LIST
	OptInfo       = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo         = protocol.NEGOTIATION_ID_OPTION_GO

	OptStartTLS        = uint32(5)
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Option reply types. Errors have RepError set.
const (
	RepAck    = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo   = protocol.NEGOTIATION_TYPE_REPLY_INFO

	RepMetaContext = uint32(4)

	RepError       = uint32(1 << 31)
	RepErrUnsup    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy   = RepError | 2
	RepErrInvalid  = RepError | 3
	RepErrUnknown  = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrTLSReqd  = RepError | 5
	RepErrShutdown = RepError | 7
	RepErrTooBig   = RepError | 9

	RepErrExtHeaderReqd = RepError | 10
)

// Information types of INFO and GO.
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags.
const (
	FlagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	FlagReadOnly        = uint16(1 << 1)
	FlagSendFlush       = uint16(1 << 2)
	FlagSendFUA         = uint16(1 << 3)
	FlagRotational      = uint16(1 << 4)
	FlagSendTrim        = uint16(1 << 5)
	FlagSendWriteZeroes = uint16(1 << 6)
	FlagSendDF          = uint16(1 << 7)
	FlagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	FlagSendCache       = uint16(1 << 10)
	FlagSendFastZero    = uint16(1 << 11)

	FlagBlockStatusPayload = uint16(1 << 12)
)

// Request types.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
)

// Command flags.
const (
	CmdFlagFUA    = uint16(1 << 0)
	CmdFlagNoHole = uint16(1 << 1)

	CmdFlagDF         = uint16(1 << 2)
	CmdFlagReqOne     = uint16(1 << 3)
	CmdFlagFastZero   = uint16(1 << 4)
	CmdFlagPayloadLen = uint16(1 << 5)
)

// Types of chunks of structured and extended replies. Errors have ChunkError
// set.
const (
	ChunkNone           = uint16(0)
	ChunkData           = uint16(1)
	ChunkHole           = uint16(2)
	ChunkBlockStatus    = uint16(5)
	ChunkBlockStatusExt = uint16(6)

	ChunkError     = uint16(1 << 15)
	ChunkErr       = ChunkError | 1
	ChunkErrOffset = ChunkError | 2

	// ChunkFlagDone marks a reply's last chunk.
	ChunkFlagDone = uint16(1)
)

// Metadata contexts and the bits of base:allocation.
const (
	ContextAllocation = "base:allocation"
	ContextDepth      = "qemu:allocation-depth"

	// The name of a bitmap follows, whose bit 0 is StateDirty.
	ContextDirtyPrefix = "qemu:dirty-bitmap:"

	StateHole = uint32(1 << 0)
	StateZero = uint32(1 << 1)

	StateDirty = uint32(1 << 0)
)

// Sizes in bytes.
const (
	// OptionHeaderBytes is magic 8, option 4, length 4.
	OptionHeaderBytes = 16
	// OptionReplyHeaderBytes is magic 8, option 4, type 4, length 4.
	OptionReplyHeaderBytes = 20
	// ExportNamePadBytes is the zero padding that ends the reply to
	// EXPORT_NAME unless the client set ClientNoZeroes.
	ExportNamePadBytes = 124
	// RequestBytes is magic 4, flags 2, type 2, cookie 8, offset 8, length 4.
	RequestBytes = 28
	// ReplyBytes is magic 4, error 4, cookie 8.
	ReplyBytes = 16
	// ChunkBytes is magic 4, flags 2, type 2, cookie 8, payload length 4.
	ChunkBytes = 20
	// ExtendedRequestBytes is magic 4, flags 2, type 2, cookie 8, offset 8,
	// length 8.
	ExtendedRequestBytes = 32
	// ExtendedReplyBytes is magic 4, flags 2, type 2, cookie 8, offset 8,
	// payload length 8.
	ExtendedReplyBytes = 32
	// DescriptorsMax bounds the descriptors of a block status chunk.
	DescriptorsMax = 1 << 20
	// StringBytesMax bounds every string of the protocol.
	StringBytesMax = 4096
	// PayloadBytesMax is what every implementation must take in one request.
	PayloadBytesMax = 32 << 20
)

// Request is a request header of either form.
type Request struct {
	Magic          uint32
	Flags, Type    uint16
	Cookie, Offset uint64
	Length         uint64 // at most 2^32-1 in the compact form
}

// Payload is the number of bytes that follow the header on the wire.
func (r *Request) Payload() uint64 {
	if r.Magic == MagicExtendedRequest && r.Flags&CmdFlagPayloadLen != 0 || r.Magic == MagicRequest && r.Type == CmdWrite {
		return r.Length
	}
	return 0
}

// DecodeRequest reads a compact request header from the first RequestBytes of
// b. The magic is the caller's to check.
func DecodeRequest(b []byte) Request {
	_ = b[RequestBytes-1]
	return Request{
		Magic:  binary.BigEndian.Uint32(b),
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: uint64(binary.BigEndian.Uint32(b[24:])),
	}
}

// DecodeExtendedRequest is DecodeRequest for ExtendedRequestBytes.
func DecodeExtendedRequest(b []byte) Request {
	_ = b[ExtendedRequestBytes-1]
	r := DecodeRequest(b)
	r.Length = binary.BigEndian.Uint64(b[24:])
	return r
}

// PutRequest writes a compact header to the first RequestBytes of b.
func PutRequest(b []byte, r Request) {
	_ = b[RequestBytes-1]
	binary.BigEndian.PutUint32(b, r.Magic)
	binary.BigEndian.PutUint16(b[4:], r.Flags)
	binary.BigEndian.PutUint16(b[6:], r.Type)
	binary.BigEndian.PutUint64(b[8:], r.Cookie)
	binary.BigEndian.PutUint64(b[16:], r.Offset)
	binary.BigEndian.PutUint32(b[24:], uint32(r.Length))
}

// PutExtendedRequest writes an extended header to the first
// ExtendedRequestBytes of b.
func PutExtendedRequest(b []byte, r Request) {
	_ = b[ExtendedRequestBytes-1]
	PutRequest(b, r)
	binary.BigEndian.PutUint64(b[24:], r.Length)
}

// Chunk is the header of a chunk of a structured or extended reply.
type Chunk struct {
	Magic          uint32
	Flags, Type    uint16
	Cookie, Offset uint64 // Offset is the request's, and in extended ones only
	Length         uint64 // of the payload; at most 2^32-1 in structured ones
}

// DecodeChunk reads a structured header from the first ChunkBytes of b. The
// magic is the caller's to check.
func DecodeChunk(b []byte) Chunk {
	_ = b[ChunkBytes-1]
	return Chunk{
		Magic:  binary.BigEndian.Uint32(b),
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Length: uint64(binary.BigEndian.Uint32(b[16:])),
	}
}

// DecodeExtendedReply is DecodeChunk for ExtendedReplyBytes.
func DecodeExtendedReply(b []byte) Chunk {
	_ = b[ExtendedReplyBytes-1]
	c := DecodeChunk(b)
	c.Offset, c.Length = binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])
	return c
}

// PutChunk writes a structured header to the first ChunkBytes of b.
func PutChunk(b []byte, c Chunk) {
	_ = b[ChunkBytes-1]
	binary.BigEndian.PutUint32(b, MagicChunk)
	binary.BigEndian.PutUint16(b[4:], c.Flags)
	binary.BigEndian.PutUint16(b[6:], c.Type)
	binary.BigEndian.PutUint64(b[8:], c.Cookie)
	binary.BigEndian.PutUint32(b[16:], uint32(c.Length))
}

// PutExtendedReply writes an extended header to the first ExtendedReplyBytes
// of b.
func PutExtendedReply(b []byte, c Chunk) {
	_ = b[ExtendedReplyBytes-1]
	binary.BigEndian.PutUint32(b, MagicExtendedReply)
	binary.BigEndian.PutUint16(b[4:], c.Flags)
	binary.BigEndian.PutUint16(b[6:], c.Type)
	binary.BigEndian.PutUint64(b[8:], c.Cookie)
	binary.BigEndian.PutUint64(b[16:], c.Offset)
	binary.BigEndian.PutUint64(b[24:], c.Length)
}

// DecodeReply reads a simple reply header from the first ReplyBytes of b. The
// magic is the caller's to check.
func DecodeReply(b []byte) protocol.TransmissionReplyHeader {
	_ = b[ReplyBytes-1]
	return protocol.TransmissionReplyHeader{
		ReplyMagic: binary.BigEndian.Uint32(b),
		Error:      binary.BigEndian.Uint32(b[4:]),
		Handle:     binary.BigEndian.Uint64(b[8:]),
	}
}

// PutReply writes a simple reply header to the first ReplyBytes of b.
func PutReply(b []byte, errno uint32, cookie uint64) {
	_ = b[ReplyBytes-1]
	binary.BigEndian.PutUint32(b, MagicReply)
	binary.BigEndian.PutUint32(b[4:], errno)
	binary.BigEndian.PutUint64(b[8:], cookie)
}
