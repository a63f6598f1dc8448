package blockmap

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// sweepRows is how many rows one batch of a sweep deletes at most, and after
// how many that it has read pace is called.
const sweepRows = 4096

// Version is an entry that somebody sees: the map itself, now, or a snapshot.
type Version struct {
	LBA     id.LBA
	Gen     id.Gen
	Entry   Entry
	Head    bool        // the map itself sees it
	Viewers int         // how many see it, the map itself too: at least one
	Only    id.Snapshot // the snapshot that alone sees it, else 0
}

// Use is what a snapshot sees.
type Use struct {
	Mapped     int64 // LBAs that are not zeros
	OnlyMapped int64 // of them, those whose entry nobody else sees
	OnlyBytes  int64 // the sealed length of those
}

// SweepReport says what a sweep found.
type SweepReport struct {
	Kept      int64 // entries that somebody sees
	Deleted   int64 // rows of entries, zeros and trims
	Head      int64 // LBAs that the map itself shows
	Snapshots map[id.Snapshot]Use
}

// Sweep drops those snapshots whose value in drop is true, calls each for every
// entry that somebody else sees, by LBA and rising generation, and deletes all
// others, and the trims and zeros that hide nothing any more. The map stays in
// use. pace, unless it is nil, is called after every few thousand rows with
// their number; it may wait, and nothing waits for it but other sweeps. The
// Version is the callee's for the call.
//
// An interrupted sweep leaves a map that reads the same; the next one, of a new
// Snapshot, finds the rest. Only the first Sweep of a Snapshot, and only if no
// other sweep began since it was taken, drops and deletes, and it drops nothing
// if the map was rolled back since. If not, each is called for what the
// snapshots in drop see, too.
//
// Errors: of ctx, pace, each and Objects, ErrInvalid for a closed Snapshot,
// ErrClosed, ErrFailed, ErrCorrupt.
func (s *Snapshot) Sweep(ctx context.Context, drop map[id.Snapshot]bool,
	pace func(ctx context.Context, rows int) error, each func(*Version) error) (*SweepReport, error) {
	s.m.sweeping.Lock()
	defer s.m.sweeping.Unlock()
	w := &sweep{m: s.m, s: s, pace: pace, each: each}
	return w.run(ctx, func() (err error) {
		drop, err = w.begin(drop)
		w.people = newViewers(s.view, s.marks.without(drop))
		return err
	})
}

// ScanKept calls each as Sweep does, and changes nothing.
func (s *Snapshot) ScanKept(ctx context.Context, drop map[id.Snapshot]bool, each func(*Version) error) (*SweepReport, error) {
	w := &sweep{m: s.m, s: s, each: each}
	return w.run(ctx, func() error {
		w.people = newViewers(s.view, s.marks.without(drop))
		return nil
	})
}

// Collect sweeps without dropping anything, as of now.
func (m *Map) Collect(ctx context.Context) error {
	s, err := m.Snapshot()
	if err != nil {
		return err
	}
	_, err = s.Sweep(ctx, nil, nil, func(*Version) error { return nil })
	return errors.Join(err, s.Close())
}

// sweep is one walk over all versions.
//
// It deletes rows whose generation is below the snapshot's: nothing is written
// under those any more but patches, so what the snapshot says of them is final.
// Only zeros of the snapshot's own generation are looked at again. Whoever
// comes to see the map after the snapshot was taken, sees of those generations
// what the map itself or one of the snapshots saw that are not dropped.
//
// At each moment all viewers see what they saw before. An LBA's rows go from
// the oldest to the newest, so what hides goes after all that it hid; trims go
// last. A snapshot's row goes before all else.
type sweep struct {
	m      *Map
	s      *Snapshot
	pace   func(ctx context.Context, rows int) error
	each   func(*Version) error
	people viewers
	cover  *cover

	deletes bool
	floor   id.Gen // of the entries that stay
	batch   *pebble.Batch
	zeros   []pointKey // of the snapshot's generation, which nobody needs
	report  SweepReport
}

func (w *sweep) run(ctx context.Context, begin func() error) (*SweepReport, error) {
	m := w.m
	if err := m.begin(); err != nil {
		return nil, err
	}
	defer m.calls.leave()
	if !w.s.isOpen() {
		return nil, fmt.Errorf("%w: a sweep of a closed snapshot", ErrInvalid)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.fs.ctx, cancel)()
	err := w.whole(ctx, begin)
	if w.batch != nil {
		w.batch.Close()
	}
	if e := m.interrupted(ctx); err != nil && e != nil {
		err = e
	}
	if err == nil {
		err = m.cause()
	}
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	w.report.Head, w.report.Snapshots = w.people.uses()
	return &w.report, nil
}

