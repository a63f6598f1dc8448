package index

import (
	"bytes"
	"slices"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// FuzzRows gives each decoder any bytes: it refuses them, or what it returns is
// written as the same bytes.
func FuzzRows(f *testing.F) {
	e := pack(1, []int{1, 2, 3})
	row := segmentRow{state: datanode.StateLive, kind: datanode.KindChunks, k: 8, m: 2, births: e.Header.Births}
	f.Add(row.encode())
	f.Add(encodeSlots(e.Slots))
	f.Add(encodeSlots(append(e.Slots[:1:1], e.Slots[2])))
	f.Add(append(append([]byte{1, 1, 0}, bytes.Repeat([]byte{7}, 16)...), 2, 0, 0, 0, 0, 16, 0, 0))
	f.Add(append(printKey(fp(4), 1, 2), encodePrint(at(3))...))
	f.Add((&listRow{last: update{2, 3}, set: update{1, 9}, bits: bits(1, 77)}).encode())
	f.Add(encodeMoves([]datanode.SlotMove{{Slot: 1, To: id.Ref{Segment: 5, Slot: 2, Location: at(2)}}, {Slot: 7, To: id.Ref{Segment: 6, Location: at(0)}}}))
	f.Add((&counters{segments: 1, objectBytes: 9}).encode())
	f.Add(super{incarnation: 7, complete: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(again []byte) {
			if !bytes.Equal(again, b) {
				t.Fatalf("%x became %x", b, again)
			}
		}
		if r, err := decodeSegment(b); err == nil {
			same(r.encode())
		}
		if s, err := decodeSlots(b); err == nil {
			again := encodeSlots(s)
			if b[0] == slotsVersion {
				same(again)
			} else if s2, err := decodeSlots(again); err != nil || !slices.Equal(s, s2) {
				t.Fatalf("%x became %x: %v", b, again, err)
			}
		}
		n := min(len(b), printKeyBytes)
		if r, err := decodePrint(b[:n], b[n:]); err == nil && b[0] == keyPrint {
			f := id.Fingerprint(b[1:printPrefixBytes])
			same(append(printKey(f, r.Segment, r.Slot), encodePrint(r.Location)...))
		}
		if m, err := decodeMoves(b); err == nil {
			same(encodeMoves(m))
		}
		if r, err := decodeList(b); err == nil {
			same(r.encode())
		}
		if c, err := decodeCounters(b); err == nil {
			same(c.encode())
		}
		if s, err := decodeSuper(b); err == nil {
			same(s.encode())
		}
	})
}
