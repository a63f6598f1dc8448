package disk

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/vfsx/crashfs"
)

// A disk of 64 TiB is trimmed whole, at once and by 32,768 requests of 2 GiB
// with 128 under way, as mkfs does: in seconds, and what was written before is
// gone, what was written after is not.
func TestSimTrimWholeDisk(t *testing.T) {
	const bytes, step, inFlight = 64 << 40, 2 << 30, 128
	h := newHouse(t, nil)
	d, err := Open(t.Context(), h.session(), Config{
		ID: 9, Name: "large", Bytes: bytes, Chunk: chunk.SizeDefault, Suite: chunk.AES256GCM, Epoch: 1, MACKey: h.mac,
		Map: blockmap.Options{FS: crashfs.New(), Dir: "/map-large"},
	})
	h.ok(err)
	defer d.Close()
	p := make([]byte, 8192)
	for i := range p {
		p[i] = byte(i%251 + 1)
	}
	data := func() (n int64) {
		for off := int64(0); off < bytes; {
			h.ok(d.Extents(t.Context(), off, bytes-off, func(k int64, data bool) bool {
				if off += k; data {
					n += k
				}
				return true
			}))
		}
		return n
	}
	const places = 200
	for name, trim := range map[string]func(){
		"at once": func() { h.ok(d.Trim(t.Context(), 0, bytes, true)) },
		"by 2 GiB": func() {
			var next atomic.Int64
			var wg sync.WaitGroup
			for range inFlight {
				wg.Go(func() {
					for off := next.Add(step) - step; off < bytes; off = next.Add(step) - step {
						if err := d.Trim(t.Context(), off, step, false); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			h.ok(d.Flush(t.Context()))
		},
	} {
		for i := range int64(places) {
			h.ok(d.WriteAt(t.Context(), p, i*(bytes/places)>>12<<12, false))
		}
		h.ok(h.round(d))
		if n := data(); n != places*int64(len(p)) {
			t.Errorf("%d bytes of data, want %d", n, places*len(p))
		}
		start := time.Now()
		trim()
		trimmed := time.Since(start)
		h.ok(h.round(d))
		t.Logf("%s: %v, destaged in %v more", name, trimmed, time.Since(start)-trimmed)
		if n := data(); n != 0 {
			t.Errorf("%s: %d bytes of data are left", name, n)
		}
		if trimmed > 20*time.Second {
			t.Errorf("%s: %v", name, trimmed)
		}
	}
}
