package spindle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

var somePool = [16]byte{7, 8, 9}

// rig is a Set over a file system, and a source of fragments.
type rig struct {
	testing.TB
	*Set
	fs   vfs.FS
	dirs []string
	opts Options
	rng  *rand.Rand
}

func newRig(t testing.TB, fs vfs.FS, base string, spindles int, opts Options) *rig {
	t.Helper()
	r := &rig{TB: t, fs: fs, opts: opts, rng: rand.New(rand.NewPCG(1, 2))}
	r.opts.PoolID = somePool
	for i := range spindles {
		r.dirs = append(r.dirs, fs.PathJoin(base, fmt.Sprintf("spindle-%02d", i)))
	}
	r.ok(Create(fs, r.dirs, r.opts))
	r.open()
	t.Cleanup(func() { r.Close() })
	return r
}

// memoryRig has spindles of 1 MiB in slabs of 256 KiB.
func memoryRig(t testing.TB, spindles int) *rig {
	return newRig(t, vfs.NewMem(), "", spindles, Options{SizeBytes: 1 << 20, SlabBytes: 256 << 10})
}

func (r *rig) open() {
	r.Helper()
	s, err := Open(r.fs, r.dirs, r.opts)
	r.ok(err)
	r.Set = s
}

func (r *rig) reopen() {
	r.Helper()
	r.ok(r.Close())
	r.open()
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) noise(blocks int) []byte {
	b := make([]byte, blocks*blockBytes)
	for i := 0; i < len(b); i += 8 {
		le.PutUint64(b[i:], r.rng.Uint64())
	}
	return b
}

func segmentHeader(s id.Segment) datanode.SegmentHeader {
	return datanode.SegmentHeader{
		Segment: s, Kind: datanode.KindChunks, K: 8, M: 2, DataBytes: 1000,
		Births: []datanode.Birth{{Disk: 1, Epoch: 2, Slots: 3}, {Disk: 4, Epoch: 5, Slots: 6}},
	}
}

// write stores one fragment.
func (r *rig) write(sp id.Spindle, s id.Segment, index uint8, data []byte, replace bool) *datanode.Error {
	r.Helper()
	reply, err := r.WriteFragments(context.Background(), &datanode.WriteFragmentsRequest{
		Header: segmentHeader(s), Replace: replace,
		Fragments: []datanode.Fragment{{Spindle: sp, Index: index, Data: data}},
	})
	r.ok(err)
	return reply.Errors[0]
}

func (r *rig) mustWrite(sp id.Spindle, s id.Segment, index uint8, data []byte) {
	r.Helper()
	if err := r.write(sp, s, index, data, false); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) verify(sp id.Spindle, s id.Segment, index uint8) datanode.FragmentData {
	r.Helper()
	return r.read(datanode.FragmentRange{Spindle: sp, Segment: s, Index: index}, true)
}

func (r *rig) read(fr datanode.FragmentRange, verify bool) datanode.FragmentData {
	r.Helper()
	reply, err := r.ReadFragments(context.Background(), &datanode.ReadFragmentsRequest{
		Ranges: []datanode.FragmentRange{fr}, Verify: verify,
	})
	r.ok(err)
	return reply.Results[0]
}

// expect fails the test unless the fragment is whole and has that data.
func (r *rig) expect(sp id.Spindle, s id.Segment, index uint8, data []byte) {
	r.Helper()
	d := r.verify(sp, s, index)
	if d.Err != nil || d.BadHeader || len(d.Bad) > 0 || !bytes.Equal(d.Data, data) || d.Bytes != uint32(len(data)) {
		r.Fatalf("fragment %d of %s on spindle %d: %v, bad header %t, bad blocks %v, %d bytes, want %d",
			index, s, sp, d.Err, d.BadHeader, d.Bad, len(d.Data), len(data))
	}
	if want := segmentHeader(s); d.Header.Segment != s || len(d.Header.Births) != 2 || d.Header.Births[1] != want.Births[1] {
		r.Fatalf("header %+v", d.Header)
	}
}

func (r *rig) expectError(err error, want *datanode.Error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Fatalf("got %v, want %v", err, want)
	}
}

