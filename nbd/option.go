package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd/internal/wire"
)

// infoRequest is the data of an INFO or GO option.
type infoRequest struct {
	name                         string
	wantName, wantDesc, wantSize bool
}

// parseInfoRequest reads the data of INFO and GO: name length 4, name, number
// of information requests 2, that many numbers of 2 bytes. Unknown requests
// are ignored and repeated ones count once (proto.md, NBD_OPT_INFO).
func parseInfoRequest(data []byte) (infoRequest, error) {
	var q infoRequest
	if len(data) < 6 {
		return q, fmt.Errorf("%d bytes of data, need 6", len(data))
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-6) {
		return q, fmt.Errorf("name of %d bytes in %d bytes of data", n, len(data))
	}
	name, rest := data[4:4+n], data[4+n:]
	if err := checkName(name); err != nil {
		return q, err
	}
	q.name = string(name)
	count := int(binary.BigEndian.Uint16(rest))
	rest = rest[2:]
	if len(rest) != 2*count {
		return q, fmt.Errorf("%d information requests in %d bytes", count, len(rest))
	}
	for ; len(rest) > 0; rest = rest[2:] {
		switch binary.BigEndian.Uint16(rest) {
		case wire.InfoName:
			q.wantName = true
		case wire.InfoDescription:
			q.wantDesc = true
		case wire.InfoBlockSize:
			q.wantSize = true
		}
	}
	return q, nil
}

// checkName refuses what the protocol does not allow as a string.
func checkName(name []byte) error {
	switch {
	case len(name) > wire.StringBytesMax:
		return fmt.Errorf("name of %d bytes, at most %d", len(name), wire.StringBytesMax)
	case !utf8.Valid(name) || bytes.IndexByte(name, 0) >= 0:
		return fmt.Errorf("name is not text")
	}
	return nil
}

// infoReplies returns the payloads of the information replies to q, EXPORT
// first, on a connection of form f.
func infoReplies(e ExportInfo, q infoRequest, f form, contexts bool) [][]byte {
	out := [][]byte{encode(protocol.NegotiationReplyInfo{
		Type:              wire.InfoExport,
		Size:              uint64(e.Size),
		TransmissionFlags: transmissionFlags(e, f, contexts),
	})}
	if q.wantName {
		out = append(out, append(encode(wire.InfoName), e.Name...))
	}
	if q.wantDesc && e.Description != "" {
		out = append(out, append(encode(wire.InfoDescription), e.Description...))
	}
	if q.wantSize {
		out = append(out, encode(protocol.NegotiationReplyBlockSize{
			Type:               wire.InfoBlockSize,
			MinimumBlockSize:   1,
			PreferredBlockSize: preferredBlockSize(e.PreferredBlockSize),
			MaximumBlockSize:   PayloadBytesMax,
		}))
	}
	return out
}

// serverReply is the payload of one LIST entry: name length 4, name,
// description.
func serverReply(e ExportInfo) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
	return append(append(b, e.Name...), e.Description...)
}

// exportNameReply is the whole reply to EXPORT_NAME.
func exportNameReply(e ExportInfo, f form, noZeroes bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags(e, f, false))
	if !noZeroes {
		b = append(b, make([]byte, wire.ExportNamePadBytes)...)
	}
	return b
}

// transmissionFlags says what the client may ask; contexts, that it has
// selected some of this export.
func transmissionFlags(e ExportInfo, form form, contexts bool) uint16 {
	f := wire.FlagHasFlags | wire.FlagSendFlush | wire.FlagSendFUA
	if e.ReadOnly {
		f |= wire.FlagReadOnly
	} else {
		f |= wire.FlagSendTrim | wire.FlagSendWriteZeroes
	}
	if e.Rotational {
		f |= wire.FlagRotational
	}
	if e.MultiConn {
		f |= wire.FlagCanMultiConn
	}
	if e.Cache {
		f |= wire.FlagSendCache
	}
	if e.FastZero && !e.ReadOnly {
		f |= wire.FlagSendFastZero
	}
	if form != formSimple {
		f |= wire.FlagSendDF
	}
	if form == formExtended && contexts {
		f |= wire.FlagBlockStatusPayload
	}
	return f
}

func preferredBlockSize(n uint32) uint32 {
	if n < 512 || n > PayloadBytesMax || n&(n-1) != 0 {
		return 4096
	}
	return n
}

// encode returns the wire form of a number or fixed struct of the protocol.
func encode(v any) []byte {
	b, err := binary.Append(nil, binary.BigEndian, v)
	if err != nil {
		panic(fmt.Sprintf("nbd: encode %T: %v", v, err)) // a type without fixed size
	}
	return b
}
