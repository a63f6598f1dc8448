package disk

import (
	"bytes"
	"sync/atomic"
	"testing"

	"plinth/datanode/shelf"
	"plinth/internal/vfsx/crashfs"
)

// TestBufferComesInPieces fills the write buffer while nothing is destaged: it must
// be of layers that are small beside it, and destaging be asked for before it is full.
func TestBufferComesInPieces(t *testing.T) {
	h := newHouseOf(t, "/node", shelf.Options{FS: crashfs.New(), SpindleBytes: 128 << 20}, nil)
	p := h.session()
	const limit = 4 * layerChargeMin
	var nudges atomic.Int64
	p.Space = NewSpace(h.node, SpaceOptions{
		Host: "pieces", ChargedBytesMax: limit, K: p.Geometry.K, M: p.Geometry.M,
		Nudge: func() { nudges.Add(1) }, Relieve: h.reclaim,
	})
	d := h.open(p, 1)
	c := newContent(1)
	for p.Space.Charged() < limit*3/4 {
		for i := 0; i < len(c.data); i += 4096 { // compressible, so that the log holds it
			copy(c.data[i:], bytes.Repeat([]byte{byte(i>>12 + len(d.layers))}, 4096))
		}
		const each = 128 << 10
		for off := 0; off < len(c.data); off += each {
			if p.Space.Charged() < limit/nudgeShare-(each+each/4) && nudges.Load() != 0 {
				t.Fatalf("destaging was asked for at %d bytes of %d", p.Space.Charged(), limit)
			}
			h.ok(d.WriteAt(t.Context(), c.data[off:off+each], int64(off), false))
		}
	}
	if n := nudges.Load(); n != 1 {
		t.Errorf("destaging was asked for %d times", n)
	}
	for i, l := range d.layers {
		if most := p.Space.layerChargeMax() + (128<<10)*5/4; l.charge > most {
			t.Errorf("layer %d is charged %d bytes, most are %d", i, l.charge, most)
		}
	}
	for len(d.layers) > 1 {
		before := p.Space.Charged()
		h.ok(p.Destage(t.Context(), []*Disk{d}))
		if freed := before - p.Space.Charged(); freed <= 0 || freed > limit/3 {
			t.Errorf("a round makes room for %d bytes", freed)
		}
	}
	h.ok(h.round(d))
	got := make([]byte, len(c.data))
	h.ok(d.ReadAt(t.Context(), got, 0))
	if string(got) != string(c.data) {
		t.Error("content differs")
	}
	if n := p.Space.Charged(); n != 0 {
		t.Errorf("%d bytes stay charged", n)
	}
}
