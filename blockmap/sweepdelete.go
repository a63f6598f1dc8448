package blockmap

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// delete deletes a row that nobody needs, with the next commit.
func (w *sweep) delete(lba id.LBA, r *row) error {
	if !w.deletes {
		return nil
	}
	key := makePointKey(lba, r.gen)
	if r.gen == w.s.gen {
		w.zeros = append(w.zeros, key) // the map sees all that is data
	} else {
		if err := w.batch.Delete(key[:], nil); err != nil {
			return err
		}
		w.report.Deleted++
	}
	if int(w.batch.Count())+len(w.zeros) >= w.m.sweepRows {
		return w.commit()
	}
	return nil
}

// commit makes the deletions so far. Applying is held up, because a zero of the
// current generation may have been overwritten since, and a patch must find what
// it patches.
func (w *sweep) commit() error {
	if !w.deletes {
		return nil
	}
	w.m.apply.Lock()
	defer w.m.apply.Unlock()
	for _, key := range w.zeros {
		value, closer, err := w.m.db.Get(key[:])
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		isZero := len(value) == 0
		if err := closer.Close(); err != nil {
			return err
		}
		if isZero {
			if err := w.batch.Delete(key[:], nil); err != nil {
				return err
			}
			w.report.Deleted++
		}
	}
	w.zeros = w.zeros[:0]
	err := w.batch.Commit(pebble.NoSync)
	w.batch.Close()
	w.batch = w.m.db.NewBatch()
	return err
}

// finish removes the trims of the snapshot that hide nothing any more, of rows,
// and closes those gaps of views in which nothing is left.
func (w *sweep) finish(rows []trim) error {
	m := w.m
	m.apply.Lock()
	defer m.apply.Unlock()
	next := m.step()
	next.batch = m.db.NewBatch()
	defer next.batch.Close()
	next.shows = true
	for _, t := range rows {
		if w.cover.needs(t) {
			w.people.survives(t.gen)
			continue
		}
		if err := next.batch.Delete(trimKey(t), nil); err != nil {
			return err
		}
		w.report.Deleted++
	}
	next.head.floor = max(next.head.floor, w.floor)
	if err := w.closeGaps(next); err != nil {
		return err
	}
	left, err := readTrims(m.db)
	if err != nil {
		return err
	}
	shown := left[:0]
	for _, t := range left {
		if next.head.view.contains(t.gen) && (t.gen > w.s.gen || w.cover.needs(t)) {
			shown = append(shown, t)
		}
	}
	next.trims = buildTrims(shown)
	return m.take(next)
}

// closeGaps makes a step without those gaps of the snapshot's views in which
// nothing is left. They are older than the snapshot, so nothing comes into them
// any more, in whichever view they are by now.
func (w *sweep) closeGaps(next *step) error {
	next.head.view = w.people.closed(next.head.view)
	var changed marks
	for i, k := range next.marks {
		v := w.people.closed(k.view)
		if len(v) == len(k.view) && v[0].From == k.view[0].From {
			continue
		}
		if changed == nil {
			changed = append(changed, next.marks...)
		}
		changed[i].view = v
		key := markKey(k.id)
		if err := next.batch.Set(key[:], changed[i].encode(), nil); err != nil {
			return err
		}
	}
	if changed != nil {
		next.marks = changed
	}
	return nil
}