func (w *sweep) whole(ctx context.Context, begin func() error) error {
	if err := begin(); err != nil {
		return err
	}
	rows, err := readTrims(w.s.db)
	if err != nil {
		return err
	}
	w.cover = newCover(rows, w.people.ends())
	w.floor = w.s.gen
	w.batch = w.m.db.NewBatch()
	if err := w.entries(ctx); err != nil || !w.deletes {
		return err
	}
	return w.finish(rows)
}

// begin decides whether the sweep may delete, and drops snapshots. It returns
// those that see nothing from here on.
//
// A second sweep's reasons may be those of a map that the first has changed: a
// zero is needless beside another one that is older, which the other sweep
// found needless beside this one. And what only a dropped snapshot saw must
// not be given up if the map was rolled back to it.
func (w *sweep) begin(drop map[id.Snapshot]bool) (map[id.Snapshot]bool, error) {
	m := w.m
	m.apply.Lock()
	defer m.apply.Unlock()
	if m.sweeps != w.s.sweeps {
		return nil, nil
	}
	m.sweeps++
	w.deletes = true
	if m.rollbacks != w.s.rollbacks {
		return nil, nil
	}
	next := m.step()
	next.batch = m.db.NewBatch()
	defer next.batch.Close()
	dropped := map[id.Snapshot]bool{}
	for _, k := range w.s.marks {
		if !drop[k.id] {
			continue
		}
		dropped[k.id] = true
		key := markKey(k.id)
		if err := next.batch.Delete(key[:], nil); err != nil {
			return nil, err
		}
	}
	if len(dropped) == 0 {
		return nil, nil
	}
	next.marks, next.shows = next.marks.without(dropped), true
	if err := m.take(next); err != nil {
		return nil, err
	}
	for _, k := range w.s.marks {
		if dropped[k.id] {
			k.gone.Store(true)
		}
	}
	return dropped, nil
}

// entries goes over all rows of entries.
func (w *sweep) entries(ctx context.Context) error {
	lower, upper := firstKey(0), firstKey(LBAMax)
	it, err := w.s.db.NewIter(&pebble.IterOptions{LowerBound: lower[:], UpperBound: upper[:]})
	if err != nil {
		return err
	}
	defer it.Close()
	var lba id.LBA
	var rows []row // of lba
	for n, valid := 1, it.First(); valid; n, valid = n+1, it.Next() {
		if n%ctxPeriod == 0 {
			if err := w.m.interrupted(ctx); err != nil {
				return err
			}
		}
		if n%w.m.sweepRows == 0 && w.pace != nil {
			if err := w.pace(ctx, w.m.sweepRows); err != nil {
				return err
			}
		}
		at, gen, err := parsePointKey(it.Key())
		if err != nil {
			return err
		}
		if at != lba && len(rows) > 0 {
			if err := w.endLBA(lba, rows); err != nil {
				return err
			}
			rows = rows[:0]
		}
		lba = at
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		r := row{gen: gen}
		if r.entry, err = parseEntry(value); err != nil {
			return fmt.Errorf("LBA %d: %w", at, err)
		}
		rows = append(rows, r)
	}
	if err := it.Error(); err != nil {
		return err
	}
	if len(rows) > 0 {
		if err := w.endLBA(lba, rows); err != nil {
			return err
		}
	}
	return w.commit()
}

// endLBA decides about the rows of an LBA, which come by falling generation.
func (w *sweep) endLBA(lba id.LBA, rows []row) error {
	slices.Reverse(rows)
	w.people.judge(rows, w.cover.at(lba))
	for i := range rows {
		r := &rows[i]
		if !r.kept {
			if err := w.delete(lba, r); err != nil {
				return err
			}
			continue
		}
		w.people.survives(r.gen)
		if r.entry.Zero() {
			continue
		}
		w.report.Kept++
		w.floor = min(w.floor, r.gen)
		v := Version{LBA: lba, Gen: r.gen, Entry: r.entry, Head: r.head, Viewers: r.viewers}
		if r.viewers == 1 && !r.head {
			v.Only = r.one
		}
		if err := w.each(&v); err != nil {
			return err
		}
	}
	return nil
}
