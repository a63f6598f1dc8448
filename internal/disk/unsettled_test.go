package disk

import (
	"bytes"
	"context"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// TestUnsettled lets a pass run between the mark and the registry's answer: the
// snapshot stays, and goes when the answer is no.
func TestUnsettled(t *testing.T) {
	h, _, c := bentHouse(t)
	d := h.open(h.session(), 1)
	h.fill(d, c, 10)
	_, err := MarkAll(t.Context(), []MarkRequest{{d, 5}})
	h.ok(err)
	want := bytes.Clone(c.data)
	none := PassOptions{Exists: func(context.Context) (map[id.Snapshot]bool, error) { return nil, nil }}
	for range 2 {
		h.fill(d, c, 10)
		h.ok(h.round(d))
		_, err = d.Pass(t.Context(), none)
		h.ok(err)
		h.ok(h.reclaim(t.Context()))
		h.shows(d, 5, want)
	}
	d.Settled(5)
	_, err = d.Pass(t.Context(), none)
	h.ok(err)
	_, err = d.At(t.Context(), 5)
	h.fails("forgotten", err, ErrNoSnapshot)
	h.same(d, c)
	d.pool.MayReply = func() error { return datanode.ErrFenced } // what is not told does not exist
	_, err = MarkAll(t.Context(), []MarkRequest{{d, 7}})
	h.fails("a snapshot without a lease", err, datanode.ErrFenced)
	d.pool.MayReply = func() error { return nil }
	h.ok(h.round(d))
	_, err = d.Pass(t.Context(), none)
	h.ok(err)
	_, err = d.At(t.Context(), 7)
	h.fails("never known", err, ErrNoSnapshot)
	none.Exists = func(context.Context) (map[id.Snapshot]bool, error) { return nil, datanode.ErrSpindle }
	h.snap(6, d)
	h.ok(h.round(d))
	_, err = d.Pass(t.Context(), none)
	h.fails("a pass without a registry", err, datanode.ErrSpindle)
	h.shows(d, 6, c.data)
}
