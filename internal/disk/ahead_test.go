package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"plinth/internal/chunk"
	"plinth/internal/ramcache"
)

// TestAheadFinds tells of reads and sees what is to be fetched.
func TestAheadFinds(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	const end = 100 * mib
	type read struct {
		off, n int64
		hit    bool
		first  int64 // of what is fetched; 0: nothing
		last   int64
	}
	for name, reads := range map[string][]read{
		"in order": {
			{off: 0, n: 128 * kib}, {128 * kib, 128 * kib, false, 256 * kib, 1280 * kib},
			{256 * kib, 128 * kib, true, 1280 * kib, 2304 * kib}, {384 * kib, 128 * kib, true, 0, 0},
		},
		"small": {
			{off: 0, n: 64 * kib}, {off: 64 * kib, n: 64 * kib}, {128 * kib, 64 * kib, false, 192 * kib, 1216 * kib},
		},
		"out of order": {
			{off: 0, n: 128 * kib}, {off: 256 * kib, n: 128 * kib}, {off: 128 * kib, n: 128 * kib}, {off: 384 * kib, n: 128 * kib},
		},
		"in memory":      {{0, 128 * kib, true, 0, 0}, {128 * kib, 128 * kib, true, 0, 0}, {256 * kib, 128 * kib, true, 0, 0}},
		"large":          {{off: 0, n: mib}, {off: mib, n: mib}, {off: 2 * mib, n: mib}},
		"to the end":     {{off: end - 512*kib, n: 128 * kib}, {end - 384*kib, 128 * kib, false, end - 256*kib, end}, {off: end - 256*kib, n: 128 * kib, hit: true}},
		"in memory soon": {{off: 0, n: 128 * kib}, {off: 128 * kib, n: 128 * kib, first: 256 * kib, last: 1280 * kib}, {off: 1280 * kib, n: 128 * kib, hit: true}},
	} {
		a := &ahead{}
		for i, r := range reads {
			f := a.note(r.off, r.n, r.hit, end)
			if f == nil {
				f = &fetch{}
			} else {
				a.finish(f)
			}
			if f.first != r.first || f.end != r.last {
				t.Errorf("%s, read %d: fetch %d to %d, want %d to %d", name, i, f.first, f.end, r.first, r.last)
			}
		}
	}
	a := &ahead{} // of three reads in flight the next begins before the first has ended
	for off := int64(0); off < mib; off += 128 * kib {
		a.begin(t.Context(), off+256*kib, 128*kib)
		if f := a.note(off, 128*kib, false, end); f != nil {
			t.Fatalf("%d to %d is fetched for who reads ahead", f.first, f.end)
		}
	}
	a = &ahead{}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		if f := a.note(rng.Int64N(end/4096)*4096, 4096, false, end); f != nil {
			t.Fatal("random reads are taken for a stream")
		}
	}
}

// TestAhead reads a disk and a snapshot in order: all is right, and every chunk is
// read from segments once.
func TestAhead(t *testing.T) {
	h := newHouse(t, nil)
	p := h.session()
	ram, err := ramcache.New(2 * aheadRAMShare * fetchBytes)
	h.ok(err)
	defer ram.Close()
	p.RAM = ram
	d := h.open(p, 1)
	defer d.Close()
	content := random(5, houseDiskBytes)
	h.ok(d.WriteAt(t.Context(), content, 0, false))
	_, err = MarkAll(t.Context(), []MarkRequest{{Disk: d, Snapshot: 7}})
	h.ok(err)
	h.ok(h.round(d))
	image, err := d.At(t.Context(), 7)
	h.ok(err)
	read := func(what string, size int64, try func([]byte, int64) bool, readAt func([]byte, int64) error) (tried int) {
		t.Helper()
		for off := int64(0); off < houseDiskBytes; off += size {
			got := make([]byte, size)
			if try(got, off) {
				tried++
			} else {
				h.ok(readAt(got, off))
			}
			if !bytes.Equal(got, content[off:off+size]) {
				t.Fatalf("%s: wrong at %d", what, off)
			}
		}
		return tried
	}
	n := read("the disk", 64<<10, d.TryReadAt, func(p []byte, off int64) error { return d.ReadAt(t.Context(), p, off) })
	if reads := d.Stats().ChunkReads; reads != houseDiskBytes/int64(chunk.SizeDefault) {
		t.Errorf("%d chunks were read", reads)
	}
	if n == 0 {
		t.Error("nothing was there before it was wanted")
	}
	read("the snapshot", 64<<10, image.TryReadAt, func(p []byte, off int64) error { return image.ReadAt(t.Context(), p, off) })
	if reads := d.Stats().ChunkReads; reads != houseDiskBytes/int64(chunk.SizeDefault) {
		t.Errorf("%d chunks were read, after the snapshot", reads)
	}
}
