package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/ramcache"
	"plinth/internal/vfsx/crashfs"
)

// random returns n bytes that do not compress.
func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// cached is a session with a RAM cache.
func (h *house) cached() *Pool {
	h.Helper()
	p := h.session()
	if p.RAM == nil {
		p = h.session()
	}
	p.Flash = nil
	return p
}

// TestTryRead asks for what is and is not in memory.
func TestTryRead(t *testing.T) {
	const size = int64(chunk.SizeDefault)
	h := newHouse(t, nil)
	p := h.cached()
	var lease error
	p.MayReply = func() error { return lease }
	d := h.open(p, 1)
	content := random(1, 16*int(size))
	copy(content[4*size:], make([]byte, size))
	h.ok(d.WriteAt(t.Context(), content, 0, false))
	copy(content[5*size+100:], "a part")
	h.ok(d.WriteAt(t.Context(), []byte("a part"), 5*size+100, false))
	try := func(what string, off, n int64, want bool) {
		t.Helper()
		got := make([]byte, n)
		ok := d.TryReadAt(got, off)
		if ok != want {
			t.Errorf("%s: %v", what, ok)
		}
		if ok && !bytes.Equal(got, content[off:off+n]) {
			t.Errorf("%s: wrong content", what)
		}
		if allocs := testing.AllocsPerRun(10, func() { d.TryReadAt(got, off) }); allocs > 0 && ok && !raceEnabled {
			t.Errorf("%s: %v allocations", what, allocs)
		}
	}
	try("sealed in the buffer", 0, size, true)
	try("a part of it", 10, 100, true)
	try("zeros in the buffer", 4*size, size, true)
	try("plain in the buffer", 5*size, size, true)
	try("as much as may be opened", 6*size, tryOpensMax*size, true)
	try("more than may be opened", 6*size, (tryOpensMax+1)*size, false)
	h.ok(h.round(d))
	try("in segments", 0, size, false)
	try("zeros of which nothing is known", 4*size, size, false)
	h.ok(d.ReadAt(t.Context(), make([]byte, len(content)), 0))
	try("in RAM", 0, int64(len(content)), true)
	try("a part across a border", size-10, 20, true)
	h.ok(d.Trim(t.Context(), size, size, false))
	clear(content[size : 2*size])
	try("trimmed, in the buffer", 0, 3*size, true)
	h.ok(h.round(d))
	try("trimmed, in the map", 0, 3*size, true)
	try("beyond the end", houseDiskBytes, 1, false)
	lease = errors.New("the lease has ended")
	try("without a lease", 0, size, false)
	lease = nil
	h.ok(d.stop())
	try("while it is rolled back", 0, size, false)
	d.resume()
	try("afterwards", 0, size, true)
	d.fail(errors.New("a test"))
	try("failed", 0, size, false)
	h.ok(d.Close())
	try("closed", 0, size, false)
}

// TestReadsSharedContent reads a content through one disk, its snapshot and another
// disk: RAM has it once for all.
func TestReadsSharedContent(t *testing.T) {
	h := newHouse(t, nil)
	p := h.cached()
	a, b := h.open(p, 1), h.open(p, 2)
	content := random(2, 64<<10)
	h.ok(a.WriteAt(t.Context(), content, 0, false))
	h.ok(b.WriteAt(t.Context(), content, 1<<20, false))
	_, err := MarkAll(t.Context(), []MarkRequest{{Disk: a, Snapshot: 7}})
	h.ok(err)
	h.ok(a.WriteAt(t.Context(), random(3, 64<<10), 0, false))
	h.ok(h.round(a))
	h.ok(h.round(b))
	image, err := a.At(t.Context(), 7)
	h.ok(err)
	got := make([]byte, len(content))
	h.ok(b.ReadAt(t.Context(), got, 1<<20))
	before := a.Stats().ChunkReads
	if image.TryReadAt(got, 0) {
		t.Error("a snapshot of which nothing was read is known")
	}
	h.ok(image.ReadAt(t.Context(), got, 0))
	if !bytes.Equal(got, content) || a.Stats().ChunkReads != before {
		t.Errorf("what another disk has read was read again: %d chunks", a.Stats().ChunkReads-before)
	}
	clear(got)
	if !image.TryReadAt(got, 0) || !bytes.Equal(got, content) {
		t.Error("the snapshot is not in memory, or wrong")
	}
	h.ok(image.Close())
	if image.TryReadAt(got, 0) {
		t.Error("a closed image answers")
	}
}

