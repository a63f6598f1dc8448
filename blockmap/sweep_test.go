package blockmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"plinth/internal/id"
)

// rowsOf describes all that is stored about LBA 0, oldest first, and the trims:
// "1 2z t4" is data of generation 1, zeros of 2 and a trim of 4.
func rowsOf(t *testing.T, m *Map) string {
	t.Helper()
	var out []string
	for _, r := range slices.Backward(allRows(t, m)[0]) {
		if r.entry.Zero() {
			out = append(out, fmt.Sprintf("%dz", r.gen))
		} else {
			out = append(out, fmt.Sprint(r.gen))
		}
	}
	rows, err := readTrims(m.db)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		out = append(out, fmt.Sprintf("t%d", r.gen))
	}
	return strings.Join(out, " ")
}

// play applies a script to a map: one word per batch, of the next generation
// unless it has an =. d: data at LBA 0; z: zeros there; t: a trim of it; e:
// nothing; then, after a letter, s5: a snapshot 5; r5: back to it.
func play(t *testing.T, m *Map, script string) {
	t.Helper()
	for _, word := range strings.Fields(script) {
		b := Batch{Gen: m.Gen() + 1}
		if word[0] == '=' {
			word = word[1:]
			b.Gen = m.Gen()
		}
		switch word[0] {
		case 'd':
			b.Updates = updates(0, 1, uint64(b.Gen))
		case 'z':
			b.Updates = []Update{{}}
		case 't':
			b.Trims = []Extent{{0, 1}}
		}
		n := id.Snapshot(0)
		if len(word) > 1 {
			if _, err := fmt.Sscan(word[2:], &n); err != nil {
				t.Fatal(err)
			}
			if word[1] == 's' {
				b.Mark.Snapshot = n
			} else {
				b.Mark.Rollback = n
			}
		}
		mustApply(t, m, &b, "")
	}
}

// sees returns the generations of the data that the map and the snapshots show
// at LBA 0, by rising snapshot, and - for zeros.
func sees(t *testing.T, m *Map) string {
	t.Helper()
	var out []string
	see := func(l looker) {
		t.Helper()
		e := make([]Entry, 1)
		if err := l.LookupRange(0, e); err != nil {
			t.Fatal(err)
		}
		for gen := range m.Gen() + 1 {
			if e[0] == entryOf(uint64(gen)) {
				out = append(out, fmt.Sprint(gen))
				return
			}
		}
		out = append(out, "-")
	}
	see(m)
	for _, row := range m.Snapshots() {
		v, err := m.At(row.ID)
		if err != nil {
			t.Fatal(err)
		}
		see(v)
	}
	return strings.Join(out, " ")
}

