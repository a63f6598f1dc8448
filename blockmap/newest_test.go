package blockmap

import (
	"testing"

	"plinth/internal/id"
)

// TestNewest: what is known of the newest rows is what the map shows, whatever
// changes it, and LBAs that share a slot are told apart.
func TestNewest(t *testing.T) {
	const far = 1 << newestBits
	m := mustCreate(t, testOptions(t, newStore()))
	apply := func(b Batch) {
		t.Helper()
		if err := m.Apply(&b, nil); err != nil {
			t.Fatal(err)
		}
	}
	look := func(lba id.LBA, want Entry) {
		t.Helper()
		for range 2 { // the second time it is known
			var out [1]Entry
			if err := m.LookupRange(lba, out[:]); err != nil || out[0] != want {
				t.Errorf("LBA %d: %v, %v, not %v", lba, out[0], err, want)
			}
		}
	}
	known := func(lba id.LBA, want id.Gen, wanted bool) {
		t.Helper()
		if gen, ok := m.newest.get(lba); ok != wanted || gen != want {
			t.Errorf("LBA %d is known to be of generation %d: %v", lba, gen, ok)
		}
	}
	update := func(lba id.LBA, n uint64) Update { return Update{lba, entryOf(n)} }

	apply(Batch{Updates: []Update{update(5, 1), update(5+far, 2), update(6, 3)}, Mark: Mark{Snapshot: 1}})
	apply(Batch{Gen: 1, Updates: []Update{update(6, 4)}})
	look(5, entryOf(1))
	known(5, 0, true)
	look(5+far, entryOf(2))
	known(5+far, 0, true)
	known(5, 0, false) // gave way
	look(6, entryOf(4))
	known(6, 1, true)
	apply(Batch{Gen: 1, Updates: []Update{update(5, 5), {LBA: 6}}})
	known(5, 1, true) // it is the newest now, and not asked for
	known(6, 0, false)
	look(6, Entry{})
	look(5, entryOf(5))
	apply(Batch{Gen: 2, Trims: []Extent{{0, far}}})
	known(5, 0, false)
	look(5, Entry{})
	known(5, 0, false)
	apply(Batch{Gen: 3, Mark: Mark{Rollback: 1}})
	look(5, entryOf(1))
	look(6, entryOf(3))
	known(6, 0, true)

	const many = 1 << newestGenBits // more than a slot has room for
	apply(Batch{Gen: many, Updates: []Update{update(5, 6)}})
	known(5, 0, false)
	look(5, entryOf(6))
	look(LBAMax-1, Entry{})
	apply(Batch{Gen: many + 1, Updates: []Update{update(LBAMax-1, 7)}})
	look(LBAMax-1, entryOf(7))
}
