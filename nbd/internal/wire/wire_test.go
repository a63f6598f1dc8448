package wire

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The hand-written codecs of the hot path must agree with the fixed structs.
func TestHeadersMatchProtocolStructs(t *testing.T) {
	req := protocol.TransmissionRequestHeader{
		RequestMagic: MagicRequest, CommandFlags: 0x0102, Type: 0x0304,
		Handle: 0x05060708090a0b0c, Offset: 0x1112131415161718, Length: 0x21222324,
	}
	var b [RequestBytes]byte
	PutRequest(b[:], Request{req.RequestMagic, req.CommandFlags, req.Type, req.Handle, req.Offset, uint64(req.Length)})
	want, err := binary.Append(nil, binary.BigEndian, req)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:], want) {
		t.Errorf("request: %x, want %x", b, want)
	}
	if got := DecodeRequest(want); got != (Request{req.RequestMagic, req.CommandFlags, req.Type, req.Handle, req.Offset, uint64(req.Length)}) {
		t.Errorf("DecodeRequest = %+v", got)
	}

	rep := protocol.TransmissionReplyHeader{ReplyMagic: MagicReply, Error: 28, Handle: 0x0102030405060708}
	var rb [ReplyBytes]byte
	PutReply(rb[:], rep.Error, rep.Handle)
	want, err = binary.Append(nil, binary.BigEndian, rep)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(rb[:], want) {
		t.Errorf("reply: %x, want %x", rb, want)
	}
	if got := DecodeReply(want); got != rep {
		t.Errorf("DecodeReply = %+v", got)
	}
}

// The layouts of proto.md, written out.
func TestChunksAndExtendedHeaders(t *testing.T) {
	c := Chunk{Flags: ChunkFlagDone, Type: ChunkData, Cookie: 0x0102030405060708, Offset: 0x1112131415161718, Length: 0x21222324}
	structured := []byte{0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x21, 0x22, 0x23, 0x24}
	var b [ExtendedReplyBytes]byte
	PutChunk(b[:], c)
	if !bytes.Equal(b[:ChunkBytes], structured) {
		t.Errorf("chunk: %x, want %x", b[:ChunkBytes], structured)
	}
	want := c
	want.Magic, want.Offset = MagicChunk, 0
	if got := DecodeChunk(structured); got != want {
		t.Errorf("DecodeChunk = %+v", got)
	}
	extended := []byte{0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
		0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 0x21, 0x22, 0x23, 0x24}
	PutExtendedReply(b[:], c)
	if !bytes.Equal(b[:], extended) {
		t.Errorf("extended reply: %x, want %x", b, extended)
	}
	want.Magic, want.Offset = MagicExtendedReply, c.Offset
	if got := DecodeExtendedReply(extended); got != want {
		t.Errorf("DecodeExtendedReply = %+v", got)
	}
	r := Request{MagicExtendedRequest, CmdFlagPayloadLen, CmdWrite, 1, 2, 1 << 40}
	wire := []byte{0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1,
		0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0}
	PutExtendedRequest(b[:], r)
	if !bytes.Equal(b[:], wire) {
		t.Errorf("extended request: %x, want %x", b, wire)
	}
	if got := DecodeExtendedRequest(wire); got != r {
		t.Errorf("DecodeExtendedRequest = %+v", got)
	}
}
