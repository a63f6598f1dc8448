package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/internal/wire"
	"plinth/nbd/memory"
	"plinth/nbd/nbdtest"
)

var structured = []uint32{wire.OptStructuredReply}

const done = wire.ChunkFlagDone

// expectChunk reads a chunk and compares all of it.
func expectChunk(t *testing.T, r *nbdtest.Raw, extended bool, want wire.Chunk, payload ...any) {
	t.Helper()
	b := nbdtest.Encode(t, payload...)
	want.Magic, want.Length = wire.MagicChunk, uint64(len(b))
	if extended {
		want.Magic = wire.MagicExtendedReply
	}
	got, p := r.Chunk(extended)
	if got != want || !bytes.Equal(p, b) {
		t.Fatalf("chunk %+v with %.64x, want %+v with %.64x", got, p, want, b)
	}
}

// sparse is a device of 1 MiB with 64 KiB of data at 128 KiB.
func sparse(t *testing.T) (*memory.Device, []byte) {
	t.Helper()
	m := memory.New(mib)
	data := bytes.Repeat([]byte{7}, 64<<10)
	if err := m.WriteAt(t.Context(), data, 128<<10, false); err != nil {
		t.Fatal(err)
	}
	return m, data
}

func TestStructuredReads(t *testing.T) {
	m, data := sparse(t)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	r := h.raw(t)
	if _, flags := r.EnterAs("disk", structured); flags&wire.FlagSendDF == 0 {
		t.Errorf("flags %#x", flags)
	}
	chunk := func(typ uint16, cookie uint64, flags uint16) wire.Chunk {
		return wire.Chunk{Flags: flags, Type: typ, Cookie: cookie}
	}
	hole := func(off, n int) []any { return []any{uint64(off), uint32(n)} }

	r.Request(0, wire.CmdRead, 1, 128<<10, 4096, nil)
	expectChunk(t, r, false, chunk(wire.ChunkData, 1, done), uint64(128<<10), data[:4096])
	r.Request(0, wire.CmdRead, 2, 0, 4096, nil) // nothing but zeros
	expectChunk(t, r, false, chunk(wire.ChunkHole, 2, done), hole(0, 4096)...)
	r.Request(0, wire.CmdRead, 3, 0, 512, nil) // too short to be worth it
	expectChunk(t, r, false, chunk(wire.ChunkData, 3, done), uint64(0), make([]byte, 512))
	r.Request(0, wire.CmdRead, 4, 0, 256<<10, nil) // a hole, data, a hole
	expectChunk(t, r, false, chunk(wire.ChunkHole, 4, 0), hole(0, 128<<10)...)
	expectChunk(t, r, false, chunk(wire.ChunkData, 4, 0), uint64(128<<10), data)
	expectChunk(t, r, false, chunk(wire.ChunkHole, 4, done), hole(192<<10, 64<<10)...)
	r.Request(0, wire.CmdRead, 5, 192<<10-4096, 4096+16<<10, nil) // ends with a hole
	expectChunk(t, r, false, chunk(wire.ChunkData, 5, 0), uint64(192<<10-4096), data[:4096])
	expectChunk(t, r, false, chunk(wire.ChunkHole, 5, done), hole(192<<10, 16<<10)...)
	r.Request(0, wire.CmdRead, 6, 128<<10-4096, 8192, nil) // a hole too short for a chunk
	expectChunk(t, r, false, chunk(wire.ChunkData, 6, done), uint64(128<<10-4096), make([]byte, 4096), data[:4096])
	r.Request(wire.CmdFlagDF, wire.CmdRead, 7, 0, 256<<10, nil)
	expectChunk(t, r, false, chunk(wire.ChunkData, 7, done), uint64(0), make([]byte, 128<<10), data, make([]byte, 64<<10))
	r.Request(0, wire.CmdRead, 8, 5, 0, nil)
	expectChunk(t, r, false, chunk(wire.ChunkNone, 8, done))
	r.Request(0, wire.CmdRead, 9, mib-1, 2, nil)
	r.ExpectError(false, uint32(nbd.EINVAL), 9)
	r.Request(0, wire.CmdRead, 10, 0, nbd.PayloadBytesMax+1, nil)
	r.ExpectError(false, uint32(nbd.EINVAL), 10)
	r.Request(0, wire.CmdWrite, 11, mib, 1, []byte{1})
	r.ExpectError(false, uint32(nbd.ENOSPC), 11)
	r.Request(0, wire.CmdWrite, 12, 0, 1, []byte{1})
	r.Expect(0, 12) // a success without payload may be simple
}

// Any read put together again is the device's content.
func TestHolesAgainstContent(t *testing.T) {
	m, _ := sparse(t)
	for off := int64(300 << 10); off < mib; off += 50001 {
		if err := m.WriteAt(t.Context(), []byte{1, 2, 3}, off, false); err != nil {
			t.Fatal(err)
		}
	}
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m})
	r := h.raw(t)
	r.EnterAs("disk", structured)
	for i := range 300 {
		off := i * 7919 % mib
		n := min(1+i*i*13%(700<<10), mib-off)
		want := make([]byte, n)
		if err := m.ReadAt(t.Context(), want, int64(off)); err != nil {
			t.Fatal(err)
		}
		r.Request(0, wire.CmdRead, uint64(i), uint64(off), uint32(n), nil)
		if got := reassemble(t, r, false, off, n); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes at %d are not what the device holds", n, off)
		}
	}
}

