package disk

import (
	"testing"

	"plinth/blockmap"
	"plinth/internal/id"
)

// TestSimSplitTrim trims a large, mapped run and then cuts it into short runs by
// single writes, as who makes a file system does: what comes of the layer must
// still fit one batch of the map.
func TestSimSplitTrim(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	const chunks = blockmap.UpdatesMax + 8*smallTrimChunksMax
	h.ok(d.Resize(t.Context(), chunks*4096))
	h.ok(h.round(d))
	// What is mapped is not read, so it need not be there.
	b := blockmap.Batch{}
	for lba := id.LBA(0); lba < chunks; lba++ {
		e := blockmap.Entry{Ref: id.Ref{Segment: 1 << 40, Location: 1}}
		if b.Updates = append(b.Updates, blockmap.Update{LBA: lba, Entry: e}); len(b.Updates) == blockmap.UpdatesMax || lba == chunks-1 {
			h.ok(d.m.Apply(&b, d.state.marshal()))
			b.Updates = b.Updates[:0]
		}
	}
	h.ok(d.Trim(t.Context(), 0, d.Size(), false))
	p := make([]byte, 4096)
	p[0] = 1
	for lba := int64(0); lba < chunks; lba += smallTrimChunksMax {
		h.ok(d.WriteAt(t.Context(), p, lba*4096, false))
	}
	h.ok(h.round(d))
	h.ok(d.Close())
	d = h.open(h.session(), 1)
	got := make([]byte, 4096)
	for lba := int64(0); lba < chunks; lba += smallTrimChunksMax / 2 {
		h.ok(d.ReadAt(t.Context(), got, lba*4096))
		if want := byte(1 - lba/(smallTrimChunksMax/2)%2); got[0] != want {
			t.Fatalf("chunk %d begins with %d, want %d", lba, got[0], want)
		}
	}
}
