package blockmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"plinth/internal/id"
)

func known(err error) bool { return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) }

func sampleManifest(t testing.TB) []byte {
	f := manifest{
		state:  []byte("state"),
		files:  []manifestFile{{"MANIFEST-000001", []byte("bytes")}, {"marker.format-version.000001.013", nil}},
		tables: []manifestTable{{4, 100, Object("a")}, {1234567, 1, Object("bc")}},
	}
	b, err := f.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzManifest: what is accepted encodes to the same bytes, and nothing panics.
// A checksum of its own lets mutations pass.
func FuzzManifest(f *testing.F) {
	f.Add(sampleManifest(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		resum(b)
		m, err := parseManifest(b)
		if err != nil {
			if !known(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		// Compatible bits, which are ignored, are all that may differ.
		copy(again[10:12], b[10:12])
		copy(again[28:32], b[28:32])
		resum(again)
		if !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

func FuzzEntry(f *testing.F) {
	var b [entryBytes]byte
	e := entryOf(5)
	putEntry(&b, &e)
	f.Add(b[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := parseEntry(value)
		if err != nil {
			if !known(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		var again [entryBytes]byte
		if putEntry(&again, &e); !e.Zero() && !bytes.Equal(again[:], value) {
			t.Errorf("%x encodes to %x", value, again)
		}
	})
}

func FuzzTrimRow(f *testing.F) {
	f.Add(trimKey(trim{Extent{5, 1 << 40}, 7}))
	f.Fuzz(func(t *testing.T, key []byte) {
		row, err := parseTrim(key)
		if err != nil {
			if !known(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		if again := trimKey(row); !bytes.Equal(again, key) {
			t.Errorf("%x encodes to %x", key, again)
		}
	})
}

func FuzzHead(f *testing.F) {
	h := head{gen: 9, floor: 3, updates: 5, view: view{{0, 3}, {7, genEnd}}, state: []byte("state")}
	f.Add(h.encode())
	h.marked = true
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b)
		if err != nil {
			if !known(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		if again := h.encode(); !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x", b, again)
		}
	})
}

func FuzzSnapshotRow(f *testing.F) {
	k := mark{id: 5, bytes: 1 << 40, view: view{{0, 3}, {7, 9}}}
	key := markKey(k.id)
	f.Add(key[:], k.encode())
	f.Fuzz(func(t *testing.T, key, value []byte) {
		k, err := parseMark(key, value)
		if err != nil {
			if !known(err) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		again := markKey(k.id)
		if v := k.encode(); !bytes.Equal(again[:], key) || !bytes.Equal(v, value) {
			t.Errorf("%x, %x encodes to %x, %x", key, value, again, v)
		}
	})
}

// TestSnapshotRefusals: what newer code writes is refused, not misread.
func TestSnapshotRefusals(t *testing.T) {
	k := mark{id: 5, bytes: 1, view: view{{0, 3}}}
	key := markKey(k.id)
	for _, at := range []int{0, 4} {
		b := k.encode()
		b[at] += 2
		if _, err := parseMark(key[:], b); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a snapshot with another byte %d: %v", at, err)
		}
	}
	h := head{gen: 9, view: wholeView(), marked: true}
	b := h.encode()
	b[4] |= 2
	if _, err := parseHead(b); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a head with an unknown feature: %v", err)
	}
	m := mustCreate(t, testOptions(t, newStore()))
	mustApply(t, m, &Batch{Mark: Mark{Snapshot: 1}}, "")
	sweepMap(t, m, 1)
	if !m.head.marked || m.head.encode()[4] != featureMarks {
		t.Error("a map that had snapshots does not say so")
	}
}

func TestManifestRefusals(t *testing.T) {
	good := sampleManifest(t)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		resum(b)
		return b
	}
	flipped := bytes.Clone(good)
	flipped[40] ^= 1
	for _, c := range []struct {
		name  string
		bytes []byte
		want  error
	}{
		{"empty", nil, ErrCorrupt},
		{"cut", good[:len(good)-1], ErrCorrupt},
		{"a flipped bit", flipped, ErrCorrupt},
		{"another magic", change(0, 'x'), ErrCorrupt},
		{"a newer version", change(8, 2), ErrUnsupported},
		{"a required feature", change(12, 1), ErrUnsupported},
		{"more tables", change(24, 3), ErrCorrupt},
		{"a path", change(32+5+2, '/'), ErrCorrupt},
	} {
		if _, err := parseManifest(c.bytes); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := parseManifest(change(10, 1)); err != nil {
		t.Errorf("a compatible feature: %v", err)
	}
}

func TestKeysSortNewestFirst(t *testing.T) {
	a, b, c := makePointKey(5, 9), makePointKey(5, 3), makePointKey(6, 100)
	if comparer.Compare(a[:], b[:]) >= 0 || comparer.Compare(b[:], c[:]) >= 0 {
		t.Error("order of keys")
	}
	if lba, gen, err := parsePointKey(b[:]); lba != 5 || gen != 3 || err != nil {
		t.Error(lba, gen, err)
	}
	next := comparer.ImmediateSuccessor(nil, a[:prefixBytes])
	if want := firstKey(id.LBA(6)); !bytes.Equal(next, want[:prefixBytes]) {
		t.Errorf("successor of LBA 5 is %x", next)
	}
}

// resum sets the checksum at the end of b.
func resum(b []byte) {
	if n := len(b) - crcBytes; n >= 0 {
		binary.LittleEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
	}
}
