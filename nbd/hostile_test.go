package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

const fixed = wire.ClientFixedNewstyle | wire.ClientNoZeroes

// optionHead is an option's header that may announce more data than follows.
func optionHead(t testing.TB, opt, n uint32) []byte {
	return nbdtest.Encode(t, wire.MagicOption, opt, n)
}

// What cannot be answered ends the connection.
func TestHostileHandshakesEnd(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, inMemory("disk"))
	for _, test := range []struct {
		name string
		sent []byte
	}{
		{"nothing", nil},
		{"unknown client flags", nbdtest.Encode(t, uint32(1<<31))},
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"option magic", nbdtest.Encode(t, fixed, wire.MagicOption+1, wire.OptGo, uint32(0))},
		{"data cut short", nbdtest.Encode(t, fixed, optionHead(t, wire.OptGo, 100), make([]byte, 99))},
		{"4 GiB that do not come", nbdtest.Encode(t, fixed, optionHead(t, wire.OptGo, 1<<32-1), make([]byte, 70000))},
		{"EXPORT_NAME of an unknown export", nbdtest.Encode(t, fixed, optionHead(t, wire.OptExportName, 4), "none")},
		{"EXPORT_NAME that is not text", nbdtest.Encode(t, fixed, optionHead(t, wire.OptExportName, 3), "a\xff\xfe")},
		{"EXPORT_NAME with NUL", nbdtest.Encode(t, fixed, optionHead(t, wire.OptExportName, 5), "disk\x00")},
		{"EXPORT_NAME of 4097 bytes", nbdtest.Encode(t, fixed, optionHead(t, wire.OptExportName, 4097), strings.Repeat("x", 4097))},
		{"EXPORT_NAME of 20000 bytes", nbdtest.Encode(t, fixed, optionHead(t, wire.OptExportName, 20000), strings.Repeat("x", 20000))},
	} {
		r := h.raw(t)
		r.Receive(18)
		r.Send(test.sent)
		closeWrite(t, r)
		if b := r.ExpectEnd(); len(b) > 0 {
			t.Errorf("%s: answered with %x", test.name, b)
		}
	}
}

func closeWrite(t testing.TB, r *nbdtest.Raw) {
	t.Helper()
	// It fails where the server was faster.
	_ = r.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// What can be answered is, and the handshake goes on.
func TestHostileOptionsAreRefused(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, inMemory("disk"))
	r := h.raw(t)
	r.Greet(fixed)
	for _, test := range []struct {
		name string
		opt  uint32
		data []byte
		want uint32
	}{
		{"STARTTLS", 5, nil, wire.RepErrUnsup},
		{"PEEK_EXPORT", 4, nil, wire.RepErrUnsup},
		{"STRUCTURED_REPLY with data", 8, []byte{1}, wire.RepErrInvalid},
		{"EXTENDED_HEADERS with data", 11, []byte{1}, wire.RepErrInvalid},
		{"SET_META_CONTEXT before structured replies", 10, nbdtest.MetaData(t, "disk", "base:allocation"), wire.RepErrInvalid},
		{"the largest number", 1<<32 - 1, make([]byte, 100000), wire.RepErrUnsup},
		{"LIST with data", wire.OptList, []byte{1}, wire.RepErrInvalid},
		{"LIST with much data", wire.OptList, make([]byte, 20000), wire.RepErrTooBig},
		{"GO with much data", wire.OptGo, make([]byte, 1<<20), wire.RepErrTooBig},
		{"INFO without data", wire.OptInfo, nil, wire.RepErrInvalid},
		{"GO of 5 bytes", wire.OptGo, make([]byte, 5), wire.RepErrInvalid},
		{"name longer than the data", wire.OptGo, nbdtest.Encode(t, uint32(5), "disk", uint16(0)), wire.RepErrInvalid},
		{"name of 4 GiB", wire.OptGo, nbdtest.Encode(t, uint32(1<<32-1), "disk", uint16(0)), wire.RepErrInvalid},
		{"name of 4097 bytes", wire.OptGo, nbdtest.InfoData(t, strings.Repeat("x", 4097)), wire.RepErrInvalid},
		{"name of 4096 bytes", wire.OptGo, nbdtest.InfoData(t, strings.Repeat("x", 4096)), wire.RepErrUnknown},
		{"name that is not text", wire.OptGo, nbdtest.InfoData(t, "\xc3\x28"), wire.RepErrInvalid},
		{"name with NUL", wire.OptInfo, nbdtest.InfoData(t, "disk\x00"), wire.RepErrInvalid},
		{"fewer requests than announced", wire.OptGo, nbdtest.Encode(t, uint32(4), "disk", uint16(2), uint16(1)), wire.RepErrInvalid},
		{"more requests than announced", wire.OptGo, nbdtest.Encode(t, uint32(4), "disk", uint16(0), uint16(1)), wire.RepErrInvalid},
		{"every request, many times", wire.OptInfo, nbdtest.InfoData(t, "disk", make([]uint16, 4000)...), wire.RepAck},
	} {
		r.Option(test.opt, test.data)
		if typ := r.LastReply(test.opt); typ != test.want {
			t.Errorf("%s: reply %#x, want %#x", test.name, typ, test.want)
		}
	}
	r.Option(wire.OptGo, nbdtest.InfoData(t, "disk"))
	if typ := r.LastReply(wire.OptGo); typ != wire.RepAck {
		t.Errorf("GO after all: reply %#x", typ)
	}
}