func reassemble(t *testing.T, r *nbdtest.Raw, extended bool, off, n int) []byte {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, n)
	for left := n; ; {
		c, p := r.Chunk(extended)
		if len(p) < 9 {
			t.Fatalf("chunk %+v", c)
		}
		at := int(be64(p)) - off
		if c.Type == wire.ChunkHole {
			k := int(be32(p[8:]))
			clear(got[at : at+k])
			left -= k
		} else {
			left -= copy(got[at:], p[8:])
		}
		if c.Flags&done != 0 {
			if left != 0 {
				t.Fatalf("%d bytes of %d are missing", left, n)
			}
			return got
		}
	}
}

func TestMetaContexts(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, inMemory("disk"), inMemory("other"))
	r := h.raw(t)
	r.Greet(fixed)
	const list, set = wire.OptListMetaContext, wire.OptSetMetaContext
	r.Option(list, nbdtest.MetaData(t, "disk"))
	if typ := r.LastReply(list); typ != wire.RepErrInvalid {
		t.Errorf("LIST before structured replies: %#x", typ)
	}
	r.Option(wire.OptStructuredReply, nil)
	r.LastReply(wire.OptStructuredReply)
	both := []string{wire.ContextAllocation, wire.ContextDepth}
	for _, test := range []struct {
		opt     uint32
		queries []string
		want    []string
	}{
		{list, nil, both}, {list, []string{"base:"}, both[:1]}, {list, []string{"qemu:", "base:"}, both},
		{list, []string{both[1]}, both[1:]}, {list, []string{"other:", "nonsense"}, nil},
		{set, nil, nil}, {set, both, both}, {set, []string{"base:"}, nil}, {set, []string{both[0], both[0], "x:y"}, both[:1]},
	} {
		r.Option(test.opt, nbdtest.MetaData(t, "disk", test.queries...))
		var got []string
		for {
			typ, payload := r.OptionReply(test.opt)
			if typ == wire.RepAck {
				break
			}
			if typ != wire.RepMetaContext || (be32(payload) == 0) != (test.opt == list) {
				t.Fatalf("option %d, %q: reply %#x %q", test.opt, test.queries, typ, payload)
			}
			got = append(got, string(payload[4:]))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("option %d, %q: %q, want %q", test.opt, test.queries, got, test.want)
		}
	}
	for name, data := range map[string][]byte{
		"nothing":        nil,
		"no count":       nbdtest.Encode(t, uint32(4), "disk"),
		"too few":        nbdtest.Encode(t, uint32(4), "disk", uint32(2), uint32(1), "x"),
		"4 G queries":    nbdtest.Encode(t, uint32(4), "disk", uint32(1<<32-1)),
		"long query":     nbdtest.Encode(t, uint32(4), "disk", uint32(1), uint32(1<<32-1), "x"),
		"more than said": nbdtest.Encode(t, uint32(4), "disk", uint32(0), "x"),
	} {
		r.Option(set, data)
		if typ := r.LastReply(set); typ != wire.RepErrInvalid {
			t.Errorf("%s: reply %#x", name, typ)
		}
	}
	r.Option(set, nbdtest.MetaData(t, "none", both...))
	if typ := r.LastReply(set); typ != wire.RepErrUnknown {
		t.Errorf("unknown export: reply %#x", typ)
	}
	// What was selected for another export is not selected.
	r.Option(set, nbdtest.MetaData(t, "other", both...))
	r.LastReply(set)
	r.Option(wire.OptGo, nbdtest.InfoData(t, "disk"))
	r.LastReply(wire.OptGo)
	r.Request(0, wire.CmdBlockStatus, 1, 0, mib, nil)
	r.ExpectError(false, uint32(nbd.EINVAL), 1)
}

