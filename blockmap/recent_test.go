package blockmap

import (
	"math/rand/v2"
	"testing"

	"plinth/internal/id"
)

// TestRecent: what is remembered is what the map shows, whatever changes it, and what
// shares a place is told apart, of one map and of two.
func TestRecent(t *testing.T) {
	cache := NewCache(64<<10, 64)
	defer cache.Close()
	far := id.LBA(len(cache.entries.runs)) * runLBAs
	if far < 64 || cache.entries.bytes() > 16<<10 {
		t.Fatalf("%d runs of %d bytes", len(cache.entries.runs), cache.entries.bytes())
	}
	store := newStore()
	open := func() *Map {
		opts := testOptions(t, store)
		opts.Cache = cache
		return mustCreate(t, opts)
	}
	m := open()
	apply := func(m *Map, b Batch) {
		t.Helper()
		if err := m.Apply(&b, nil); err != nil {
			t.Fatal(err)
		}
	}
	known := func(m *Map, lba id.LBA) bool {
		_, ok := m.recent.get(lba, make([]Entry, 1))
		return ok
	}
	look := func(m *Map, first id.LBA, want ...Entry) {
		t.Helper()
		for range 2 { // the second time it is known
			out := make([]Entry, len(want))
			out[0] = entryOf(99)
			if err := m.LookupRange(first, out); err != nil {
				t.Fatal(err)
			}
			for i := range out {
				if out[i] != want[i] {
					t.Errorf("LBA %d: %v, not %v", first+id.LBA(i), out[i], want[i])
				}
			}
		}
		if _, ok := m.recent.get(first, make([]Entry, len(want))); !ok && !m.holes.show(first, len(want)) {
			t.Errorf("%d entries from LBA %d are not known", len(want), first)
		}
	}
	update := func(lba id.LBA, n uint64) Update { return Update{lba, entryOf(n)} }
	none := Entry{}

	apply(m, Batch{Updates: []Update{update(5, 1), update(5+far, 2), update(9, 3)}, Mark: Mark{Snapshot: 1}})
	if known(m, 5) || !known(m, 5+far) {
		t.Error("two runs have one place")
	}
	look(m, 5, entryOf(1), none, none, none, entryOf(3))
	look(m, 5+far, entryOf(2))
	apply(m, Batch{Gen: 1, Updates: []Update{update(9, 4), {LBA: 5}, {6, Entry{Fingerprint: entryOf(1).Fingerprint}}}})
	look(m, 4, none, none, none, none, none, entryOf(4))
	patched := entryOf(4)
	from := patched.Ref
	patched.Ref = entryOf(7).Ref
	apply(m, Batch{Gen: 1, Patches: []Patch{{LBA: 9, Gen: 1, From: from, To: patched.Ref}}})
	look(m, 9, patched)
	apply(m, Batch{Gen: 2, Trims: []Extent{{8, 10}}, Updates: []Update{update(8, 8)}})
	look(m, 8, entryOf(8), none, none)
	apply(m, Batch{Gen: 3, Trims: []Extent{{0, 2 * dropsMax}}})
	look(m, 8, none)
	apply(m, Batch{Gen: 4, Mark: Mark{Rollback: 1}})
	if known(m, 8) {
		t.Error("a rollback leaves entries")
	}
	look(m, 5, entryOf(1), none, none, none, entryOf(3))

	other := open()
	apply(other, Batch{Updates: []Update{update(5, 50)}})
	look(other, 5, entryOf(50), none, none, none, none)
	look(m, 5, entryOf(1), none, none, none, entryOf(3))
	m.recent.begin()
	if known(m, 5) {
		t.Error("an entry is got while a change is under way")
	}
	if err := m.LookupRange(0, nil); err != nil {
		t.Errorf("a look-up of nothing: %v", err)
	}
	m.recent.end(&Batch{Updates: []Update{update(5, 51)}}, true)
	look(m, 5, entryOf(1))
	look(m, LBAMax-1, none)
	apply(m, Batch{Gen: 5, Updates: []Update{update(LBAMax-1, 7)}})
	look(m, LBAMax-1, entryOf(7))
}

// TestRecentLate: what was read before a change is not learnt after it.
func TestRecentLate(t *testing.T) {
	r := newRecent(newEntries(1 << 16))
	get := func(first id.LBA, want ...uint64) bool {
		out := make([]Entry, len(want))
		_, ok := r.get(first, out)
		for i := range out {
			ok = ok && out[i] == entryOf(want[i])
		}
		return ok
	}
	three := []Entry{entryOf(6), entryOf(7), entryOf(8)}
	r.learn(0, 6, three)
	if !get(6, 6, 7, 8) || get(5, 5) || get(6, 6, 7, 8, 9) {
		t.Error("three entries are not what is known")
	}
	update := &Batch{Updates: []Update{{7, entryOf(70)}}}
	r.begin()
	during := r.changes.Load()
	r.end(update, false)
	for _, changes := range []uint64{0, during} {
		if r.learn(changes, 6, three); !get(6, 6, 70, 8) {
			t.Errorf("what was read at change %d is learnt at %d", changes, r.changes.Load())
		}
	}
	if r.learn(r.changes.Load(), 6, three); !get(6, 6, 7, 8) {
		t.Error("what was read since is not learnt")
	}
}

// BenchmarkRecent: entries that are known, one and 256.
func BenchmarkRecent(b *testing.B) {
	r := newRecent(newEntries(64 << 20))
	const lbas = 1 << 18
	for lba := range id.LBA(lbas) {
		r.learn(0, lba, []Entry{entryOf(uint64(lba))})
	}
	for name, n := range map[string]int{"one": 1, "256": 256} {
		b.Run(name, func(b *testing.B) {
			out := make([]Entry, n)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := r.get(id.LBA(rand.IntN(lbas-n)), out); !ok {
					b.Fatal("not known")
				}
			}
		})
	}
}
