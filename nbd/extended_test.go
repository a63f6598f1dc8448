package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

var extended = []uint32{wire.OptExtendedHeaders}

// A whole exchange, byte for byte as the specification of the extension has it.
func TestExtendedBytes(t *testing.T) {
	m, data := sparse(t)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	r := h.raw(t)
	r.Greet(fixed)
	exchange := func(send, want []byte) {
		t.Helper()
		r.Send(send)
		if got := r.Receive(len(want)); !bytes.Equal(got, want) {
			t.Fatalf("%x was answered with\n%x, want\n%x", send, got, want)
		}
	}
	option := []byte("IHAVEOPT\x00\x00\x00\x0b\x00\x00\x00\x00")
	ack := []byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0b\x00\x00\x00\x01\x00\x00\x00\x00")
	exchange(option, ack)
	// No way back to structured replies.
	exchange([]byte("IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00"),
		slices.Concat([]byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x80\x00\x00\x0a\x00\x00\x00\x1f"), []byte("extended headers are negotiated")))
	exchange(slices.Concat([]byte("IHAVEOPT\x00\x00\x00\x0a\x00\x00\x00\x1f\x00\x00\x00\x04disk\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation")),
		slices.Concat([]byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x04\x00\x00\x00\x13\x00\x00\x00\x01base:allocation"),
			[]byte("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00")))
	r.Option(wire.OptGo, nbdtest.InfoData(t, "disk"))
	if typ, info := r.OptionReply(wire.OptGo); typ != wire.RepInfo || be32(info[8:])&uint32(wire.FlagBlockStatusPayload|wire.FlagSendDF) == 0 {
		t.Fatalf("GO: %#x %x", typ, info)
	}
	r.LastReply(wire.OptGo)

	write := []byte("\x21\xe4\x1c\x71\x00\x20\x00\x01COOKIE01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x03abc")
	exchange(write, []byte("\x6e\x8a\x27\x8c\x00\x01\x00\x00COOKIE01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00"))
	read := []byte("\x21\xe4\x1c\x71\x00\x00\x00\x00COOKIE02\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05")
	exchange(read, []byte("\x6e\x8a\x27\x8c\x00\x01\x00\x01COOKIE02\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x0d"+
		"\x00\x00\x00\x00\x00\x00\x00\x04\x00abc\x00"))
	hole := []byte("\x21\xe4\x1c\x71\x00\x00\x00\x00COOKIE03\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x10\x00")
	exchange(hole, []byte("\x6e\x8a\x27\x8c\x00\x01\x00\x02COOKIE03\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x0c"+
		"\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x10\x00"))
	status := []byte("\x21\xe4\x1c\x71\x00\x20\x00\x07COOKIE04\x00\x00\x00\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x0c" +
		"\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01")
	exchange(status, []byte("\x6e\x8a\x27\x8c\x00\x01\x00\x06COOKIE04\x00\x00\x00\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x28"+
		"\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00"+
		"\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00\x03"))
	beyond := []byte("\x21\xe4\x1c\x71\x00\x00\x00\x04COOKIE05\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	exchange(beyond, []byte("\x6e\x8a\x27\x8c\x00\x01\x80\x01COOKIE05\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x1f"+
		"\x00\x00\x00\x16\x00\x19EINVAL (invalid argument)"))
	_ = data
}

// Requests that break the rules of the form are refused, and the stream stays
// in step; or nobody knows where the next one begins, and it ends.
func TestHostileExtendedRequests(t *testing.T) {
	m := memory.New(mib)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	const p = wire.CmdFlagPayloadLen
	for _, test := range []struct {
		name       string
		flags, typ uint16
		off, n     uint64
		payload    []byte
		want       nbd.Errno
	}{
		{"write without payload", 0, wire.CmdWrite, 0, 512, nil, nbd.EINVAL},
		{"read with payload", p, wire.CmdRead, 0, 512, make([]byte, 512), nbd.EINVAL},
		{"flush with payload", p, wire.CmdFlush, 0, 5, make([]byte, 5), nbd.EINVAL},
		{"unknown with payload", p, 99, 0, 5000, make([]byte, 5000), nbd.EINVAL},
		{"write beyond the end", p, wire.CmdWrite, mib - 1, 2, make([]byte, 2), nbd.ENOSPC},
		{"write of nothing", p, wire.CmdWrite, 0, 0, nil, 0},
		{"read of 2^63", 0, wire.CmdRead, 0, 1 << 63, nil, nbd.EINVAL},
		{"read of 2^64-1", 0, wire.CmdRead, 1, 1<<64 - 1, nil, nbd.EINVAL},
		{"trim of 2^64-1", 0, wire.CmdTrim, 2, 1<<64 - 1, nil, nbd.EINVAL},
		{"zero of 2^40", 0, wire.CmdWriteZeroes, 0, 1 << 40, nil, nbd.ENOSPC},
		{"cache of 2^40", 0, wire.CmdCache, 0, 1 << 40, nil, nbd.EINVAL},
		{"status of 2^40", 0, wire.CmdBlockStatus, 0, 1 << 40, nil, nbd.EINVAL},
		{"status of nothing", 0, wire.CmdBlockStatus, 0, 0, nil, nbd.EINVAL},
		{"status with no contexts", p, wire.CmdBlockStatus, 0, 8, nbdtest.Encode(t, uint64(512)), nbd.EINVAL},
		{"status with no payload", p, wire.CmdBlockStatus, mib + 1, 0, nil, nbd.EINVAL},
		{"status cut short", p, wire.CmdBlockStatus, 0, 11, make([]byte, 11), nbd.EINVAL},
		{"status with a context twice", p, wire.CmdBlockStatus, 0, 16, nbdtest.Encode(t, uint64(512), uint32(1), uint32(1)), nbd.EINVAL},
		{"status with an unknown context", p, wire.CmdBlockStatus, 0, 12, nbdtest.Encode(t, uint64(512), uint32(77)), nbd.EINVAL},
		{"status beyond the end", p, wire.CmdBlockStatus, 1, 12, nbdtest.Encode(t, uint64(mib), uint32(1)), nbd.EINVAL},
		{"status of 2^64-1", p, wire.CmdBlockStatus, 1, 12, nbdtest.Encode(t, uint64(1<<64-1), uint32(1)), nbd.EINVAL},
		{"status with much payload", p, wire.CmdBlockStatus, 0, mib, make([]byte, mib), nbd.EINVAL},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := h.raw(t)
			r.EnterAs("disk", extended, wire.ContextAllocation, wire.ContextDepth)
			r.RequestExtended(test.flags, test.typ, 1, test.off, test.n, test.payload)
			if test.want != 0 {
				r.ExpectError(true, uint32(test.want), 1)
			} else {
				expectChunk(t, r, true, wire.Chunk{Flags: done, Cookie: 1, Offset: test.off})
			}
			r.RequestExtended(0, wire.CmdRead, 2, 7, 9, nil)
			expectChunk(t, r, true, wire.Chunk{Flags: done, Type: wire.ChunkData, Cookie: 2, Offset: 7}, uint64(7), make([]byte, 9))
		})
	}
	for name, send := range map[string]func(*nbdtest.Raw){
		"compact request":       func(r *nbdtest.Raw) { r.Request(0, wire.CmdRead, 1, 0, 512, make([]byte, 4)) },
		"payload above the max": func(r *nbdtest.Raw) { r.RequestExtended(p, wire.CmdWrite, 1, 0, nbd.PayloadBytesMax+1, nil) },
		"payload of 2^64-1":     func(r *nbdtest.Raw) { r.RequestExtended(p, wire.CmdTrim, 1, 0, 1<<64-1, nil) },
	} {
		r := h.raw(t)
		r.EnterAs("disk", extended)
		send(r)
		if b := r.ExpectEnd(); len(b) > 0 {
			t.Errorf("%s: answered with %x", name, b)
		}
	}
	r := h.raw(t)
	r.Greet(fixed)
	r.Option(wire.OptExtendedHeaders, nil)
	r.LastReply(wire.OptExtendedHeaders)
	r.Option(wire.OptExportName, []byte("disk"))
	if b := r.ExpectEnd(); len(b) > 0 {
		t.Errorf("EXPORT_NAME with extended headers: %x", b)
	}
}

