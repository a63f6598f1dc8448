package blockmap

import (
	"encoding/binary"
	"testing"

	"plinth/internal/id"
)

// Tables whose objects lie where they should not stay are uploaded again, also those of
// which there is only the object, and the ones before may go while tables are open.
func TestStaleObjectsAreUploadedAgain(t *testing.T) {
	const chunks = 10_000
	s := newStore()
	opts := testOptions(t, s)
	last := uint64(0)
	opts.Stale = func(o Object) bool { return binary.BigEndian.Uint64(o) <= last }
	m := attached(t, s, chunks, opts)
	out := make([]Entry, 1)
	if err := m.LookupRange(chunks/2, out); err != nil { // which opens a table
		t.Fatal(err)
	}
	if c := mustCheckpoint(t, m); c.UploadedBytes != 0 {
		t.Errorf("%d bytes are uploaded again for nothing", c.UploadedBytes)
	}
	last = s.next
	c := mustCheckpoint(t, m)
	if c.UploadedBytes == 0 {
		t.Fatal("nothing is uploaded again")
	}
	for _, o := range append(m.Objects(), c.Objects...) {
		if opts.Stale(o) {
			t.Error("a stale object stays")
		}
	}
	s.keep(m.Objects(), c.Objects)
	for lba := range id.LBA(chunks) {
		if err := m.LookupRange(lba, out); err != nil || out[0] != entryOf(uint64(lba)) {
			t.Fatalf("LBA %d: %v, %v", lba, out[0], err)
		}
	}
	next := mustAttach(t, c.Manifest, Options{FS: opts.FS, Dir: "next", Objects: s})
	if err := next.LookupRange(chunks-1, out); err != nil || out[0] != entryOf(chunks-1) {
		t.Errorf("after attaching: %v, %v", out[0], err)
	}
	if again := mustCheckpoint(t, m); again.UploadedBytes != 0 {
		t.Errorf("%d bytes are uploaded a third time", again.UploadedBytes)
	}
}
