package disk

import (
	"bytes"
	"slices"
	"testing"

	"plinth/internal/id"
	"plinth/internal/logrec"
)

// TestRollback rolls back and forth; what comes in between gets ErrBusy or waits.
func TestRollback(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 20)
	h.snap(1, d)
	one := bytes.Clone(c.data)
	h.fill(d, c, 20)
	h.ok(d.Resize(t.Context(), houseDiskBytes+8192))
	c.data = append(c.data, make([]byte, 8192)...)
	h.ok(h.round(d))
	h.fill(d, c, 5)
	h.snap(2, d)
	two := bytes.Clone(c.data)
	h.fill(d, c, 5)
	h.ok(h.round(d)) // Await would need a host's rounds
	h.fill(d, c, 5)
	for i := range 4 {
		s, want := id.Snapshot(1), one
		if i%2 == 1 {
			s, want = 2, two
		}
		h.ok(d.Rollback(t.Context(), s))
		c.data = bytes.Clone(want)
		if d.Size() != int64(len(want)) {
			t.Fatalf("%d bytes after the rollback, want %d", d.Size(), len(want))
		}
		h.same(d, c)
		h.shows(d, 1, one)
		h.shows(d, 2, two)
		h.fill(d, c, 5)
		if i == 1 {
			h.ok(h.round(d))
			h.ok(d.Checkpoint(t.Context()))
		}
		h.ok(d.Close())
		d = h.open(h.session(), 1)
		h.same(d, c)
		h.useUp(d, c)
		h.shows(d, 1, one)
		h.shows(d, 2, two)
	}
	h.fails("to nowhere", d.Rollback(t.Context(), 9), ErrNoSnapshot)
	h.same(d, c)
}

// TestRollbackOnlyInLog dies between the rollback's record and its result: Open
// ends it.
func TestRollbackOnlyInLog(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 20)
	h.snap(1, d)
	want := bytes.Clone(c.data)
	h.fill(d, c, 20)
	h.ok(h.round(d))
	view, err := d.m.At(1)
	h.ok(err)
	op := logrec.Op{Type: logrec.TypeRollback, Snapshot: 1, Len: view.Bytes()}
	rollback := commit{recs: []pending{{op: op, data: logrec.AppendRollback(nil, 1, op.Len)}}}
	h.ok(d.appendBatch([]*commit{&rollback}, d.appendMark))
	h.ok(d.WriteAt(t.Context(), []byte("after"), 100, false))
	copy(want[100:], "after")
	h.ok(d.Close())
	for range 2 {
		d = h.open(h.session(), 1)
		c.data = want
		h.same(d, c)
		if n := slices.IndexFunc(d.layers, func(l *layer) bool { return l.mark.Kind == logrec.TypeRollback }); n >= 0 {
			t.Fatal("the rollback is in the write buffer of an open disk")
		}
		h.ok(d.Close())
	}
	p := h.session()
	d = h.open(p, 1)
	h.useUp(d, c)
	h.ok(d.Close())
	if n := p.Space.Charged(); n != 0 {
		t.Fatalf("%d bytes stay charged", n)
	}
}