func TestBlockStatus(t *testing.T) {
	m, _ := sparse(t)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m}, nbd.Export{Name: "plain", Device: slow{m}})
	r := h.raw(t)
	ids, _ := r.EnterAs("", structured, wire.ContextAllocation, wire.ContextDepth)
	c := wire.Chunk{Type: wire.ChunkBlockStatus}
	expect := func(cookie uint64, runs ...uint32) { // length, base, depth
		t.Helper()
		for i, id := range ids {
			p := []any{id}
			for j := 0; j < len(runs); j += 3 {
				p = append(p, runs[j], runs[j+1+i])
			}
			c.Cookie, c.Flags = cookie, uint16(i) // the second is the last
			expectChunk(t, r, false, c, p...)
		}
	}
	const both = wire.StateHole | wire.StateZero
	r.Request(0, wire.CmdBlockStatus, 1, 0, mib, nil)
	expect(1, 128<<10, both, 0, 64<<10, 0, 1, mib-192<<10, both, 0)
	r.Request(wire.CmdFlagReqOne, wire.CmdBlockStatus, 2, 5, mib-5, nil)
	expect(2, 128<<10-5, both, 0)
	r.Request(wire.CmdFlagReqOne, wire.CmdBlockStatus, 3, 128<<10, 512, nil)
	expect(3, 512, 0, 1)
	r.Request(wire.CmdFlagFUA, wire.CmdBlockStatus, 4, mib-1, 1, nil)
	expect(4, 1, both, 0)
	for i, bad := range []struct {
		flags uint16
		off   uint64
		n     uint32
	}{{0, 0, 0}, {0, 0, mib + 1}, {0, mib, 1}, {0, 1 << 63, 1}, {0, 0, 1<<32 - 1}, {wire.CmdFlagDF, 0, 512}, {wire.CmdFlagPayloadLen, 0, 512}} {
		r.Request(bad.flags, wire.CmdBlockStatus, uint64(i), bad.off, bad.n, nil)
		r.ExpectError(false, uint32(nbd.EINVAL), uint64(i))
	}
	r = h.raw(t)
	ids, _ = r.EnterAs("plain", structured, wire.ContextAllocation, wire.ContextDepth)
	r.Request(0, wire.CmdBlockStatus, 1, 0, mib, nil)
	expect(1, mib, 0, 1)
}

// halves is a device with an extent per byte, and errors where asked.
type halves struct {
	nbd.Device
	fail error
}

func (d halves) Extents(_ context.Context, off, n int64, each func(nbd.Extent) bool) error {
	if d.fail != nil {
		return d.fail
	}
	for i := range n {
		if !each(nbd.Extent{N: 1, Hole: (off+i)%2 == 0}) {
			return nil
		}
	}
	return nil
}

func TestBlockStatusIsBounded(t *testing.T) {
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: halves{Device: memory.New(mib)}},
		nbd.Export{Name: "failing", Device: halves{memory.New(mib), errors.New("broken")}})
	r := h.raw(t)
	r.EnterAs("disk", structured, wire.ContextAllocation)
	r.Request(0, wire.CmdBlockStatus, 1, 0, mib, nil)
	if c, p := r.Chunk(false); c.Type != wire.ChunkBlockStatus || len(p) != 4+8*4096 {
		t.Errorf("chunk %+v", c)
	}
	r = h.raw(t)
	r.EnterAs("failing", structured, wire.ContextAllocation)
	r.Request(0, wire.CmdBlockStatus, 1, 0, 8, nil)
	r.ExpectError(false, uint32(nbd.EIO), 1)
}

func TestCacheAndFastZero(t *testing.T) {
	m, _ := sparse(t)
	h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: m}, nbd.Export{Name: "fixed", Device: m, ReadOnly: true})
	r := h.raw(t)
	if _, flags := r.EnterAs("disk", nil); flags&wire.FlagSendCache == 0 || flags&wire.FlagSendFastZero == 0 || flags&wire.FlagSendDF != 0 {
		t.Errorf("flags %#x", flags)
	}
	r.Request(0, wire.CmdCache, 1, 0, mib, nil)
	r.Expect(0, 1)
	r.Request(0, wire.CmdCache, 2, 1, mib, nil)
	r.Expect(uint32(nbd.EINVAL), 2)
	r.Request(wire.CmdFlagNoHole, wire.CmdCache, 3, 0, mib, nil)
	r.Expect(uint32(nbd.EINVAL), 3)
	r.Request(wire.CmdFlagFastZero|wire.CmdFlagNoHole, wire.CmdWriteZeroes, 4, 128<<10, 64<<10, nil)
	r.Expect(uint32(nbd.ENOTSUP), 4)
	b := make([]byte, 1)
	if err := m.ReadAt(t.Context(), b, 128<<10); err != nil || b[0] != 7 {
		t.Errorf("a refused fast zero changed the device: %d, %v", b[0], err)
	}
	r.Request(wire.CmdFlagFastZero, wire.CmdWriteZeroes, 5, 128<<10, 64<<10, nil)
	r.Expect(0, 5)
	if err := m.ReadAt(t.Context(), b, 128<<10); err != nil || b[0] != 0 {
		t.Errorf("after a fast zero: %d, %v", b[0], err)
	}
	r = h.raw(t)
	if _, flags := r.EnterAs("fixed", nil); flags&wire.FlagSendFastZero != 0 {
		t.Errorf("flags of a read-only export %#x", flags)
	}
}

// A device that hears its context's end answers in time; the connection lives.
func TestRequestTimeout(t *testing.T) {
	g := newGate()
	h := serve(t, "unix", nbd.Options{RequestTimeout: 400 * time.Millisecond}, probe(func(ctx context.Context, c nbdtest.Call) error {
		if c.Op == "trim" {
			return g.wait(ctx, c)
		}
		return nil
	}))
	r := h.raw(t)
	r.Enter("disk")
	for i := range 3 {
		r.Request(0, wire.CmdTrim, uint64(i), 0, 1, nil)
		r.Expect(uint32(nbd.EIO), uint64(i))
	}
	r.Request(0, wire.CmdWrite, 9, 0, 1, []byte{1})
	r.Expect(0, 9)
}
