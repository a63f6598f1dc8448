package nbdtest

import (
	"bytes"
	"crypto/tls"
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

// TLS goes on in TLS, after a STARTTLS that was acknowledged.
func (r *Raw) TLS(config *tls.Config) *Raw {
	r.t.Helper()
	c := tls.Client(r.Conn, config)
	if err := c.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	return &Raw{c, r.t}
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
	r.Send(wire.MagicRequest, flags, typ, cookie, off, n, payload)
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

// RequestExtended is Request in the extended form.
func (r *Raw) RequestExtended(flags, typ uint16, cookie, off, n uint64, payload []byte) {
	r.t.Helper()
	r.Send(wire.MagicExtendedRequest, flags, typ, cookie, off, n, payload)
}

// EnterAs is Enter after the options named, without data, and with the metadata
// contexts named. It returns their numbers, and the transmission flags.
func (r *Raw) EnterAs(export string, options []uint32, contexts ...string) (ids []uint32, flags uint16) {
	r.t.Helper()
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	for _, opt := range options {
		r.Option(opt, nil)
		if typ := r.LastReply(opt); typ != wire.RepAck {
			r.t.Fatalf("option %d: reply %#x", opt, typ)
		}
	}
	if len(contexts) > 0 {
		r.Option(wire.OptSetMetaContext, MetaData(r.t, export, contexts...))
		for _, want := range contexts {
			typ, payload := r.OptionReply(wire.OptSetMetaContext)
			if typ != wire.RepMetaContext || len(payload) < 4 || string(payload[4:]) != want {
				r.t.Fatalf("context %q: reply %#x %q", want, typ, payload)
			}
			ids = append(ids, binary.BigEndian.Uint32(payload))
		}
		if typ := r.LastReply(wire.OptSetMetaContext); typ != wire.RepAck {
			r.t.Fatalf("SET_META_CONTEXT: reply %#x", typ)
		}
	}
	r.Option(wire.OptGo, InfoData(r.t, export))
	for {
		typ, payload := r.OptionReply(wire.OptGo)
		switch {
		case typ == wire.RepInfo && len(payload) == 12 && binary.BigEndian.Uint16(payload) == wire.InfoExport:
			flags = binary.BigEndian.Uint16(payload[10:])
		case typ == wire.RepAck:
			return ids, flags
		case typ != wire.RepInfo:
			r.t.Fatalf("GO %q: reply %#x", export, typ)
		}
	}
}

// MetaData is the data of a LIST_META_CONTEXT or SET_META_CONTEXT option.
func MetaData(t testing.TB, export string, queries ...string) []byte {
	t.Helper()
	b := Encode(t, uint32(len(export)), export, uint32(len(queries)))
	for _, q := range queries {
		b = append(b, Encode(t, uint32(len(q)), q)...)
	}
	return b
}

// Chunk reads one chunk of a structured reply, or an extended one.
func (r *Raw) Chunk(extended bool) (h wire.Chunk, payload []byte) {
	r.t.Helper()
	magic := wire.MagicChunk
	if extended {
		magic = wire.MagicExtendedReply
		h = wire.DecodeExtendedReply(r.Receive(wire.ExtendedReplyBytes))
	} else {
		h = wire.DecodeChunk(r.Receive(wire.ChunkBytes))
	}
	if h.Magic != magic || h.Length > wire.PayloadBytesMax+8 {
		r.t.Fatalf("chunk %+v", h)
	}
	return h, r.Receive(int(h.Length))
}

// ExpectError reads a reply that is one error chunk and checks its number.
func (r *Raw) ExpectError(extended bool, errno uint32, cookie uint64) {
	r.t.Helper()
	h, b := r.Chunk(extended)
	if h.Type != wire.ChunkErr || h.Cookie != cookie || h.Flags != wire.ChunkFlagDone || len(b) < 6 ||
		binary.BigEndian.Uint32(b) != errno || int(binary.BigEndian.Uint16(b[4:])) != len(b)-6 {
		r.t.Fatalf("chunk %+v %x, want error %d to cookie %d", h, b, errno, cookie)
	}
}