// The longest lengths and the last offsets, in every command and form.
func TestLargestRanges(t *testing.T) {
	const size = math.MaxInt64
	for _, form := range []client.Form{client.Simple, client.Structured, client.Extended} {
		m := memory.New(size)
		h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
		c := h.openAs(t, "disk", client.Options{Form: form})
		ctx := t.Context()
		if c.Size() != size || c.Form() != form {
			t.Fatalf("%d bytes, form %d", c.Size(), c.Form())
		}
		end := []byte("the very end")
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Errorf("form %d: %v", form, err)
			}
		}
		check(c.WriteAt(ctx, end, size-int64(len(end)), true))
		got := make([]byte, len(end))
		check(c.ReadAt(ctx, got, size-int64(len(end))))
		if !bytes.Equal(got, end) {
			t.Errorf("form %d: read %q at the end", form, got)
		}
		const longest = 1<<32 - 1
		for _, off := range []int64{0, 5, size - longest} {
			check(c.Prefetch(ctx, off, longest))
			check(c.Zero(ctx, off, longest, false, true))
			check(c.Trim(ctx, off, longest, true))
		}
		check(c.ReadAt(ctx, got, size-int64(len(end))))
		if !bytes.Equal(got, make([]byte, len(end))) {
			t.Errorf("form %d: read %q after a trim", form, got)
		}
		if err := c.WriteAt(ctx, []byte("ab"), size-1, false); !errors.Is(err, nbd.ENOSPC) {
			t.Errorf("form %d: a write beyond the end: %v", form, err)
		}
		check(c.WriteAt(ctx, end, size-1<<20, false))
		if form == client.Simple {
			continue
		}
		for _, n := range []int64{longest, 1 << 40, size} {
			s, err := c.BlockStatus(ctx, 0, n, true)
			check(err)
			if form == client.Structured {
				n = min(n, longest)
			}
			n = min(n, (size-1<<20)>>16<<16)
			if want := []client.Run{{N: uint64(n), Status: 3}}; len(s) != 1 || !slices.Equal(s[0].Runs, want) {
				t.Errorf("form %d: status %+v, want %+v", form, s, want)
			}
		}
		if form == client.Extended {
			check(c.Prefetch(ctx, 0, size))
			check(c.ZeroFast(ctx, 0, size, true))
			check(c.Zero(ctx, 0, size, true, true))
			check(c.WriteAt(ctx, end, size-1<<20, false))
			check(c.Trim(ctx, 0, size, true))
			var runs []nbd.Extent
			check(c.Extents(ctx, 0, size, func(e nbd.Extent) bool { runs = append(runs, e); return true }))
			if !slices.Equal(runs, []nbd.Extent{{N: size, Hole: true, Zero: true}}) {
				t.Errorf("extents %+v", runs)
			}
		}
	}
}

// Our client takes the answer to some contexts only.
func TestBlockStatusOfSomeContexts(t *testing.T) {
	m, _ := sparse(t)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	both := []string{wire.ContextAllocation, wire.ContextDepth}
	c := h.openAs(t, "disk", client.Options{Form: client.Extended, Contexts: both})
	for _, name := range both {
		s, err := c.BlockStatus(t.Context(), 0, mib, false, name)
		if err != nil || len(s) != 1 || s[0].Context != name || len(s[0].Runs) != 3 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if s, err := c.BlockStatus(t.Context(), 0, mib, false, both...); err != nil || len(s) != 2 {
		t.Errorf("both: %+v, %v", s, err)
	}
	if _, err := c.BlockStatus(context.Background(), 0, mib+1, false, both...); !errors.Is(err, nbd.EINVAL) {
		t.Errorf("beyond the end: %v", err)
	}
}
