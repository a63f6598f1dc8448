package nbdtest

import (
	"encoding/binary"
	"testing"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
)

// EXPORT_NAME, with the padding and without.
func (s suite) exportName(t *testing.T) {
	want := s.open(t, s.Export).Info()
	for _, noZeroes := range []bool{true, false} {
		conn := s.dial(t)
		if _, ok := conn.(*greeted); ok && !noZeroes {
			conn.Close() // it has said NO_ZEROES
			return
		}
		r := NewRaw(t, conn)
		flags, n := wire.ClientFixedNewstyle, 10+wire.ExportNamePadBytes
		if noZeroes {
			flags, n = flags|wire.ClientNoZeroes, 10
		}
		r.Greet(flags)
		r.Option(wire.OptExportName, []byte(s.Export))
		b := r.Receive(n)
		if size := binary.BigEndian.Uint64(b); size != uint64(want.Size) {
			t.Errorf("%d bytes, want %d", size, want.Size)
		}
		for _, x := range b[10:] {
			if x != 0 {
				t.Errorf("padding %x", b[10:])
				break
			}
		}
		r.Request(0, wire.CmdRead, 77, 0, 512, nil)
		r.Expect(0, 77)
		r.Receive(512)
	}
}

// ABORT is acknowledged, or answered by hanging up.
func (s suite) abort(t *testing.T) {
	r := NewRaw(t, s.dial(t))
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	r.Option(wire.OptAbort, nil)
	if b := r.ExpectEnd(); len(b) != 0 {
		if len(b) != wire.OptionReplyHeaderBytes || binary.BigEndian.Uint32(b[12:]) != wire.RepAck {
			t.Errorf("ABORT: reply %x", b)
		}
	}
}

// An option nobody knows is refused, with its data read past.
func (s suite) unknownOption(t *testing.T) {
	r := NewRaw(t, s.dial(t))
	r.Greet(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	for _, n := range []int{0, 1, 1000} {
		r.Option(0x504c494e, pattern(n, 1))
		if typ := r.LastReply(0x504c494e); typ != wire.RepErrUnsup {
			t.Errorf("unknown option with %d bytes: reply %#x", n, typ)
		}
	}
	r.Option(wire.OptGo, InfoData(t, s.Export, wire.InfoBlockSize, 0x7777))
	if typ := r.LastReply(wire.OptGo); typ != wire.RepAck {
		t.Errorf("GO after unknown options: reply %#x", typ)
	}
}

// A request nobody knows is refused, and the stream stays in step.
func (s suite) unknownRequest(t *testing.T) {
	r := NewRaw(t, s.dial(t))
	r.Enter(s.Export)
	r.Request(0, 0x4141, 1, 0, 0, nil)
	r.Expect(uint32(nbd.EINVAL), 1)
	r.Request(0, wire.CmdRead, 2, 0, 512, nil)
	r.Expect(0, 2)
	r.Receive(512)
}
