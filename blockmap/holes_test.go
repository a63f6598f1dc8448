package blockmap

import (
	"testing"

	"plinth/internal/id"
)

// TestHoles: what is known to be empty is, whatever changes the map, and is known
// again after an attach.
func TestHoles(t *testing.T) {
	const region = 1 << regionBits
	s := newStore()
	m := mustCreate(t, testOptions(t, s))
	apply := func(b Batch) {
		t.Helper()
		mustApply(t, m, &b, "")
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
	known := func(lba id.LBA, n int, want bool) {
		t.Helper()
		if got := m.holes.show(lba, n); got != want {
			t.Errorf("%d LBAs from %d are known to be empty: %v", n, lba, got)
		}
	}
	update := func(lba id.LBA, n uint64) Update { return Update{lba, entryOf(n)} }

	known(5, 1, false)
	look(5, Entry{})
	known(5, 2*region, true) // and what follows
	apply(Batch{Updates: []Update{update(3*region+7, 1)}, Mark: Mark{Snapshot: 1}})
	known(3*region, 1, false)
	look(3*region+7, entryOf(1))
	known(2*region, region, true)
	known(2*region, region+1, false)
	look(3*region+6, Entry{})
	known(3*region+6, 1, false) // something is in its region
	apply(Batch{Gen: 1, Updates: []Update{{LBA: 9}, {LBA: 3*region + 7}}})
	known(9, 1, true)

	apply(Batch{Gen: 2, Trims: []Extent{{1, 4 * region}}})
	known(3*region, region, true)
	look(3*region+7, Entry{})
	apply(Batch{Gen: 3, Updates: []Update{update(region, 2), {LBA: region + 1}}, Trims: []Extent{{0, 9 * region}}})
	known(region, 1, false)
	look(region, entryOf(2))
	look(region+1, Entry{})
	known(8*region, region, true)
	apply(Batch{Gen: 4, Mark: Mark{Rollback: 1}})
	known(0, 1, false)
	look(3*region+7, entryOf(1))
	look(region, Entry{})
	known(region, 2*region, true)
	known(region, 2*region+1, false)

	first, changes, ok := m.holes.ask(3*region + 7)
	if !ok {
		t.Error("a region that was not asked is not to be")
	}
	apply(Batch{Gen: 5, Updates: []Update{update(4*region, 3)}})
	m.holes.learn(changes, first, 5*region)
	known(4*region, 1, false) // it is of before
	if _, _, ok := m.holes.ask(3*region + 7); ok {
		t.Error("a region is asked twice")
	}

	look(LBAMax-1, Entry{})
	known(LBAMax-1, 1, false)
	apply(Batch{Gen: 6, Trims: []Extent{{0, LBAMax}}})
	known(0, region<<regionsBits, true)
	known(0, region<<regionsBits+1, false)
	apply(Batch{Gen: 6, Updates: []Update{update(LBAMax-1, 4), update(region<<regionsBits-1, 5)}})
	look(LBAMax-1, entryOf(4))
	look(region<<regionsBits-1, entryOf(5))

	m = mustAttach(t, mustCheckpoint(t, m).Manifest, testOptions(t, s))
	known(0, 1, false)
	look(0, Entry{})
	known(0, region, true)
	look(region<<regionsBits-1, entryOf(5))
	look(region<<regionsBits-2, Entry{})
	known(region<<regionsBits-2, 1, false)
}

func TestRegionSet(t *testing.T) {
	r := newRand(1)
	s, want := new(regionSet), [300]bool{}
	for range 2000 {
		first, in := r.IntN(len(want)), r.IntN(2) == 0
		end := first + r.IntN(len(want)-first+1)
		s.set(id.LBA(first), id.LBA(end), in)
		for i := first; i < end; i++ {
			want[i] = in
		}
		for i, in := range want {
			if s.has(id.LBA(i)) != in {
				t.Fatalf("after %d to %d: %v: region %d", first, end, in, i)
			}
		}
	}
	s.set(1<<regionsBits-3, 1<<40, true)
	if !s.has(1<<regionsBits-1) || s.has(1<<regionsBits) {
		t.Error("at the end")
	}
}
