package nbd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"plinth/nbd/internal/wire"
)

// zeros is a device of 64 KiB that reads as zeros.
type zeros struct{}

const zerosBytes = 64 << 10

func (zeros) Size() int64 { return zerosBytes }
func (zeros) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	return inside(off, int64(len(p)))
}
func (zeros) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	return inside(off, int64(len(p)))
}
func (zeros) Trim(_ context.Context, off, n int64, _ bool) error    { return inside(off, n) }
func (zeros) Zero(_ context.Context, off, n int64, _, _ bool) error { return inside(off, n) }
func (zeros) Flush(context.Context) error                           { return nil }
func (zeros) Prefetch(_ context.Context, off, n int64) error        { return inside(off, n) }
func (zeros) ZeroIsFast(off, n int64, mayTrim bool) bool            { return mayTrim && inside(off, n) == nil }
func (zeros) Bitmap() string                                        { return "mon" }
func (zeros) Changes(_ context.Context, off, n int64, each func(int64, bool) bool) error {
	for dirty := off%2 == 0; n > 0 && each(min(n, 1500), dirty); dirty = !dirty {
		off, n = off+1500, n-1500
	}
	return inside(off, max(n, 0))
}
func (zeros) Extents(_ context.Context, off, n int64, each func(Extent) bool) error {
	for off%3 < 2 && n > 0 && each(Extent{N: min(n, 1000), Hole: off%2 == 0, Zero: true}) {
		off, n = off+1000, n-1000
	}
	each(Extent{N: 1 << 60})
	return inside(off, max(n, 0))
}

// inside panics where the server lets a range pass that it must not.
func inside(off, n int64) error {
	if off < 0 || n < 0 || off > zerosBytes || n > zerosBytes-off {
		panic("a range beyond the end reached the device")
	}
	return nil
}

// one is Exports with the one export "disk", which counts who has it open.
type one struct{ opened *int }

func (o one) export() Export { return Export{Name: "disk", Description: "zeros", Device: zeros{}} }
func (o one) List(context.Context) ([]ExportInfo, error) {
	return []ExportInfo{o.export().Info()}, nil
}
func (o one) Describe(_ context.Context, name string) (ExportInfo, error) {
	if name != "disk" {
		return ExportInfo{}, ErrUnknownExport
	}
	return o.export().Info(), nil
}
func (o one) Open(_ context.Context, name string) (Export, func(), error) {
	if name != "disk" {
		return Export{}, nil, ErrUnknownExport
	}
	*o.opened++
	return o.export(), func() { *o.opened-- }, nil
}