// audit compares the spindles' accounts with a walk of their fragments.
func (r *rig) audit() {
	r.Helper()
	for _, sp := range r.all() {
		if sp.serving() != nil {
			continue
		}
		sp.mu.Lock()
		free, used := int64(0), int64(0)
		taken := map[*slab]map[uint32]bool{}
		for _, s := range sp.slabs {
			if s == nil {
				free += int64(slabGeometry(sp.super.slabBytes).data().n)
				continue
			}
			taken[s] = map[uint32]bool{}
			sum := uint32(0)
			for i, e := range s.free.list {
				sum += e.n
				if i > 0 && s.free.list[i-1].end() >= e.start || e.end() > s.blocks || e.start < s.data().start {
					r.Fatalf("spindle %d, slab %d: free list %v", sp.number, s.head.slab, s.free.list)
				}
				for b := e.start; b < e.end(); b++ {
					taken[s][b] = true
				}
			}
			if sum != s.free.blocks {
				r.Fatalf("spindle %d, slab %d: %d blocks free, counted %d", sp.number, s.head.slab, s.free.blocks, sum)
			}
			free += int64(sum)
		}
		for _, f := range sp.catalog.from(name{}, 1<<30) {
			used += int64(f.blocks())
			for _, p := range f.parts {
				for b := p.start; b < p.end(); b++ {
					if taken[p.slab][b] {
						r.Fatalf("spindle %d, slab %d: block %d is taken twice", sp.number, p.slab.head.slab, b)
					}
					taken[p.slab][b] = true
				}
			}
		}
		if free != sp.freeBlocks || used != sp.catalog.blocks || free+used != sp.capacityBlocks() {
			r.Fatalf("spindle %d: free %d (counted %d), used %d (counted %d) of %d",
				sp.number, sp.freeBlocks, free, sp.catalog.blocks, used, sp.capacityBlocks())
		}
		sp.mu.Unlock()
	}
}

// places are the file systems the tests run on.
func places(t *testing.T, test func(t *testing.T, fs vfs.FS, base string)) {
	t.Run("memory", func(t *testing.T) { test(t, vfs.NewMem(), "") })
	t.Run("files", func(t *testing.T) { test(t, vfs.Default, t.TempDir()) })
}

func TestWriteReadReplaceDelete(t *testing.T) {
	places(t, func(t *testing.T, fs vfs.FS, base string) {
		r := newRig(t, fs, base, 2, Options{SizeBytes: 8 << 20, SlabBytes: 1 << 20})
		// The last one does not fit a slab's data, and has a long header.
		for i, blocks := range []int{1, 200, 721} {
			s := id.MakeSegment(3, uint64(i+1))
			data := r.noise(blocks)
			r.mustWrite(1, s, 4, data)
			r.expect(1, s, 4, data)
			if err := r.write(1, s, 4, data, false); err == nil {
				t.Fatal("written twice")
			}
			newer := r.noise(blocks)
			if err := r.write(1, s, 4, newer, true); err != nil {
				t.Fatal(err)
			}
			r.expect(1, s, 4, newer)
			r.audit()
			r.reopen()
			r.expect(1, s, 4, newer)
			r.audit()
			r.ok(r.Delete(context.Background(), s))
			r.expectError(r.verify(1, s, 4).Err, datanode.ErrNotFound)
			r.audit()
		}
		r.reopen()
		if n := r.Status()[1]; n.Fragments != 0 || n.AllocatedBytes != 0 {
			t.Fatalf("%+v after all was deleted", n)
		}
	})
}

func TestPlainRanges(t *testing.T) {
	r := memoryRig(t, 1)
	data := r.noise(5)
	r.mustWrite(0, 1, 0, data)
	for range 200 {
		off := r.rng.IntN(len(data))
		n := 1 + r.rng.IntN(len(data)-off)
		d := r.read(datanode.FragmentRange{Segment: 1, Offset: uint32(off), Length: uint32(n)}, false)
		if d.Err != nil || !bytes.Equal(d.Data, data[off:off+n]) {
			t.Fatalf("range %d+%d: %v", off, n, d.Err)
		}
	}
	for _, fr := range []datanode.FragmentRange{
		{Segment: 1, Offset: 0, Length: uint32(len(data)) + 1},
		{Segment: 1, Offset: uint32(len(data)), Length: 1},
		{Segment: 1, Offset: 1<<32 - 1, Length: 2},
		{Segment: 1},
	} {
		r.expectError(r.read(fr, false).Err, datanode.ErrInvalid)
	}
}

// What a crash between the last step of a replacement and the clearing of the
// old entry leaves: the newer fragment is right, and the older one is freed.
func TestNewerFragmentWins(t *testing.T) {
	r := memoryRig(t, 1)
	r.mustWrite(0, 1, 0, r.noise(3))
	sp := r.all()[0]
	old := sp.catalog.get(name{1, 0})
	data := r.noise(2)
	if err := r.write(0, 1, 0, data, true); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r.ok(old.parts[0].writeEntry(old, 0))
		r.reopen()
		r.expect(0, 1, 0, data)
		r.audit()
		old.parts[0].slab = r.all()[0].slabs[0]
	}
	r.reopen()
	r.expect(0, 1, 0, data)
}
