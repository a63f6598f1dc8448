package spindle

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

func sampleSuper() *super {
	return &super{pool: somePool, spindle: 3, identity: 0xabcdef012345, sizeBytes: 1 << 30, slabBytes: 1 << 26}
}

func sampleEntry() (e entry, data extent) {
	return entry{
		name: name{id.MakeSegment(2, 9), 4}, part: 1, parts: 3, serial: 77,
		extent: extent{300, 5}, bytes: 40 * blockBytes,
	}, slabGeometry(4 << 20).data()
}

func sampleFragment(blocks int) []byte {
	h := segmentHeader(id.MakeSegment(1, 2))
	data := bytes.Repeat([]byte{1, 2, 3, 4}, blocks*blockBytes/4)
	head := make([]byte, AllocatedBytes(len(data))-len(data))
	encodeHeader(head, &somePool, &h, 3, 11, data)
	return append(head, data...)
}

func TestRoundTrips(t *testing.T) {
	if s, err := decodeSuper(sampleSuper().encode()); err != nil || *s != *sampleSuper() {
		t.Errorf("superblock %+v: %v", s, err)
	}
	head := &slabHeader{pool: somePool, spindle: 1, slab: 2, tableBlocks: 3}
	if h, err := decodeSlabHeader(head.encode()); err != nil || *h != *head {
		t.Errorf("slab header %+v: %v", h, err)
	}
	e, data := sampleEntry()
	b := e.encode(5, 6)
	if got, used, err := decodeEntry(b, data, 5, 6); err != nil || !used || got != e {
		t.Errorf("entry %+v, %t: %v", got, used, err)
	}
	for _, at := range [][2]uint32{{5, 7}, {4, 6}} {
		if _, used, err := decodeEntry(b, data, at[0], at[1]); err == nil || used {
			t.Errorf("an entry counts in another place: %v", at)
		}
	}
	if _, used, err := decodeEntry(make([]byte, entryBytes), data, 5, 6); err != nil || used {
		t.Errorf("an empty entry: %t, %v", used, err)
	}
	for _, blocks := range []int{1, 256, 720, 721, datanode.FragmentBytesMax / blockBytes} {
		h, err := decodeHeader(sampleFragment(blocks), &somePool)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(h.SegmentHeader, segmentHeader(id.MakeSegment(1, 2))) || h.index != 3 || h.serial != 11 || len(h.sums) != blocks {
			t.Errorf("%d blocks: header %+v", blocks, h.SegmentHeader)
		}
	}
}

func TestAllocatedBytes(t *testing.T) {
	for data, header := range map[int]int{1: 1, 256: 1, 720: 1, 721: 2, 2048: 3} {
		if got := AllocatedBytes(data * blockBytes); got != (data+header)*blockBytes {
			t.Errorf("%d blocks of data take %d bytes", data, got)
		}
	}
}

func TestSlabsHaveAnEntryForEachBlock(t *testing.T) {
	for _, bytes := range []int64{SlabBytesMin, 100 << 10, 1 << 20, 64 << 20, 64<<20 + blockBytes, SlabBytesMax} {
		g := slabGeometry(bytes)
		if g.data().n == 0 || g.data().n > g.tableBlocks*entriesInTurn || g.data().end() != g.blocks {
			t.Errorf("%d bytes: %+v, data %+v", bytes, g, g.data())
		}
	}
}

// A structure of a version or with a feature to come is refused by name.
func TestNewerVersionsAreRefused(t *testing.T) {
	e := func(b []byte, change func(b []byte), decode func([]byte) error) {
		t.Helper()
		change(b)
		le.PutUint32(b[60:], checksum(b[:60]))
		if err := decode(b); !errors.Is(err, ErrVersion) {
			t.Errorf("got %v", err)
		}
	}
	for _, change := range []func(b []byte){
		func(b []byte) { le.PutUint16(b[8:], version+1) },
		func(b []byte) { b[15] = 0x80 },
	} {
		e(sampleSuper().encode(), change, func(b []byte) error { _, err := decodeSuper(b); return err })
		e((&slabHeader{}).encode(), change, func(b []byte) error { _, err := decodeSlabHeader(b); return err })
		e(encodeMetaHead(&somePool, nil), change, func(b []byte) error { _, err := decodeMeta(b, &somePool); return err })
		b := sampleFragment(1)
		change(b)
		le.PutUint32(b[44:], 0)
		le.PutUint32(b[44:], checksum(b[:blockBytes]))
		if _, err := decodeHeader(b, &somePool); !errors.Is(err, ErrVersion) {
			t.Errorf("got %v", err)
		}
	}
}

