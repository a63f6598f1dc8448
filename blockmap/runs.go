package blockmap

import (
	"errors"
	"fmt"

	"plinth/internal/id"
)

// runRowsMin is the least limit of MappedRuns: less is not worth a call.
const runRowsMin = 16

// MappedRuns calls each for the runs of mapped LBAs in [first, end), in order
// and as of one instant. It looks at no more than rowsMax rows, or 16, and
// returns where it stopped: above first, and end when all is told. Errors are
// LookupRange's.
func (m *Map) MappedRuns(first, end id.LBA, rowsMax int, each func(Extent)) (id.LBA, error) {
	if err := m.begin(); err != nil {
		return 0, err
	}
	defer m.calls.leave()
	if first >= end || end > LBAMax {
		return 0, fmt.Errorf("%w: runs of LBA %d to %d", ErrInvalid, first, end)
	}
	var stopped id.LBA
	c, err := m.cursor(first, end)
	if err == nil {
		stopped, err = c.runs(rowsMax, each)
	}
	if err != nil {
		return 0, fmt.Errorf("runs from LBA %d: %w", first, err)
	}
	return stopped, nil
}

// runs calls each for the runs of entries, and closes the cursor.
func (c *cursor) runs(rowsMax int, each func(Extent)) (stopped id.LBA, err error) {
	c.rows = max(rowsMax, runRowsMin)
	var run Extent
	for c.next() {
		run = run.grow(c.lba, each)
	}
	if err := c.close(); err != nil {
		return 0, err
	}
	if run.First < run.End {
		each(run)
	}
	return c.stopped, nil
}

// grow returns the run with lba, which is behind it. If there is a gap between,
// each is called for the run, and another begins.
func (e Extent) grow(lba id.LBA, each func(Extent)) Extent {
	if lba != e.End || e.First == e.End {
		if e.First < e.End {
			each(e)
		}
		e.First = lba
	}
	e.End = lba + 1
	return e
}

// changes calls each for the runs of LBAs at which two cursors over one range
// differ in content, and closes both.
func changes(old, now *cursor, rowsMax int, each func(Extent)) (stopped id.LBA, err error) {
	old.rows, now.rows = max(rowsMax, runRowsMin), max(rowsMax, runRowsMin)
	var run Extent
	a, b := old.next(), now.next()
	for {
		// What one of them has not reached before it stopped is not known.
		stopped = min(old.reached(a), now.reached(b))
		lba := stopped
		if !a && lba == old.stopped || !b && lba == now.stopped {
			break
		}
		inOld, inNow := a && old.lba == lba, b && now.lba == lba
		if !inOld || !inNow || old.entry.Fingerprint != now.entry.Fingerprint {
			run = run.grow(lba, each)
		}
		if inOld {
			a = old.next()
		}
		if inNow {
			b = now.next()
		}
	}
	if err := errors.Join(old.close(), now.close()); err != nil {
		return 0, err
	}
	if run.First < run.End {
		each(run)
	}
	return stopped, nil
}

// reached returns the LBA of an entry, or where the cursor stopped.
func (c *cursor) reached(entry bool) id.LBA {
	if entry {
		return c.lba
	}
	return c.stopped
}
