package disk

import (
	"context"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/internal/id"
)

// walkRowsMax bounds the rows of the map that one walk looks at: some tens of
// milliseconds.
const walkRowsMax = 64 << 10

// run is a run of chunks, of data or of zeros.
type run struct {
	extent
	data bool
}

// runs are sorted and disjoint.
type runs []run

// overlay returns under with the chunks of over as over has them.
func (under runs) overlay(over runs) runs {
	if len(over) == 0 {
		return under
	}
	out := make(runs, 0, len(under)+len(over))
	covered := int64(0) // by what of over is in out
	for _, u := range under {
		u.first = max(u.first, covered)
		for u.first < u.end {
			if len(over) == 0 || over[0].first >= u.end {
				out = append(out, u)
				break
			}
			o := over[0]
			over = over[1:]
			if u.first < o.first {
				out = append(out, run{extent{u.first, o.first}, u.data})
			}
			out = append(out, o)
			covered = o.end
			u.first = max(u.first, covered)
		}
	}
	return append(out, over...)
}

// Extents calls each for consecutive runs of bytes from off on, until they cover
// n bytes or each returns false: data says that the run takes space, otherwise
// it reads as zeros. Runs change at chunks' borders. It may end early, after the
// first run, when the map has much to say. Of changes under way at the same time
// it may see any, of those that have returned it sees all. Errors are ReadAt's.
func (d *Disk) Extents(ctx context.Context, off, n int64, each func(n int64, data bool) bool) error {
	if err := d.enter(off, n); err != nil {
		return err
	}
	defer d.leave()
	if n == 0 {
		return nil
	}
	size := int64(d.size)
	// The buffer before the map: what is destaged meanwhile is in both.
	over, m, done, err := d.buffered(off/size, (off+n-1)/size+1)
	if err != nil {
		return err
	}
	defer done()
	return d.tellRuns(ctx, m.MappedRuns, over, off, n, each)
}

// walker tells runs of chunks as blockmap.Map.MappedRuns does.
type walker func(first, end id.LBA, rowsMax int, each func(blockmap.Extent)) (id.LBA, error)

// tellRuns calls each for the bytes of [off, off+n): whether they are in what walk
// tells, under over.
func (d *Disk) tellRuns(ctx context.Context, walk walker, over runs, off, n int64, each func(n int64, data bool) bool) error {
	if n == 0 {
		return nil
	}
	size := int64(d.size)
	first, end := off/size, (off+n-1)/size+1
	var under runs
	stopped, err := walk(id.LBA(first), id.LBA(end), walkRowsMax, func(e blockmap.Extent) {
		under = append(under, run{extent{int64(e.First), int64(e.End)}, true})
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.cfg.Name, err)
	}
	if err := d.mayReply(); err != nil {
		return err
	}
	tell(under.overlay(over), off, min(off+n, int64(stopped)*size), size, each)
	return nil
}

// tell calls each for the bytes of [off, end): chunks in no run are zeros.
func tell(rs runs, off, end, size int64, each func(n int64, data bool) bool) {
	for _, r := range rs {
		from, to := max(r.first*size, off), min(r.end*size, end)
		if from >= to {
			continue
		}
		if off < from && !each(from-off, false) || !each(to-from, r.data) {
			return
		}
		off = to
	}
	if off < end {
		each(end-off, false)
	}
}

// buffered returns what the write buffer says of the chunks [first, end), and
// what lies below it, to be used until done is called.
func (d *Disk) buffered(first, end int64) (over runs, m mapReader, done func(), err error) {
	d.mu.RLock()
	if d.err != nil {
		defer d.mu.RUnlock()
		return nil, nil, nil, d.err
	}
	type part struct {
		lbas  []int64
		zeros extents
	}
	parts := make([]part, len(d.layers))
	for i, l := range d.layers {
		parts[i] = part{l.entriesIn(first, end), l.zeros.cut(first, end)}
	}
	m, done = d.holdBelow()
	d.mu.RUnlock()
	for _, p := range parts {
		slices.Sort(p.lbas)
		var zeros, data runs
		for _, z := range p.zeros {
			zeros = append(zeros, run{z, false})
		}
		for _, lba := range p.lbas {
			if k := len(data) - 1; k >= 0 && data[k].end == lba {
				data[k].end++
			} else {
				data = append(data, run{extent{lba, lba + 1}, true})
			}
		}
		over = over.overlay(zeros).overlay(data)
	}
	return over, m, done, nil
}

// entriesIn returns the chunks of [first, end) that have an entry, in any order.
func (l *layer) entriesIn(first, end int64) []int64 {
	var out []int64
	if end-first < int64(len(l.entries)) {
		for lba := first; lba < end; lba++ {
			if l.entries[id.LBA(lba)] != nil {
				out = append(out, lba)
			}
		}
		return out
	}
	for lba := range l.entries {
		if first <= int64(lba) && int64(lba) < end {
			out = append(out, int64(lba))
		}
	}
	return out
}

// cut returns a copy of the set's part in [first, end).
func (s extents) cut(first, end int64) extents {
	var out extents
	for i := s.find(first); i < len(s) && s[i].first < end; i++ {
		out = append(out, extent{max(s[i].first, first), min(s[i].end, end)})
	}
	return out
}