// Each flipped byte of what a fragment takes is found, and found where it is.
func TestEveryFlipIsFound(t *testing.T) {
	r := memoryRig(t, 1)
	data := r.noise(3)
	r.mustWrite(0, 1, 2, data)
	p := r.all()[0].catalog.get(name{1, 2}).parts[0]
	f, err := r.fs.OpenReadWrite(p.slab.path, vfs.WriteCategoryUnspecified)
	r.ok(err)
	defer f.Close()
	at := int64(p.start) * blockBytes
	for i := range int64(p.n) * blockBytes {
		if i > 3*blockBytes && i%7 != 0 {
			continue // the last block is like the others
		}
		var b [1]byte
		if _, err := f.ReadAt(b[:], at+i); err != nil {
			t.Fatal(err)
		}
		flip := b
		flip[0] ^= 1 << (i % 8)
		f.WriteAt(flip[:], at+i)
		d := r.verify(0, 1, 2)
		if i < blockBytes {
			if !d.BadHeader || !errors.Is(d.Err, datanode.ErrCorrupt) || !bytes.Equal(d.Data, data) {
				t.Fatalf("byte %d of the header: %v, %t", i, d.Err, d.BadHeader)
			}
		} else if d.Err != nil || len(d.Bad) != 1 || d.Bad[0] != uint32(i/blockBytes-1) || len(d.Data) != len(data) {
			t.Fatalf("byte %d: %v, bad blocks %v", i, d.Err, d.Bad)
		}
		f.WriteAt(b[:], at+i)
	}
	r.expect(0, 1, 2, data)
}

// A flipped byte of a table loses the fragment it names and no other; of a slab
// header, nothing.
func TestFlipsOfTables(t *testing.T) {
	r := memoryRig(t, 1)
	a, b := r.noise(3), r.noise(4)
	r.mustWrite(0, 1, 0, a)
	r.mustWrite(0, 2, 0, b)
	path := r.all()[0].slabs[0].path
	r.ok(r.Close())
	f, err := r.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	r.ok(err)
	defer f.Close()
	clean := make([]byte, 2*blockBytes)
	f.ReadAt(clean, 0)
	for i := range 64 {
		for _, at := range []int{i, blockBytes + i} {
			f.WriteAt([]byte{clean[at] ^ 0x10}, int64(at))
			r.open()
			if at < headBytes {
				r.expect(0, 1, 0, a)
			} else {
				r.expectError(r.verify(0, 1, 0).Err, datanode.ErrNotFound)
			}
			r.expect(0, 2, 0, b)
			r.audit()
			r.ok(r.Close())
			f.WriteAt(clean, 0)
		}
	}
	r.open()
	r.expect(0, 1, 0, a)
}

func FuzzSuper(f *testing.F) {
	f.Add(sampleSuper().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSuper(b); err == nil {
			if again, err := decodeSuper(s.encode()); err != nil || *again != *s {
				t.Fatalf("%+v: %+v, %v", s, again, err)
			}
		}
	})
}

func FuzzSlabHeader(f *testing.F) {
	f.Add((&slabHeader{somePool, 1, 2, 3}).encode()[:headBytes])
	f.Fuzz(func(t *testing.T, b []byte) { decodeSlabHeader(b) })
}

func FuzzEntry(f *testing.F) {
	e, data := sampleEntry()
	f.Add(e.encode(5, 6), true)
	f.Add(make([]byte, entryBytes), false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= entryBytes {
			le.PutUint32(b[60:], entryChecksum(b, 5, 6))
		}
		e, used, err := decodeEntry(b, data, 5, 6)
		if used && (err != nil || e.start < data.start || e.end() > data.end() || e.end() < e.start || e.n == 0) {
			t.Fatalf("%+v: %v", e, err)
		}
	})
}

func FuzzFragmentHeader(f *testing.F) {
	f.Add(sampleFragment(1)[:blockBytes], false)
	f.Add(sampleFragment(721)[:2*blockBytes], true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= blockBytes {
			n := le.Uint32(b[32:])
			if head := int(headerBlocks(n%(datanode.FragmentBytesMax+1))) * blockBytes; head <= len(b) {
				le.PutUint32(b[44:], 0)
				le.PutUint32(b[44:], checksum(b[:head]))
			}
		}
		h, err := decodeHeader(b, &somePool)
		if err == nil && (len(h.Births) > datanode.BirthsMax || len(h.sums) != int(h.bytes/blockBytes)) {
			t.Fatalf("%+v", h)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add(append(encodeMetaHead(&somePool, []byte("data")), "data"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if data, err := decodeMeta(b, &somePool); err == nil && len(data) != len(b)-headBytes {
			t.Fatal(len(data))
		}
	})
}