// TestSweepRules has the cases in which a simpler rule of what to keep fails.
func TestSweepRules(t *testing.T) {
	for _, c := range []struct {
		name, script string
		drop         id.Snapshot
		sees, rows   string
	}{
		{"nobody but the map", "d e d", 0, "3", "3"},
		{"data for a snapshot", "ds1 d", 0, "2 1", "1 2"},
		{"data for a snapshot that is dropped", "ds1 d", 1, "2", "2"},
		{"zeros over a snapshot's data", "ds1 z", 0, "- 1", "1 2z"},
		{"zeros over dropped data", "ds1 z e", 1, "-", ""},
		{"zeros of now over dropped data", "ds1 z", 1, "-", ""},
		// The data of 2 goes, which nobody sees. The zeros that it hid nothing
		// from must stay: they are not the first thing above the data of 1.
		{"zeros above what goes", "ds1 d z e", 0, "- 1", "1 3z"},
		{"zeros above zeros that nobody sees", "ds1 z z e", 0, "- 1", "1 3z"},
		{"zeros above zeros that a snapshot sees", "ds1 zs2 z e", 0, "- 1 -", "1 2z"},
		{"zeros above zeros of a dropped snapshot", "ds1 zs2 z e", 2, "- 1", "1 3z"},
		{"trims above a trim that a snapshot sees", "e e ds1 t es2 e e t e", 0, "- 3 -", "3 t4"},
		{"trims above a trim of a dropped snapshot", "e e ds1 t es2 e e t e", 2, "- 3", "3 t8"},
		{"a trim under data", "ds1 t d e", 0, "3 1", "1 3"},
		{"zeros above a trim", "ds1 t z e", 0, "- 1", "1 3z"},
		{"a trim of now", "ds1 t", 0, "- 1", "1 t2"},
		{"trim and zeros of one generation", "ds1 t =z e", 0, "- 1", "1 2z"},
		{"trim and data of one generation", "ds1 t =d e", 0, "2 1", "1 2"},
		{"back to a snapshot", "ds1 d er1", 0, "1 1", "1"},
		{"back, with a snapshot in the gap", "ds1 ds2 er1", 0, "1 1 2", "1 2"},
		{"back, with a snapshot of zeros in the gap", "ds1 zs2 er1", 0, "1 1 -", "1 2z"},
		// Only a trim is left in the gap, which the map must go on to skip.
		{"back, with a trimmed snapshot in the gap", "ds1 t es2 er1", 0, "1 1 -", "1 t2"},
		{"back, the gap's snapshot is dropped", "ds1 ds2 er1 e", 2, "1 1", "1"},
		{"back and on", "ds1 ds2 er1 ds3 e", 0, "4 1 2 4", "1 2 4"},
		{"back and on with zeros", "ds1 ds2 er1 zs3 e", 0, "- 1 2 -", "1 2 4z"},
		// The zeros of 4 hide the data of 1 from the map. In its view nothing of
		// the gap counts; in that of snapshot 2 the zeros are not.
		{"back and on with zeros, the first dropped", "ds1 ds2 er1 zs3 e", 1, "- 2 -", "2"},
		{"back to zeros", "es1 ds2 er1 e", 0, "- - 2", "2"},
		{"back twice", "ds1 d es2 er1 ds3 er2 e", 0, "2 1 2 5", "1 2 5"},
		{"back twice, trims", "ds1 t es2 er1 ts3 er2 e", 0, "- 1 - -", "1 t2 t5"},
		{"back twice, one dropped", "ds1 t es2 er1 ts3 er2 e", 3, "- 1 -", "1 t2"},
		{"before the first entry", "es1 es2 t z d zs3", 1, "- - -", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, attached := range []bool{false, true} {
				s := newStore()
				m := mustCreate(t, testOptions(t, s))
				play(t, m, c.script)
				if attached {
					m = mustAttach(t, mustCheckpoint(t, m).Manifest, testOptions(t, s))
				}
				for range 2 {
					sweepMap(t, m, c.drop)
					if got := sees(t, m); got != c.sees {
						t.Errorf("sees %q, want %q", got, c.sees)
					}
					if got := rowsOf(t, m); got != c.rows {
						t.Errorf("rows %q, want %q", got, c.rows)
					}
				}
			}
		})
	}
}