// flash keeps chunks in a map, and damages them on demand.
type flash struct {
	mu                   sync.Mutex
	chunks               map[id.Fingerprint][]byte
	damage               func(sealed []byte) []byte
	gets, puts, discards int
}

// sometimes damages one chunk of eight.
func sometimes(sealed []byte) []byte {
	if rand.IntN(8) == 0 {
		sealed[rand.IntN(len(sealed))] ^= 1
	}
	return sealed
}

func (f *flash) Get(fp id.Fingerprint, dst []byte) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	sealed, ok := f.chunks[fp]
	if ok && f.damage != nil {
		sealed = f.damage(bytes.Clone(sealed))
	}
	return append(dst, sealed...), ok
}

func (f *flash) Put(fp id.Fingerprint, sealed []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	f.chunks[fp] = bytes.Clone(sealed)
}

func (f *flash) Discard(fp id.Fingerprint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.discards++
	delete(f.chunks, fp)
}

// TestFlash reads through a flash cache that works, and through one that returns
// other things than it was given.
func TestFlash(t *testing.T) {
	for _, suite := range []chunk.Suite{chunk.AES256GCM, chunk.AES256XTS} {
		t.Run(suite.String(), func(t *testing.T) {
			h := newHouse(t, nil)
			f := &flash{chunks: map[id.Fingerprint][]byte{}}
			p := h.session()
			p.Flash = f
			d, err := Open(t.Context(), p, Config{
				ID: 1, Name: "vm1", Bytes: houseDiskBytes, Chunk: chunk.SizeDefault, Suite: suite,
				Epoch: 1, MACKey: h.mac, Map: blockmap.Options{FS: crashfs.New(), Dir: "/map"},
			})
			h.ok(err)
			defer d.Close()
			const chunks = 16
			content := random(4, chunks*int(chunk.SizeDefault))
			h.ok(d.WriteAt(t.Context(), content, 0, false))
			h.ok(h.round(d))
			read := func(what string, stored, cached, discards int) {
				t.Helper()
				p.RAM, err = ramcache.New(ramcache.BytesMin)
				h.ok(err)
				defer p.RAM.Close()
				got := make([]byte, len(content))
				before := d.Stats()
				h.ok(d.ReadAt(t.Context(), got, 0))
				if !bytes.Equal(got, content) {
					t.Errorf("%s: wrong content", what)
				}
				after := d.Stats()
				if s, c := after.ChunkReads-before.ChunkReads, after.FlashReads-before.FlashReads; s != int64(stored) || c != int64(cached) {
					t.Errorf("%s: %d chunks of segments, %d of flash", what, s, c)
				}
				if f.discards != discards {
					t.Errorf("%s: %d discards", what, f.discards)
				}
				f.discards = 0
			}
			read("first", chunks, 0, 0)
			read("from flash", 0, chunks, 0)
			f.damage = func(p []byte) []byte { p[len(p)-20] ^= 1; return p }
			read("damaged", chunks, 0, chunks)
			f.damage = nil
			read("put anew", 0, chunks, 0)
			f.damage = func(p []byte) []byte { return p[:len(p)/2] }
			read("short", chunks, 0, chunks)
			f.damage = func(p []byte) []byte { return nil }
			read("empty", chunks, 0, chunks)
			f.damage = nil
			other := f.chunks
			f.chunks = map[id.Fingerprint][]byte{}
			var last []byte
			for fp, sealed := range other {
				if last != nil {
					f.chunks[fp] = last
				}
				last = sealed
			}
			read("swapped", chunks, 0, chunks-1)
		})
	}
}
