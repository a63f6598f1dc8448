package blockmap

import (
	"fmt"

	"plinth/internal/id"
)

// rollbackIntervalsMax bounds the view that a rollback makes, far below
// intervalsMax: sweeps close the gaps in which no snapshot needs anything.
const rollbackIntervalsMax = 256

// CheckRollback returns nil if a next batch may roll the map back to a snapshot.
// Errors: ErrNoSnapshot, ErrInvalid where the view would have too many intervals,
// ErrClosed, ErrFailed.
func (m *Map) CheckRollback(s id.Snapshot) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.calls.leave()
	m.apply.Lock()
	defer m.apply.Unlock()
	at, ok := m.marks.find(s)
	if !ok {
		return fmt.Errorf("roll back to snapshot %d: %w", s, ErrNoSnapshot)
	}
	if n := len(m.marks[at].view.resume(m.head.gen + 1)); n > rollbackIntervalsMax {
		return fmt.Errorf("%w: a rollback to a view of %d intervals: remove snapshots in between", ErrInvalid, n)
	}
	return nil
}