// A request that breaks the rules is refused, and the stream stays in step.
func TestHostileRequestsAreRefused(t *testing.T) {
	m := memory.New(mib)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: slow{m}},
		nbd.Export{Name: "fixed", Device: m, ReadOnly: true})
	const big = nbd.PayloadBytesMax + 1
	for _, test := range []struct {
		name       string
		export     string
		flags, typ uint16
		off        uint64
		n          uint32
		payload    int
		want       nbd.Errno
	}{
		{"unknown request", "disk", 0, 99, 0, 0, 0, nbd.EINVAL},
		{"CACHE", "disk", 0, 5, 0, 512, 0, nbd.EINVAL},
		{"BLOCK_STATUS", "disk", 0, 7, 0, 512, 0, nbd.EINVAL},
		{"unknown flag", "disk", 1 << 15, wire.CmdRead, 0, 512, 0, nbd.EINVAL},
		{"NO_HOLE on a write", "disk", wire.CmdFlagNoHole, wire.CmdWrite, 0, 512, 512, nbd.EINVAL},
		{"DF without structured replies", "disk", 1 << 2, wire.CmdRead, 0, 512, 0, nbd.EINVAL},
		{"FAST_ZERO", "disk", 1 << 4, wire.CmdWriteZeroes, 0, 512, 0, nbd.EINVAL},
		{"FLUSH of a range", "disk", 0, wire.CmdFlush, 0, 512, 0, nbd.EINVAL},
		{"FLUSH at an offset", "disk", 0, wire.CmdFlush, 1, 0, 0, nbd.EINVAL},
		{"read of 4 GiB", "disk", 0, wire.CmdRead, 0, 1<<32 - 1, 0, nbd.EINVAL},
		{"read of too much", "disk", 0, wire.CmdRead, 0, big, 0, nbd.EINVAL},
		{"write of too much", "disk", 0, wire.CmdWrite, 0, big, big, nbd.EINVAL},
		{"read beyond the end", "disk", 0, wire.CmdRead, mib - 1, 2, 0, nbd.EINVAL},
		{"write beyond the end", "disk", 0, wire.CmdWrite, mib - 1, 2, 2, nbd.ENOSPC},
		{"zero beyond the end", "disk", 0, wire.CmdWriteZeroes, mib, 1, 0, nbd.ENOSPC},
		{"trim beyond the end", "disk", 0, wire.CmdTrim, mib + 1, 0, 0, nbd.EINVAL},
		{"trim of 4 GiB", "disk", 0, wire.CmdTrim, 0, 1<<32 - 1, 0, nbd.EINVAL},
		{"the sum overflows", "disk", 0, wire.CmdRead, 1<<64 - 512, 1024, 0, nbd.EINVAL},
		{"the sum overflows into range", "disk", 0, wire.CmdWrite, 1<<64 - 1, 2, 2, nbd.ENOSPC},
		{"the offset is negative", "disk", 0, wire.CmdTrim, 1 << 63, 1, 0, nbd.EINVAL},
		{"write to a read-only export", "fixed", 0, wire.CmdWrite, 0, 512, 512, nbd.EPERM},
		{"trim of a read-only export", "fixed", 0, wire.CmdTrim, 0, 512, 0, nbd.EPERM},
		{"zero of a read-only export", "fixed", 0, wire.CmdWriteZeroes, 0, 512, 0, nbd.EPERM},
		{"read of nothing", "disk", 0, wire.CmdRead, 5, 0, 0, 0},
		{"read of nothing at the end", "disk", 0, wire.CmdRead, mib, 0, 0, 0},
		{"write of nothing", "disk", wire.CmdFlagFUA, wire.CmdWrite, 5, 0, 0, 0},
		{"trim of nothing", "disk", 0, wire.CmdTrim, 5, 0, 0, 0},
		{"zero of nothing", "disk", 0, wire.CmdWriteZeroes, 5, 0, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := h.raw(t)
			r.Enter(test.export)
			r.Request(test.flags, test.typ, 1, test.off, test.n, bytes.Repeat([]byte{1}, test.payload))
			r.Expect(uint32(test.want), 1)
			r.Request(0, wire.CmdRead, 2, 0, mib, nil)
			r.Expect(0, 2)
			if b := r.Receive(mib); bytes.ContainsFunc(b, func(c rune) bool { return c != 0 }) {
				t.Error("the device has changed")
			}
		})
	}
}

