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
)

// Option reply types. Errors have RepError set.
const (
	RepAck    = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo   = protocol.NEGOTIATION_TYPE_REPLY_INFO

	RepError       = uint32(1 << 31)
	RepErrUnsup    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy   = RepError | 2
	RepErrInvalid  = RepError | 3
	RepErrUnknown  = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown = RepError | 7
	RepErrTooBig   = RepError | 9
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
	FlagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
)

// Request types.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdWriteZeroes = uint16(6)
)

// Command flags.
const (
	CmdFlagFUA    = uint16(1 << 0)
	CmdFlagNoHole = uint16(1 << 1)
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
	// StringBytesMax bounds every string of the protocol.
	StringBytesMax = 4096
	// PayloadBytesMax is what every implementation must take in one request.
	PayloadBytesMax = 32 << 20
)

// DecodeRequest reads a request header from the first RequestBytes of b. The
// magic is the caller's to check.
func DecodeRequest(b []byte) protocol.TransmissionRequestHeader {
	_ = b[RequestBytes-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
}

// PutRequest writes h to the first RequestBytes of b.
func PutRequest(b []byte, h protocol.TransmissionRequestHeader) {
	_ = b[RequestBytes-1]
	binary.BigEndian.PutUint32(b, h.RequestMagic)
	binary.BigEndian.PutUint16(b[4:], h.CommandFlags)
	binary.BigEndian.PutUint16(b[6:], h.Type)
	binary.BigEndian.PutUint64(b[8:], h.Handle)
	binary.BigEndian.PutUint64(b[16:], h.Offset)
	binary.BigEndian.PutUint32(b[24:], h.Length)
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
