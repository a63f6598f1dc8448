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
	f.Add(slices.Concat(flags, option(99, []byte("?")), option(wire.OptInfo, uint32(4), []byte("disk"), uint16(3), []uint16{1, 2, 3}),
		option(wire.OptGo, uint32(4), []byte("none"), uint16(0)), option(wire.OptGo, uint32(4), []byte("disk"), uint16(0))))
	f.Fuzz(func(t *testing.T, in []byte) {
		opened := 0
		s := NewServer(one{&opened}, discard)
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
	f.Add(slices.Concat(head(0, wire.CmdRead, 1, 511, 0), head(1, wire.CmdWrite, 7, 100, 100), head(0, wire.CmdFlush, 0, 0, 0),
		head(0, wire.CmdTrim, 0, zerosBytes, 0), head(2, wire.CmdWriteZeroes, 4096, 1, 0), head(0, wire.CmdDisc, 0, 0, 0)))
	f.Add(slices.Concat(head(0, wire.CmdWrite, 1<<63, 300, 300), head(0, wire.CmdRead, 0, 1<<31, 0), head(0, 77, 1, 1, 0)))
	f.Add(head(0, wire.CmdWrite, 0, 100, 99))
	f.Fuzz(func(t *testing.T, in []byte) {
		want := number(in)
		enter := slices.Concat(encode(wire.ClientFixedNewstyle|wire.ClientNoZeroes),
			encode(protocol.NegotiationOptionHeader{OptionMagic: wire.MagicOption, ID: wire.OptExportName, Length: 4}), []byte("disk"))
		opened := 0
		s := NewServer(one{&opened}, discard)
		defer s.Close()
		sc := &script{in: bytes.NewReader(slices.Concat(enter, in))}
		(&conn{server: s, Conn: sc}).run()
		if opened != 0 {
			t.Fatalf("%d opened more than released", opened)
		}
		out := sc.out.Bytes()[18+10:]
		for len(out) > 0 {
			if len(out) < wire.ReplyBytes || wire.DecodeReply(out).ReplyMagic != wire.MagicReply {
				t.Fatalf("reply %x", out)
			}
			r := wire.DecodeReply(out)
			h, ok := want[r.Handle]
			if !ok {
				t.Fatalf("cookie %d was answered twice, or never sent", r.Handle)
			}
			delete(want, r.Handle)
			out = out[wire.ReplyBytes:]
			if h.Type == wire.CmdRead && r.Error == 0 {
				if bytes.ContainsFunc(out[:h.Length], func(c rune) bool { return c != 0 }) {
					t.Fatal("read something else than zeros")
				}
				out = out[h.Length:]
			}
		}
		if len(want) > 0 {
			t.Fatalf("not answered: %v", want)
		}
	})
}

// number gives each request in the stream its own cookie, and returns those
// that must be answered: all that come whole before the stream is out of step.
func number(in []byte) map[uint64]wire.Request {
	want := map[uint64]wire.Request{}
	for len(in) >= wire.RequestBytes {
		h := wire.DecodeRequest(in)
		if h.Magic != wire.MagicRequest || h.Type == wire.CmdDisc {
			break
		}
		h.Cookie = uint64(len(want))
		binary.BigEndian.PutUint64(in[8:], h.Cookie)
		in = in[wire.RequestBytes:]
		if h.Type == wire.CmdWrite {
			if h.Length > uint64(len(in)) {
				// Refused ones are answered for their header alone.
				if check(&h, &limits{size: zerosBytes}) != 0 {
					want[h.Cookie] = h
				}
				break
			}
			in = in[h.Length:]
		}
		want[h.Cookie] = h
	}
	return want
}
