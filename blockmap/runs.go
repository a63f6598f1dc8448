package blockmap

import (
	"fmt"

	"plinth/internal/id"
)

// runRowsMin is the least limit of MappedRuns with which every call gets on: an
// LBA takes two rows, or a seek and a row, at most.
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
	c, err := m.cursor(nil, first, end)
	if err != nil {
		return 0, fmt.Errorf("runs from LBA %d: %w", first, err)
	}
	c.rows = max(rowsMax, runRowsMin)
	var run Extent
	for c.next() {
		if c.lba != run.End {
			if run.First < run.End {
				each(run)
			}
			run.First = c.lba
		}
		run.End = c.lba + 1
	}
	stopped := c.stopped
	if err := c.close(); err != nil {
		return 0, fmt.Errorf("runs from LBA %d: %w", first, err)
	}
	if run.First < run.End {
		each(run)
	}
	return stopped, nil
}
