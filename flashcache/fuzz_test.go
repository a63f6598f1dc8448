package flashcache

import (
	"bytes"
	"errors"
	"testing"
)

var fuzzGeometry = geometry{dataStart + 64*testRegion, testRegion}

func FuzzSuperblock(f *testing.F) {
	f.Add((&superblock{geometry: fuzzGeometry, pool: [16]byte{1}, domain: [16]byte{2}, incarnation: 3}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSuperblock(b)
		if err != nil {
			return
		}
		if s.validate() != nil {
			t.Fatal("a bad geometry is taken")
		}
		again := s.encode()
		copy(again[12:14], b[12:14]) // compatible features
		if !bytes.Equal(again[:72], b[:72]) {
			t.Fatalf("%x encodes as %x", b[:superBytes], again)
		}
	})
}

func FuzzFooter(f *testing.F) {
	f.Add((&footer{incarnation: 1, seq: 2, region: 3, queue: main, records: 4, tableSum: 5}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseFooter(b, fuzzGeometry)
		if err != nil {
			return
		}
		if got.queue >= queues || int(got.region) >= fuzzGeometry.regions() {
			t.Fatalf("%+v is taken", got)
		}
		if again := got.encode(); !bytes.Equal(again[:11], b[:11]) || !bytes.Equal(again[12:40], b[12:40]) {
			t.Fatalf("%x encodes as %x", b, again)
		}
	})
}

// A table, with a checksum that fits, so that the rest is reached.
func FuzzTable(f *testing.F) {
	b := buffer{data: make([]byte, testRegion)}
	for i := range 5 {
		b.add(entry{fingerprint(i), len(sealed(i)) / 16})
	}
	f.Add(b.table())
	f.Add(bytes.Repeat([]byte{0xFF}, 3*entryBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := fuzzGeometry
		foot := footerOf(b)
		records, err := parseTable(nil, b, foot, g)
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatal(err)
			}
			return
		}
		at, end := g.offset(int(foot.region)), g.offset(int(foot.region)+1)-footerBytes-int64(len(b))
		for _, r := range records {
			if r.units < 1 || r.at.offset() != at || g.region(r.at) != int(foot.region) {
				t.Fatalf("record %+v should be at %d", r, at)
			}
			at += int64(r.recordBytes())
		}
		if at > end {
			t.Fatalf("records end at %d, beyond %d", at, end)
		}
	})
}

// footerOf is a footer for whatever table b is.
func footerOf(b []byte) *footer {
	own := buffer{data: append(bytes.Clone(b), make([]byte, footerBytes)...), records: len(b) / entryBytes}
	own.region.Store(5)
	return own.footer(1)
}