func TestStreamOutOfStepEnds(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, inMemory("disk"))
	r := h.raw(t)
	r.Enter("disk")
	r.Request(0, wire.CmdTrim, 1, 0, 1, nil)
	r.Send(make([]byte, wire.RequestBytes))
	r.Request(0, wire.CmdTrim, 2, 0, 1, nil)
	// The first may have been answered; the second was never read.
	if b := r.ExpectEnd(); len(b) != 0 && (len(b) != wire.ReplyBytes || wire.DecodeReply(b).Handle != 1) {
		t.Errorf("answered with %x", b)
	}
}

// A client that goes at any byte leaves nothing behind, and nothing half
// written: a write without its whole payload does not reach the device.
func TestClientGoesAtAnyByte(t *testing.T) {
	m := memory.New(mib)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	go1 := nbdtest.Encode(t, fixed, optionHead(t, wire.OptList, 0), optionHead(t, wire.OptGo, 10), nbdtest.InfoData(t, "disk"))
	all := nbdtest.Encode(t, go1, request(t, wire.CmdRead, 1, 0, 512), request(t, wire.CmdWrite, 2, 0, 64), bytes.Repeat([]byte{7}, 64))
	for n := range len(all) {
		r := h.raw(t)
		r.Send(all[:n])
		if n%2 == 0 {
			closeWrite(t, r)
			r.ExpectEnd()
		}
		r.Close()
	}
	eventually(t, func() bool { return h.Connections("disk") == 0 })
	b := make([]byte, 64)
	if err := m.ReadAt(context.Background(), b, 0); err != nil || !bytes.Equal(b, make([]byte, 64)) {
		t.Errorf("half a write reached the device: %x, %v", b, err)
	}
}

func request(t testing.TB, typ uint16, cookie, off uint64, n uint32) []byte {
	return nbdtest.Encode(t, wire.MagicRequest, uint16(0), typ, cookie, off, n)
}

// A client that asks and does not listen is held to its window, and does not
// hold up the others, or Close.
func TestClientThatDoesNotListen(t *testing.T) {
	h := serve(t, "unix", nbd.Options{BytesInFlightMax: 4 << 20}, inMemory("disk"))
	deaf := h.raw(t)
	deaf.Enter("disk")
	for i := range 64 {
		deaf.Request(0, wire.CmdRead, uint64(i), 0, mib, nil)
	}
	c := h.open(t, "disk")
	if err := c.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	h.Close()
	h.CheckReleased(t)
}

// What a buffer held for one client never reaches another.
func TestFailedReadLeaksNothing(t *testing.T) {
	secret := bytes.Repeat([]byte("secret!!"), 512)
	failing := nbd.Export{Name: "failing", Device: &nbdtest.Probe{Device: memory.New(mib),
		Before: func(context.Context, nbdtest.Call) error { return errors.New("broken") }}}
	h := serve(t, "unix", nbd.Options{}, inMemory("disk"), failing)
	c := h.open(t, "disk")
	if err := c.WriteAt(t.Context(), secret, 0, false); err != nil {
		t.Fatal(err)
	}
	r := h.raw(t)
	r.Enter("failing")
	for i := range 100 {
		if err := c.ReadAt(t.Context(), make([]byte, len(secret)), 0); err != nil {
			t.Fatal(err)
		}
		r.Request(0, wire.CmdRead, uint64(i), 0, uint32(len(secret)), nil)
	}
	r.Request(0, wire.CmdDisc, 0, 0, 0, nil)
	b := r.ExpectEnd()
	if len(b) != 100*wire.ReplyBytes || bytes.Contains(b, []byte("secret")) {
		t.Errorf("100 failed reads were answered with %d bytes", len(b))
	}
	for ; len(b) > 0; b = b[wire.ReplyBytes:] {
		if e := binary.BigEndian.Uint32(b[4:]); e != uint32(nbd.EIO) {
			t.Errorf("error %d", e)
		}
	}
}
