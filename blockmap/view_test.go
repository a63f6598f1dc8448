package blockmap

import (
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// history is all batches that a map got, to be read through any view.
type history []Batch

// visible returns what a view shows of the history: the newest version of an
// LBA that the view contains, unless a newer trim that it contains hides it.
func (h history) visible(v view) map[id.LBA]Entry {
	type version struct {
		gen   id.Gen
		entry Entry
	}
	newest := map[id.LBA]version{}
	for _, b := range h {
		if !v.contains(b.Gen) {
			continue
		}
		for lba, e := range newest {
			for _, t := range b.Trims {
				if lba >= t.First && lba < t.End && e.gen < b.Gen {
					delete(newest, lba)
				}
			}
		}
		for _, u := range b.Updates {
			newest[u.LBA] = version{b.Gen, u.Entry}
		}
	}
	out := map[id.LBA]Entry{}
	for lba, e := range newest {
		if !e.entry.Zero() {
			out[lba] = e.entry
		}
	}
	return out
}

// TestViews attaches one map under views with several intervals, as a clone or
// a rollback would, and compares look-ups and scans, before and after Collect,
// with a model of all versions.
func TestViews(t *testing.T) {
	const space, gens = 64, 60
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("seed %d", seed)
			r := newRand(seed)
			s := newStore()
			m := mustCreate(t, testOptions(t, s))
			var h history
			for gen := range id.Gen(gens) {
				b := Batch{Gen: gen}
				if gen > 0 && r.IntN(6) == 0 {
					first := id.LBA(r.IntN(space))
					b.Trims = []Extent{{first, first + 1 + id.LBA(r.IntN(space))}}
				}
				for range r.IntN(space) {
					u := Update{LBA: id.LBA(r.IntN(space)), Entry: entryOf(r.Uint64N(1 << 30))}
					if r.IntN(5) == 0 {
						u.Entry = Entry{}
					}
					b.Updates = append(b.Updates, u)
				}
				mustApply(t, m, &b, "")
				h = append(h, b)
			}
			for range 4 {
				v := view{}
				for at := id.Gen(r.IntN(8)); at < gens-1; {
					end := min(gens-1, at+1+id.Gen(r.IntN(12)))
					v = append(v, interval{at, end})
					at = end + 1 + id.Gen(r.IntN(6))
				}
				if n := len(v); n > 0 && v[n-1].End >= gens {
					v = v[:n-1]
				}
				v = append(v, interval{gens, genEnd})
				tryView(t, m, s, v, h)
			}
		})
	}
}

// tryView writes a head with the view, starting above all generations, takes a
// checkpoint, and attaches it.
func tryView(t *testing.T, m *Map, s *store, v view, h history) {
	t.Helper()
	if err := v.validate(); err != nil {
		t.Fatal(err)
	}
	changed := m.head
	changed.view, changed.gen = v, 60
	m.head = changed
	if err := m.db.Set(headKey[:], changed.encode(), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	a := mustAttach(t, mustCheckpoint(t, m).Manifest, testOptions(t, s))
	want := h.visible(v)
	for _, when := range []string{"attached", "collected"} {
		out := make([]Entry, 80)
		if err := a.LookupRange(0, out); err != nil {
			t.Fatal(err)
		}
		for i, e := range out {
			if e != want[id.LBA(i)] {
				t.Errorf("%s under %v: LBA %d is %v, want %v", when, v, i, e, want[id.LBA(i)])
			}
			one := make([]Entry, 1)
			if err := a.LookupRange(id.LBA(i), one); err != nil || one[0] != e {
				t.Errorf("%s: LBA %d alone is %v, want %v: %v", when, i, one[0], e, err)
			}
		}
		n := 0
		if err := a.Scan(context.Background(), func(id.LBA, Entry) error { n++; return nil }); err != nil || n != len(want) {
			t.Errorf("%s: a scan of %d entries, want %d: %v", when, n, len(want), err)
		}
		if err := a.Collect(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if n := countRows(t, a); n != len(want)+1 || !a.head.view.whole() || len(a.trims) != 0 {
		t.Errorf("%d rows for %d entries, view %v, %d trims after Collect", n, len(want), a.head.view, len(a.trims))
	}
}

// countRows counts all rows of a map's database.
func countRows(t *testing.T, m *Map) int {
	t.Helper()
	it, err := m.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for valid := it.First(); valid; valid = it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestViewFloor(t *testing.T) {
	v := view{{2, 4}, {6, 7}, {9, genEnd}}
	for gen, want := range map[id.Gen]int{0: -1, 1: -1, 2: 2, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6, 8: 6, 9: 9, 100: 100} {
		if got, ok := v.floor(gen); ok != (want >= 0) || ok && got != id.Gen(want) {
			t.Errorf("floor of %d is %d, %v, want %d", gen, got, ok, want)
		}
	}
	for _, bad := range []view{nil, {{3, 3}, {9, genEnd}}, {{0, 5}, {5, genEnd}}, {{4, 8}, {6, genEnd}}} {
		if bad.validate() == nil {
			t.Errorf("view %v is accepted", bad)
		}
	}
}

// TestTrims compares the index, built both ways, with an array.
func TestTrims(t *testing.T) {
	const space = 50
	for seed := range uint64(200) {
		r := newRand(seed)
		var index trims
		var rows []trim
		var want [space]id.Gen
		for gen := range id.Gen(1 + r.IntN(30)) {
			first := id.LBA(r.IntN(space))
			row := trim{Extent{first, min(space, first+1+id.LBA(r.IntN(20)))}, gen/2 + 1}
			index = index.insert(row)
			rows = append(rows, row)
			for lba := row.First; lba < row.End; lba++ {
				want[lba] = row.gen
			}
		}
		r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		built := buildTrims(rows)
		for lba, gen := range want {
			if a, b := index.gen(id.LBA(lba)), built.gen(id.LBA(lba)); a != gen || b != gen {
				t.Fatalf("seed %d: LBA %d has %d inserted, %d built, want %d", seed, lba, a, b, gen)
			}
		}
		for _, x := range []trims{index, built} {
			for i := range x {
				if x[i].First >= x[i].End || i > 0 && x[i-1].End > x[i].First {
					t.Fatalf("seed %d: index %v", seed, x)
				}
			}
		}
	}
}

// TestOverlappingTrimsStayCheap: 10,000 trims over the same LBAs leave a short
// index, and 10,000 apart are found by halves.
func TestOverlappingTrimsStayCheap(t *testing.T) {
	m := mustCreate(t, testOptions(t, newStore()))
	mustApply(t, m, &Batch{Updates: updates(0, 1000, 0)}, "")
	for i := range id.Gen(10_000) {
		mustApply(t, m, &Batch{Gen: i + 1, Trims: []Extent{{500 - id.LBA(i%400), 600 + id.LBA(i%400)}}}, "")
	}
	if n := len(m.trims); n > 1000 {
		t.Errorf("%d trims in the index", n)
	}
	out := make([]Entry, 1000)
	if err := m.LookupRange(0, out); err != nil {
		t.Fatal(err)
	}
	for i, e := range out {
		if e.Zero() != (i >= 101 && i < 999) {
			t.Fatalf("LBA %d is %v", i, e)
		}
	}
	if err := m.Collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, m); n != 1000-898+1 {
		t.Errorf("%d rows after Collect", n)
	}
}
