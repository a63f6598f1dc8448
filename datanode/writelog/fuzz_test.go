package writelog

import (
	"bytes"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

func FuzzFrame(f *testing.F) {
	b := appendFrame(nil, &frame{kind: kindRecord, disk: 1, epoch: 2, pos: 3}, []byte("content"))
	seal(b, 7, 100)
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, data, err := parseFrame(b, 7)
		if err != nil {
			return
		}
		again := appendFrame(nil, &got, data)
		seal(again, 7, got.stable)
		if !bytes.Equal(again[:frameBytes-8], b[:frameBytes-8]) && bytes.Equal(again[64:68], b[64:68]) {
			t.Fatalf("%x encodes as %x", b[:got.size()], again)
		}
		provenStable(b, 7, 0)
	})
}

func FuzzHeaders(f *testing.F) {
	g := small.geometry()
	f.Add((&header{seq: 3, salt: 4, slot: 5}).encode())
	f.Add((&super{geometry: g}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseFileHeader(b); err == nil && !bytes.Equal(h.encode()[:88], b[:88]) {
			t.Fatalf("%x encodes as %x", b, h.encode())
		}
		if s, err := parseSuper(b); err == nil && s.validate() != nil {
			t.Fatal("a bad geometry is taken")
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	g := small.geometry()
	s := newState()
	s.fence(1, 2, [datanode.Streams]id.Pos{3, 4}, birth{5, 6})
	f.Add(s.appendSnapshot(nil, []fileRef{{slot: 1, end: dataStart, seq: 2, salt: 3}}))
	f.Add(newState().appendSnapshot(nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, refs, err := parseSnapshot(b, g)
		if err == nil && len(s.appendSnapshot(nil, refs)) != len(b) {
			t.Fatal("a snapshot encodes in another length")
		}
		_, _ = parseFence(b)
	})
}