// script is a connection whose client sends bytes, hangs up, and keeps what it
// is answered.
type script struct {
	net.Conn
	in *bytes.Reader

	mu  sync.Mutex
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}
func (s *script) Close() error                    { return nil }
func (s *script) RemoteAddr() net.Addr            { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error     { return nil }
func (s *script) SetReadDeadline(time.Time) error { return nil }

var discard = Options{Logger: slog.New(slog.DiscardHandler)}

func FuzzHandshake(f *testing.F) {
	option := func(opt uint32, data ...any) []byte {
		var b []byte
		for _, d := range data {
			b = append(b, encode(d)...)
		}
		return slices.Concat(encode(protocol.NegotiationOptionHeader{OptionMagic: wire.MagicOption, ID: opt, Length: uint32(len(b))}), b)
	}
	flags := encode(wire.ClientFixedNewstyle)
	f.Add(flags)
	f.Add(slices.Concat(flags, option(wire.OptList), option(wire.OptAbort)))
	f.Add(slices.Concat(flags, option(wire.OptExportName, []byte("disk"))))
	f.Add(slices.Concat(flags, option(wire.OptStructuredReply), option(wire.OptListMetaContext, uint32(4), []byte("disk"), uint32(0)),
		option(wire.OptSetMetaContext, uint32(4), []byte("disk"), uint32(2), uint32(15), []byte("base:allocation"), uint32(5), []byte("qemu:")),
		option(wire.OptSetMetaContext, uint32(4), []byte("disk"), uint32(1), uint32(21), []byte("qemu:dirty-bitmap:mon")),
		option(wire.OptExtendedHeaders), option(wire.OptStartTLS), option(wire.OptExportName, []byte("disk"))))
	f.Add(slices.Concat(flags, option(99, []byte("?")), option(wire.OptInfo, uint32(4), []byte("disk"), uint16(3), []uint16{1, 2, 3}),
		option(wire.OptGo, uint32(4), []byte("none"), uint16(0)), option(wire.OptGo, uint32(4), []byte("disk"), uint16(0))))
	f.Add(slices.Concat(flags, option(77, []byte("?")), option(77)))
	o := discard
	o.Others = map[uint32]func(context.Context, Peer, net.Conn){77: func(context.Context, Peer, net.Conn) {}}
	f.Fuzz(func(t *testing.T, in []byte) {
		opened := 0
		s := NewServer(one{&opened}, o)
		defer s.Close()
		var out bytes.Buffer
		h := &handshake{server: s, r: bufio.NewReader(bytes.NewReader(in)), w: bufio.NewWriter(&out)}
		got, err := h.run(context.Background())
		if (got == nil) == (err == nil) {
			t.Fatalf("session %v, error %v", got, err)
		}
		if got != nil {
			got.release()
		}
		if opened != 0 {
			t.Fatalf("%d opened more than released", opened)
		}
		// Nothing that is answered is longer than what was sent warrants: an
		// option costs its sender 16 bytes.
		if out.Len() > 18+134+(len(in)/16+1)*200+2*len(in) {
			t.Fatalf("%d bytes were answered with %d", len(in), out.Len())
		}
	})
}

func FuzzRequests(f *testing.F) {
	head := func(flags, typ uint16, off uint64, n uint32, payload int) []byte {
		b := make([]byte, wire.RequestBytes+payload)
		wire.PutRequest(b, wire.Request{Magic: wire.MagicRequest, Flags: flags, Type: typ, Offset: off, Length: uint64(n)})
		return b
	}
	extended := func(flags, typ uint16, off, n uint64, payload ...byte) []byte {
		b := make([]byte, wire.ExtendedRequestBytes)
		wire.PutExtendedRequest(b, wire.Request{Magic: wire.MagicExtendedRequest, Flags: flags, Type: typ, Offset: off, Length: n})
		return append(b, payload...)
	}
	for form := range byte(2) {
		f.Add(form, slices.Concat(head(0, wire.CmdRead, 1, 511, 0), head(1, wire.CmdWrite, 7, 100, 100), head(0, wire.CmdFlush, 0, 0, 0),
			head(0, wire.CmdTrim, 0, zerosBytes, 0), head(2, wire.CmdWriteZeroes, 4096, 1, 0), head(0, wire.CmdDisc, 0, 0, 0)))
		f.Add(form, slices.Concat(head(0, wire.CmdWrite, 1<<63, 300, 300), head(0, wire.CmdRead, 0, 1<<31, 0), head(0, 77, 1, 1, 0)))
		f.Add(form, head(0, wire.CmdWrite, 0, 100, 99))
		f.Add(form, slices.Concat(head(4, wire.CmdRead, 5, 40000, 0), head(0, wire.CmdRead, 5, 40000, 0), head(8, wire.CmdBlockStatus, 1, 9999, 0),
			head(0, wire.CmdBlockStatus, 0, zerosBytes, 0), head(0x12, wire.CmdWriteZeroes, 0, 1, 0), head(0, wire.CmdCache, 0, 1, 0)))
	}
	const payload = wire.CmdFlagPayloadLen
	f.Add(byte(2), slices.Concat(extended(payload, wire.CmdWrite, 0, 3, 1, 2, 3), extended(0, wire.CmdRead, 9, 50000),
		extended(0, wire.CmdTrim, 0, 1<<63), extended(8, wire.CmdBlockStatus, 0, zerosBytes),
		extended(payload, wire.CmdBlockStatus, 0, 12, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 2),
		extended(payload, wire.CmdBlockStatus, 9, 16, 0, 0, 0, 0, 0, 0, 127, 255, 0, 0, 0, 3, 0, 0, 0, 1), extended(payload, 99, 0, 2, 0, 0)))
	f.Add(byte(2), slices.Concat(extended(payload, wire.CmdBlockStatus, 0, 12, 0, 0), extended(0, wire.CmdWrite, 0, 5)))
	f.Fuzz(func(t *testing.T, which byte, in []byte) {
		form := form(which % 3)
		want := number(in, form)
		opened := 0
		s := NewServer(one{&opened}, discard)
		defer s.Close()
		sc := &script{in: bytes.NewReader(slices.Concat(enter(form), in))}
		(&conn{server: s, Conn: sc}).run()
		if opened != 0 {
			t.Fatalf("%d opened more than released", opened)
		}
		out := sc.out.Bytes()[18:]
		for entered := false; !entered; {
			opt, typ, n := binary.BigEndian.Uint32(out[8:]), binary.BigEndian.Uint32(out[12:]), binary.BigEndian.Uint32(out[16:])
			entered = opt == wire.OptGo && typ == wire.RepAck
			out = out[wire.OptionReplyHeaderBytes+n:]
		}
		read := map[uint64]uint64{} // bytes of each read's reply
		for len(out) > 0 {
			out = checkReply(t, form, out, want, read)
		}
		if len(want) > 0 {
			t.Fatalf("not answered: %v", want)
		}
	})
}

// enter is a handshake that ends in transmission, with every context where they
// can be had.
func enter(f form) []byte {
	out := encode(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	option := func(opt uint32, data []byte) {
		out = append(out, encode(protocol.NegotiationOptionHeader{OptionMagic: wire.MagicOption, ID: opt, Length: uint32(len(data))})...)
		out = append(out, data...)
	}
	if f != formSimple {
		option([]uint32{formStructured: wire.OptStructuredReply, formExtended: wire.OptExtendedHeaders}[f], nil)
		option(wire.OptSetMetaContext, []byte("\x00\x00\x00\x04disk\x00\x00\x00\x03\x00\x00\x00\x0fbase:allocation\x00\x00\x00\x15qemu:allocation-depth"+
			"\x00\x00\x00\x15qemu:dirty-bitmap:mon"))
	}
	option(wire.OptGo, []byte("\x00\x00\x00\x04disk\x00\x00"))
	return out
}

// checkReply takes one reply, or a chunk of one, off out, and off want when it
// is whole.
func checkReply(t *testing.T, f form, out []byte, want map[uint64]wire.Request, read map[uint64]uint64) []byte {
	var c wire.Chunk
	switch {
	case f == formExtended:
		c, out = wire.DecodeExtendedReply(out), out[wire.ExtendedReplyBytes:]
	case binary.BigEndian.Uint32(out) == wire.MagicChunk && f == formStructured:
		c, out = wire.DecodeChunk(out), out[wire.ChunkBytes:]
	default:
		r := wire.DecodeReply(out)
		h := want[r.Handle]
		c = wire.Chunk{Magic: r.ReplyMagic, Flags: wire.ChunkFlagDone, Cookie: r.Handle}
		out = out[wire.ReplyBytes:]
		if h.Type == wire.CmdRead && r.Error == 0 {
			c.Length = h.Length
			read[c.Cookie] = h.Length
		}
		if r.ReplyMagic != wire.MagicReply || f == formStructured && (h.Type == wire.CmdRead || r.Error != 0) {
			t.Fatalf("simple reply %+v to %+v", r, h)
		}
	}
	h, ok := want[c.Cookie]
	if !ok || f == formExtended && c.Offset != h.Offset {
		t.Fatalf("%+v answers what was answered before, or never sent", c)
	}
	p := out[:c.Length]
	switch c.Type {
	case wire.ChunkData:
		read[c.Cookie] += c.Length - 8
		p = p[8:]
	case wire.ChunkHole:
		read[c.Cookie] += uint64(binary.BigEndian.Uint32(p[8:]))
		p = nil
	case wire.ChunkErr:
		read[c.Cookie] = h.Length
	case wire.ChunkBlockStatus, wire.ChunkBlockStatusExt:
		checkStatus(t, f, p, h, read)
		p = nil
	}
	if h.Type == wire.CmdRead && c.Type != wire.ChunkErr && bytes.ContainsFunc(p, func(c rune) bool { return c != 0 }) {
		t.Fatal("read something else than zeros")
	}
	if c.Flags&wire.ChunkFlagDone != 0 {
		if h.Type == wire.CmdRead && c.Magic != wire.MagicReply && read[c.Cookie] != h.Length {
			t.Fatalf("%d bytes answer %+v", read[c.Cookie], h)
		}
		delete(want, c.Cookie)
	}
	return out[c.Length:]
}

// checkStatus checks that a context's answer is of as many bytes as the others'.
func checkStatus(t *testing.T, f form, p []byte, h wire.Request, covered map[uint64]uint64) {
	n := uint64(0)
	if f == formExtended {
		for p = p[8:]; len(p) > 0; p = p[16:] {
			n += binary.BigEndian.Uint64(p)
		}
	} else {
		for p = p[4:]; len(p) > 0; p = p[8:] {
			n += uint64(binary.BigEndian.Uint32(p))
		}
	}
	if before, ok := covered[h.Cookie]; n == 0 || n > max(h.Length, zerosBytes) || ok && n != before {
		t.Fatalf("%d bytes of status answer %+v, another context %d", n, h, before)
	}
	covered[h.Cookie] = n
}

// number gives each request in the stream its own cookie, and returns those
// that must be answered: all that come whole before the stream is out of step.
func number(in []byte, f form) map[uint64]wire.Request {
	l := limits{size: zerosBytes, cache: true, fastZero: true, form: f}
	n, magic := wire.RequestBytes, wire.MagicRequest
	if f != formSimple {
		l.contexts = contexts{contextAllocation, contextDepth, contextDirty}
	}
	if f == formExtended {
		n, magic = wire.ExtendedRequestBytes, wire.MagicExtendedRequest
	}
	want := map[uint64]wire.Request{}
	for len(in) >= n {
		h := wire.DecodeRequest(in)
		if f == formExtended {
			h = wire.DecodeExtendedRequest(in)
		}
		if h.Magic != magic || h.Type == wire.CmdDisc || f == formExtended && h.Payload() > PayloadBytesMax {
			break
		}
		h.Cookie = uint64(len(want))
		binary.BigEndian.PutUint64(in[8:], h.Cookie)
		in = in[n:]
		if h.Payload() > uint64(len(in)) {
			// Refused ones are answered for their header alone.
			if check(&h, &l) != 0 {
				want[h.Cookie] = h
			}
			break
		}
		in = in[h.Payload():]
		want[h.Cookie] = h
	}
	return want
}
