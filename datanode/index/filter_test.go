package index

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

// TestFilter crowds a small filter: with what is gone, so that it is filled anew,
// and then with what is there, so that it is given up. What is there is found
// all the time.
func TestFilter(t *testing.T) {
	h := newHouse(t, vfs.NewMem())
	h.filling.Wait()
	h.Index.recentMax = 100
	h.Index.filter = newFilter(filterShare * 1024) // crowded by 2,048 rows
	h.Index.startFilter()
	const slots, kept = 50, 10
	contents := func(n int) (c []int) {
		for i := range slots {
			c = append(c, n*slots+i)
		}
		return c
	}
	n, seq := 0, id.Seq(0)
	add := func(free bool) {
		t.Helper()
		n++
		h.publish(pack(uint64(n), contents(n)))
		if old := n - kept; free && old > 0 {
			seq++
			h.setLists(1, 1, seq, list(uint64(old)))
			h.setLists(2, 1, seq, list(uint64(old)))
			h.reclaimAll()
			for _, hit := range h.lookup(2, 1, seq, contents(old)...) {
				if hit.Found {
					t.Fatalf("segment %d is gone, and found", old)
				}
			}
		}
		seq++
		for _, s := range []int{n, max(1, n-kept+1)} {
			for _, hit := range h.lookup(2, 1, seq, contents(s)...) {
				if !hit.Found || hit.Ref.Segment.Number() != uint64(s) {
					t.Fatalf("segment %d: %+v", s, hit)
				}
			}
		}
	}
	for range 60 {
		add(true)
	}
	h.filling.Wait()
	if rows := h.filter.rows.Load(); !h.filter.ready.Load() || rows > 2048 {
		t.Fatalf("ready %t, with %d rows", h.filter.ready.Load(), rows)
	}
	passed := 0
	for i := range 1000 {
		if f := fp(1<<40 + i); !h.filter.excludes(&f) {
			passed++
		}
	}
	if passed > 400 { // of so crowded a filter a quarter is due
		t.Fatalf("%d of 1000 pass", passed)
	}
	for range 60 {
		add(false)
	}
	h.filling.Wait()
	if h.filter.ready.Load() {
		t.Fatal("still ready")
	}
}
