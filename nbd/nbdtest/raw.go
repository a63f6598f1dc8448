package nbdtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd/internal/wire"
)

// rawTime bounds every exchange of a Raw, so that a server that does not
// answer fails the test.
const rawTime = 20 * time.Second

// Raw is a client's end of a connection on which a test says anything. Its
// methods fail the test where the server does not answer as the protocol has
// it.
type Raw struct {
	net.Conn
	t testing.TB
}

// NewRaw wraps conn, which is closed when the test ends.
func NewRaw(t testing.TB, conn net.Conn) *Raw {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(rawTime)); err != nil {
		t.Fatal(err)
	}
	return &Raw{conn, t}
}

// Send sends numbers and fixed structs in their wire form, and bytes as they
// are. A server that has hung up is not a failure here.
func (r *Raw) Send(parts ...any) {
	r.t.Helper()
	r.Write(Encode(r.t, parts...))
}

// Encode returns the wire form of parts.
func Encode(t testing.TB, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		if s, ok := p.(string); ok {
			p = []byte(s)
		}
		if err := binary.Write(&b, binary.BigEndian, p); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// Receive reads n bytes.
func (r *Raw) Receive(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		r.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// Greet takes the server's greeting and answers with flags.
func (r *Raw) Greet(flags uint32) {
	r.t.Helper()
	b := r.Receive(18)
	if binary.BigEndian.Uint64(b) != wire.MagicInit || binary.BigEndian.Uint64(b[8:]) != wire.MagicOption ||
		binary.BigEndian.Uint16(b[16:])&wire.HandshakeFixedNewstyle == 0 {
		r.t.Fatalf("greeting %x", b)
	}
	r.Send(flags)
}

// Option sends an option.
func (r *Raw) Option(opt uint32, data []byte) {
	r.t.Helper()
	r.Send(protocol.NegotiationOptionHeader{OptionMagic: wire.MagicOption, ID: opt, Length: uint32(len(data))}, data)
}

// OptionReply reads one reply to opt.
func (r *Raw) OptionReply(opt uint32) (typ uint32, payload []byte) {
	r.t.Helper()
	b := r.Receive(wire.OptionReplyHeaderBytes)
	if binary.BigEndian.Uint64(b) != wire.MagicOptionReply || binary.BigEndian.Uint32(b[8:]) != opt {
		r.t.Fatalf("reply to option %d: %x", opt, b)
	}
	return binary.BigEndian.Uint32(b[12:]), r.Receive(int(binary.BigEndian.Uint32(b[16:])))
}

// LastReply reads replies to opt up to the one that ends them, ACK or error.
func (r *Raw) LastReply(opt uint32) (typ uint32) {
	r.t.Helper()
	for {
		typ, _ = r.OptionReply(opt)
		if typ == wire.RepAck || typ&wire.RepError != 0 {
			return typ
		}
	}
}

// InfoData is the data of an INFO or GO option.
func InfoData(t testing.TB, name string, wants ...uint16) []byte {
	t.Helper()
	return Encode(t, uint32(len(name)), name, uint16(len(wants)), wants)
}

// Enter greets and opens export with GO.
func (r *Raw) Enter(export string) {
	r.t.Helper()
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	r.Option(wire.OptGo, InfoData(r.t, export))
	if typ := r.LastReply(wire.OptGo); typ != wire.RepAck {
		r.t.Fatalf("GO %q: reply %#x", export, typ)
	}
}

// Request sends a request whose header may say anything, the magic apart.
func (r *Raw) Request(flags, typ uint16, cookie, off uint64, n uint32, payload []byte) {
	r.t.Helper()
	r.Send(protocol.TransmissionRequestHeader{
		RequestMagic: wire.MagicRequest, CommandFlags: flags, Type: typ, Handle: cookie, Offset: off, Length: n,
	}, payload)
}

// Reply reads the head of a reply.
func (r *Raw) Reply() (errno uint32, cookie uint64) {
	r.t.Helper()
	h := wire.DecodeReply(r.Receive(wire.ReplyBytes))
	if h.ReplyMagic != wire.MagicReply {
		r.t.Fatalf("reply %+v", h)
	}
	return h.Error, h.Handle
}

// Expect reads a reply's head and compares it.
func (r *Raw) Expect(errno uint32, cookie uint64) {
	r.t.Helper()
	if e, c := r.Reply(); e != errno || c != cookie {
		r.t.Fatalf("reply with error %d to cookie %d, want %d to %d", e, c, errno, cookie)
	}
}

// ExpectEnd reads until the server hangs up, and returns what came before.
func (r *Raw) ExpectEnd() []byte {
	r.t.Helper()
	b, err := io.ReadAll(r)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		r.t.Fatal("the server did not hang up")
	}
	return b
}
