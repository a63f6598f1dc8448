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
	PutRequest(b[:], req)
	want, err := binary.Append(nil, binary.BigEndian, req)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:], want) {
		t.Errorf("request: %x, want %x", b, want)
	}
	if got := DecodeRequest(want); got != req {
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
