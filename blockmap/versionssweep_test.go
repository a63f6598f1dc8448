package blockmap

import (
	"context"
	"errors"
	"maps"
	"testing"

	"plinth/internal/id"
)

var errStop = errors.New("stop")

// sweep drops some snapshots and sweeps, while other things happen.
func (p *past) sweep() {
	ctx := context.Background()
	s, err := p.m.Snapshot()
	if err != nil {
		p.fatalf("snapshot: %v", err)
	}
	defer s.Close()
	rollbacks, sweeps := p.rollbacks, p.sweeps
	late := p.rand.IntN(4) == 0
	for late && p.rand.IntN(3) > 0 {
		p.beside()
	}
	drop := map[id.Snapshot]bool{p.id + 1: true}
	for id := range p.now.snapshots {
		drop[id] = p.rand.IntN(3) == 0
	}
	deletes := p.sweeps == sweeps
	if deletes {
		p.sweeps++
		if p.rollbacks == rollbacks {
			for id := range drop {
				if _, ok := s.marks.find(id); ok && drop[id] {
					delete(p.now.snapshots, id)
				}
			}
		}
	}
	exact := deletes && !late
	seen := map[Patch]Version{}
	each := func(v *Version) error {
		seen[Patch{LBA: v.LBA, Gen: v.Gen}] = *v
		switch n := p.rand.IntN(40); {
		case n < 2 && !p.busy:
			exact = false
			return errStop
		case n < 6 && !p.busy:
			exact = false
			p.busy = true
			p.beside()
			p.compare()
			p.busy = false
		}
		return nil
	}
	report, err := s.Sweep(ctx, drop, func(ctx context.Context, rows int) error {
		if p.rand.IntN(60) == 0 {
			exact = false
			return errStop
		}
		return ctx.Err()
	}, each)
	if errors.Is(err, errStop) {
		return
	}
	if err != nil {
		p.fatalf("sweep: %v", err)
	}
	if exact {
		p.exact(s, seen, report)
	}
}

// beside is a step that may come during a sweep, or between its snapshot and it.
func (p *past) beside() {
	switch p.rand.IntN(8) {
	case 0, 1:
		p.apply(false)
	case 2, 3:
		p.apply(true)
	case 4:
		p.rollback()
	case 5:
		p.patch()
	case 6:
		p.save()
	case 7:
		if !p.busy {
			p.sweep()
		}
	}
}

// exact compares what an undisturbed sweep said and left with the model.
func (p *past) exact(s *Snapshot, seen map[Patch]Version, report *SweepReport) {
	p.t.Helper()
	want := map[Patch]Version{}
	uses := map[id.Snapshot]Use{}
	for who, see := range p.now.viewers() {
		uses[who] = Use{Mapped: int64(len(see))}
		for lba, at := range see {
			key := Patch{LBA: lba, Gen: at.gen}
			v := want[key]
			v.LBA, v.Gen, v.Entry = lba, at.gen, at.entry
			v.Viewers++
			v.Head = v.Head || who == 0
			if v.Only = who; v.Viewers > 1 {
				v.Only = 0
			}
			want[key] = v
		}
	}
	for _, v := range want {
		if v.Only != 0 {
			u := uses[v.Only]
			u.OnlyMapped++
			u.OnlyBytes += int64(v.Entry.Ref.Location.Len())
			uses[v.Only] = u
		}
	}
	head := uses[0].Mapped
	delete(uses, 0)
	if !maps.Equal(seen, want) {
		p.fatalf("a sweep saw %v, want %v", seen, want)
	}
	if report.Kept != int64(len(want)) || report.Head != head || !maps.Equal(report.Snapshots, uses) {
		p.fatalf("a sweep reports %+v, want %d entries, %d mapped, %v", *report, len(want), head, uses)
	}
	n, hiders := 0, 0
	for lba, rows := range allRows(p.t, p.m) {
		for _, r := range rows {
			if _, ok := want[Patch{LBA: lba, Gen: r.gen}]; ok {
				n++
			} else if r.entry.Zero() {
				hiders++
			} else {
				p.fatalf("LBA %d of generation %d is left", lba, r.gen)
			}
		}
	}
	if n != len(want) {
		p.fatalf("%d entries are left, want %d", n, len(want))
	}
	if len(p.now.snapshots) == 0 && (hiders > 0 || len(p.m.trims) > 0 || !p.m.head.view.whole()) {
		p.fatalf("%d zeros and %d trims hide nothing, view %v", hiders, len(p.m.trims), p.m.head.view)
	}
}

// allRows returns the rows of entries by LBA.
func allRows(t *testing.T, m *Map) map[id.LBA][]row {
	t.Helper()
	it, err := m.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	out := map[id.LBA][]row{}
	for valid := it.First(); valid; valid = it.Next() {
		lba, gen, err := parsePointKey(it.Key())
		if err != nil {
			break // the other rows come after
		}
		e, err := parseEntry(it.Value())
		if err != nil {
			t.Fatal(err)
		}
		out[lba] = append(out[lba], row{gen: gen, entry: e})
	}
	return out
}
