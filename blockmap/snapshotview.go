package blockmap

import (
	"fmt"

	"plinth/internal/id"
)

// View is a map as one of its snapshots shows it. It pins nothing, and is cheap
// to keep. Its methods return ErrNoSnapshot once a Sweep has dropped the
// snapshot, and the errors of the map's methods. All may be called at once.
type View struct {
	m     *Map
	mark  mark
	trims trims
}

// At returns a view of a snapshot. Errors: ErrNoSnapshot, ErrClosed, ErrFailed
// and those of Objects.
func (m *Map) At(s id.Snapshot) (*View, error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	defer m.calls.leave()
	m.shown.RLock()
	marks := m.marks
	m.shown.RUnlock()
	at, ok := marks.find(s)
	if !ok {
		return nil, fmt.Errorf("view snapshot %d: %w", s, ErrNoSnapshot)
	}
	// A trim that is gone by now hides nothing from the snapshot any more, and
	// one that goes later may stay in the index.
	rows, err := readTrims(m.db)
	if err != nil {
		return nil, fmt.Errorf("view snapshot %d: %w", s, err)
	}
	return &View{m, marks[at], shownTrims(marks[at].view, rows)}, nil
}

// ID returns the snapshot's.
func (v *View) ID() id.Snapshot { return v.mark.id }

// Bytes returns the size of the disk when the snapshot was taken.
func (v *View) Bytes() int64 { return v.mark.bytes }

// LookupRange is Map.LookupRange of the snapshot.
func (v *View) LookupRange(first id.LBA, out []Entry) error {
	if err := v.m.begin(); err != nil {
		return err
	}
	defer v.m.calls.leave()
	if first >= LBAMax || uint64(len(out)) > uint64(LBAMax-first) {
		return fmt.Errorf("%w: a look-up of %d entries from LBA %d", ErrInvalid, len(out), first)
	}
	clear(out)
	if len(out) == 0 {
		return nil
	}
	c, err := v.cursor(first, first+id.LBA(len(out)))
	if err == nil {
		err = c.fill(out)
	}
	if err != nil {
		return fmt.Errorf("look up LBA %d of snapshot %d: %w", first, v.mark.id, err)
	}
	return nil
}

// MappedRuns is Map.MappedRuns of the snapshot.
func (v *View) MappedRuns(first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error) {
	if err := v.m.begin(); err != nil {
		return 0, err
	}
	defer v.m.calls.leave()
	if first >= end || end > LBAMax {
		return 0, fmt.Errorf("%w: runs of LBA %d to %d", ErrInvalid, first, end)
	}
	var stopped id.LBA
	c, err := v.cursor(first, end)
	if err == nil {
		stopped, err = c.runs(rowsMax, each)
	}
	if err != nil {
		return 0, fmt.Errorf("runs from LBA %d of snapshot %d: %w", first, v.mark.id, err)
	}
	return stopped, nil
}

// Changes calls each for the runs of LBAs in [first, end), in order, whose
// content is another in v than in since: another fingerprint, data instead of
// zeros or zeros instead of data. since is another snapshot of the same map.
// rowsMax, for each of the two, and the result are those of MappedRuns.
func (v *View) Changes(since *View, first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error) {
	if err := v.m.begin(); err != nil {
		return 0, err
	}
	defer v.m.calls.leave()
	if first >= end || end > LBAMax || since.m != v.m {
		return 0, fmt.Errorf("%w: changes of LBA %d to %d", ErrInvalid, first, end)
	}
	var stopped id.LBA
	old, err := since.cursor(first, end)
	if err == nil {
		var now *cursor
		if now, err = v.cursor(first, end); err == nil {
			stopped, err = changes(old, now, rowsMax, each)
		} else {
			old.close()
		}
	}
	if err != nil {
		return 0, fmt.Errorf("changes from LBA %d of snapshot %d since %d: %w", first, v.mark.id, since.mark.id, err)
	}
	return stopped, nil
}

// cursor returns one over [first, end). The caller closes it.
func (v *View) cursor(first, end id.LBA) (*cursor, error) {
	c := newCursor(first, end)
	if err := c.open(v.m.db, v.mark.view, v.trims); err != nil {
		return nil, err
	}
	// What only this snapshot shows is deleted after gone is set, so that the
	// cursor has it if gone is not.
	if v.mark.gone.Load() {
		c.close()
		return nil, ErrNoSnapshot
	}
	return c, nil
}