func sweepMap(t *testing.T, m *Map, drop ...id.Snapshot) *SweepReport {
	t.Helper()
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dropped := map[id.Snapshot]bool{}
	for _, d := range drop {
		dropped[d] = d != 0
	}
	report, err := s.Sweep(context.Background(), dropped, nil, func(*Version) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestZeroOverwrittenMeanwhile: a zero of the current generation that nobody
// needs may be overwritten while the sweep that found it is under way.
func TestZeroOverwrittenMeanwhile(t *testing.T) {
	m := mustCreate(t, testOptions(t, newStore()))
	play(t, m, "ds1 ds2 z")
	mustApply(t, m, &Batch{Gen: m.Gen(), Updates: updates(1, 1, 77)}, "")
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Sweep(context.Background(), map[id.Snapshot]bool{1: true, 2: true}, nil, func(v *Version) error {
		if v.LBA != 1 {
			return nil
		}
		return m.Apply(&Batch{Gen: m.Gen(), Updates: updates(0, 1, uint64(m.Gen()))}, nil)
	})
	if got := sees(t, m); err != nil || got != "3" {
		t.Errorf("sees %s: %v", got, err)
	}
}

// TestRollbackBeforeDrop: what only a snapshot sees must not go with it if the map
// was rolled back to it since it was looked at.
func TestRollbackBeforeDrop(t *testing.T) {
	m := mustCreate(t, testOptions(t, newStore()))
	play(t, m, "ds1 d")
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	play(t, m, "er1")
	_, err = s.Sweep(context.Background(), map[id.Snapshot]bool{1: true}, nil, func(*Version) error { return nil })
	if got := sees(t, m); err != nil || got != "1 1" {
		t.Errorf("sees %s: %v", got, err)
	}
	sweepMap(t, m, 1)
	if got := sees(t, m) + "; " + rowsOf(t, m); got != "1; 1" {
		t.Errorf("after the next sweep: %s", got)
	}
}

// TestMarkErrors: marks that make no sense change nothing.
func TestMarkErrors(t *testing.T) {
	store := newStore()
	m := mustCreate(t, testOptions(t, store))
	play(t, m, "ds1 d")
	gen := m.Gen()
	for name, b := range map[string]Batch{
		"the same again":         {Gen: gen, Mark: Mark{Snapshot: 1}},
		"no such snapshot":       {Gen: gen + 1, Mark: Mark{Rollback: 7}},
		"both":                   {Gen: gen + 1, Mark: Mark{Snapshot: 2, Rollback: 1}},
		"rollback with updates":  {Gen: gen + 1, Mark: Mark{Rollback: 1}, Updates: updates(0, 1, 0)},
		"rollback with trims":    {Gen: gen + 1, Mark: Mark{Rollback: 1}, Trims: []Extent{{0, 1}}},
		"rollback without a gen": {Gen: gen, Mark: Mark{Rollback: 1}},
		"bytes without snapshot": {Gen: gen, Mark: Mark{Bytes: 5}},
		"negative bytes":         {Gen: gen, Mark: Mark{Snapshot: 2, Bytes: -5}},
		"a marked generation":    {Gen: 1, Updates: updates(0, 1, 0)},
		"the last generation":    {Gen: genEnd - 1, Mark: Mark{Snapshot: 2}},
		"no generation":          {Gen: genEnd},
		"patches and updates":    {Gen: gen, Updates: updates(0, 1, 0), Patches: []Patch{{0, 1, entryOf(1).Ref, entryOf(2).Ref}}},
		"patches of another gen": {Gen: gen + 1, Patches: []Patch{{0, 1, entryOf(1).Ref, entryOf(2).Ref}}},
		"patch to nowhere":       {Gen: gen, Patches: []Patch{{LBA: 0, Gen: 1, From: entryOf(1).Ref}}},
		"patch of a far LBA":     {Gen: gen, Patches: []Patch{{LBAMax, 1, entryOf(1).Ref, entryOf(2).Ref}}},
		"too many patches":       {Gen: gen, Patches: make([]Patch, PatchesMax+1)},
	} {
		if err := m.Apply(&b, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustApply(t, m, &Batch{Gen: gen, Mark: Mark{Snapshot: 2}}, "")
	if err := m.Apply(&Batch{Gen: gen}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a batch of a marked generation: %v", err)
	}
	if _, err := m.At(7); !errors.Is(err, ErrNoSnapshot) || m.HasSnapshot(7) {
		t.Errorf("a view of no snapshot: %v", err)
	}
	if err := m.CheckRollback(7); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("a rollback to no snapshot: %v", err)
	}
	if got := sees(t, m); got != "2 1 2" {
		t.Errorf("sees %s", got)
	}
	c := mustCheckpoint(t, m)
	if _, err := AttachClone(context.Background(), c.Manifest, 7, nil, testOptions(t, store)); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("a clone of no snapshot: %v", err)
	}
	if _, err := AttachClone(context.Background(), c.Manifest, 1, make([]byte, StateBytesMax+1), testOptions(t, store)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a clone with a long state: %v", err)
	}
}

// TestCloneReadsOneSnapshot: beginning a clone does not read what describes
// thousands of other snapshots.
func TestCloneReadsOneSnapshot(t *testing.T) {
	const snapshots = 5000 // in some 50 blocks
	store := newStore()
	m := mustCreate(t, testOptions(t, store))
	for s := range id.Snapshot(snapshots) {
		mustApply(t, m, &Batch{Gen: m.NextGen(false), Mark: Mark{Snapshot: s + 1}}, "")
	}
	c := mustCheckpoint(t, m)
	reads := func(attach func() (*Map, error)) int {
		t.Helper()
		before := store.reads
		a, err := attach()
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, a)
		return store.reads - before
	}
	all := reads(func() (*Map, error) { return Attach(t.Context(), c.Manifest, testOptions(t, store)) })
	one := reads(func() (*Map, error) {
		return AttachClone(t.Context(), c.Manifest, snapshots/2, nil, testOptions(t, store))
	})
	if one > all/2 {
		t.Errorf("a clone takes %d reads, the map %d", one, all)
	}
	t.Logf("%d reads for a clone, %d for the map", one, all)
}
