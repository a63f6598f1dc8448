package disk

import (
	"bytes"
	"testing"

	"plinth/blockmap"
	"plinth/internal/id"
	"plinth/internal/logrec"
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

// TestTrimAfterResize appends a trim up to the end of the disk when the disk has
// grown since the trim was asked for, and something was written there: the trim
// must not reach beyond its range.
func TestTrimAfterResize(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	const end = houseDiskBytes + 512
	h.ok(d.Resize(t.Context(), end))
	trim := logrec.Op{Type: logrec.TypeTrim, Off: houseDiskBytes, Len: 512} // as Trim makes it
	h.ok(d.Resize(t.Context(), houseDiskBytes+4096))
	p := bytes.Repeat([]byte{7}, 512)
	h.ok(d.WriteAt(t.Context(), p, end, false))
	h.ok(d.submit(t.Context(), 0, pending{op: trim, data: logrec.AppendRange(nil, trim.Off, trim.Len)}))
	for range 2 {
		got := make([]byte, len(p))
		h.ok(d.ReadAt(t.Context(), got, end))
		if !bytes.Equal(got, p) {
			t.Fatal("the trim took what was written beyond its end")
		}
		h.ok(d.Close())
		d = h.open(h.session(), 1)
	}
}

// TestDamagedBuffer damages a chunk in the write buffer: the write that meets it
// fails the disk, and every charge is given back once.
func TestDamagedBuffer(t *testing.T) {
	h := newHouse(t, nil)
	p := h.session()
	d := h.open(p, 1)
	chunk := bytes.Repeat([]byte{1, 2, 3, 4}, 1024)
	h.ok(d.WriteAt(t.Context(), chunk, 0, false))
	d.mu.Lock()
	sealed := d.active().entries[0].sealed
	sealed[len(sealed)-1] ^= 1
	d.mu.Unlock()
	h.fails("write", d.WriteAt(t.Context(), chunk[:8], 0, false), ErrFailed)
	h.fails("read", d.ReadAt(t.Context(), chunk, 0), ErrFailed)
	h.ok(d.Close())
	if n := p.Space.Charged(); n != 0 {
		t.Fatalf("%d bytes are charged for nothing", n)
	}
}

// TestLayersAreForgotten looks for what a round leaves in memory.
func TestLayersAreForgotten(t *testing.T) {
	h := newHouse(t, nil)
	d := h.open(h.session(), 1)
	for range 3 {
		h.ok(d.WriteAt(t.Context(), make([]byte, 100), 0, false))
		d.Rotate()
	}
	layers := d.layers
	h.ok(h.round(d))
	for i, l := range layers {
		if l != nil && l != d.active() {
			t.Fatalf("layer %d is still referred to", i)
		}
	}
}
