package blockmap

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/internal/id"
)

// compare compares all that can be read with the model.
func (p *past) compare() {
	p.t.Helper()
	rows := p.m.Snapshots()
	ids := make([]id.Snapshot, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
		if row.Bytes != int64(row.ID)*100 {
			p.fatalf("snapshot %d of %d bytes", row.ID, row.Bytes)
		}
	}
	if want := slices.Sorted(maps.Keys(p.now.snapshots)); !slices.Equal(ids, want) {
		p.fatalf("snapshots %v, want %v", ids, want)
	}
	p.look("the map", p.now.head, p.m)
	for s, see := range p.now.snapshots {
		v, err := p.m.At(s)
		if err != nil {
			p.fatalf("view snapshot %d: %v", s, err)
		}
		p.look(fmt.Sprint("snapshot ", s), see, v)
	}
	p.views = slices.DeleteFunc(p.views, func(v *View) bool {
		see, ok := p.now.snapshots[v.ID()]
		if !ok {
			if err := v.LookupRange(0, make([]Entry, 1)); !errors.Is(err, ErrNoSnapshot) {
				p.fatalf("a view of snapshot %d, which was dropped: %v", v.ID(), err)
			}
			return true
		}
		p.look(fmt.Sprintf("an old view of snapshot %d", v.ID()), see, v)
		return false
	})
	p.changes()
}

type looker interface {
	LookupRange(first id.LBA, out []Entry) error
	MappedRuns(first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error)
}

func (p *past) look(who string, want picture, l looker) {
	p.t.Helper()
	out := make([]Entry, 2*p.space)
	if err := l.LookupRange(0, out); err != nil {
		p.fatalf("%s: %v", who, err)
	}
	for lba, e := range out {
		if e != want[id.LBA(lba)].entry {
			p.fatalf("%s has %v at LBA %d, want %v", who, e, lba, want[id.LBA(lba)])
		}
	}
	lba := p.rand.IntN(len(out))
	one := make([]Entry, 1)
	if err := l.LookupRange(id.LBA(lba), one); err != nil || one[0] != out[lba] {
		p.fatalf("%s has %v at LBA %d alone, want %v: %v", who, one[0], lba, out[lba], err)
	}
	mapped := map[id.LBA]bool{}
	p.walk(func(at, end id.LBA, each func(Extent)) (id.LBA, error) { return l.MappedRuns(at, end, 1, each) },
		func(lba id.LBA) { mapped[lba] = true })
	for lba := range 2 * p.space {
		if _, ok := want[lba]; ok != mapped[lba] {
			p.fatalf("%s: LBA %d is mapped: %v, want %v", who, lba, mapped[lba], ok)
		}
	}
}

// walk tells the LBAs of the runs that calls of runs give, until the end.
func (p *past) walk(runs func(at, end id.LBA, each func(Extent)) (id.LBA, error), tell func(id.LBA)) {
	p.t.Helper()
	end := 2 * p.space
	for at := id.LBA(0); at < end; {
		last := at
		stopped, err := runs(at, end, func(e Extent) {
			if e.First < last || e.First >= e.End || e.End > end {
				p.fatalf("run %v after %d", e, last)
			}
			for last = e.First; last < e.End; last++ {
				tell(last)
			}
		})
		if err != nil || stopped <= at || last > stopped {
			p.fatalf("runs from %d: stopped at %d after %d: %v", at, stopped, last, err)
		}
		at = stopped
	}
}

// changes compares what changed between two snapshots.
func (p *past) changes() {
	p.t.Helper()
	a, b := p.some(), p.some()
	if a == 0 {
		return
	}
	since, err := p.m.At(a)
	if err != nil {
		p.fatalf("%v", err)
	}
	now, err := p.m.At(b)
	if err != nil {
		p.fatalf("%v", err)
	}
	changed := map[id.LBA]bool{}
	p.walk(func(at, end id.LBA, each func(Extent)) (id.LBA, error) { return now.Changes(since, at, end, 1, each) },
		func(lba id.LBA) { changed[lba] = true })
	for lba := range 2 * p.space {
		x, y := p.now.snapshots[a][lba].entry, p.now.snapshots[b][lba].entry
		if want := x.Fingerprint != y.Fingerprint; want != changed[lba] {
			p.fatalf("LBA %d changed from snapshot %d to %d: %v, want %v", lba, a, b, changed[lba], want)
		}
	}
}
