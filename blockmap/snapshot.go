package blockmap

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// ctxPeriod is after how many rows a scan looks whether it should end.
const ctxPeriod = 1024

// Scan calls fn for each mapped entry in order of LBA, as of one instant. It
// ends with fn's error, or that of ctx.
func (m *Map) Scan(ctx context.Context, fn func(lba id.LBA, e Entry) error) error {
	s, err := m.Snapshot()
	if err != nil {
		return err
	}
	return errors.Join(s.Scan(ctx, fn), s.Close())
}

// Snapshot is the map as of one instant. Objects that it may read are among the
// map's Objects as long as it is open.
type Snapshot struct {
	m                 *Map
	db                *pebble.Snapshot
	view              view
	trims             trims
	marks             marks
	gen               id.Gen
	rollbacks, sweeps uint64 // before it
}

// Snapshot takes a snapshot. The caller closes it before long: it keeps what is
// overwritten meanwhile.
func (m *Map) Snapshot() (*Snapshot, error) {
	if err := m.begin(); err != nil {
		return nil, err
	}
	defer m.calls.leave()
	m.apply.Lock() // for the generation
	defer m.apply.Unlock()
	return m.snapshotLocked(), nil
}

// snapshotLocked is Snapshot for a caller that holds m.apply.
func (m *Map) snapshotLocked() *Snapshot {
	s := &Snapshot{
		m: m, db: m.db.NewSnapshot(), view: m.view, trims: m.trims, marks: m.marks,
		gen: m.head.gen, rollbacks: m.rollbacks, sweeps: m.sweeps,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshots[s] = struct{}{}
	return s
}

// Gen returns the highest generation applied when the snapshot was taken.
func (s *Snapshot) Gen() id.Gen { return s.gen }

// Scan calls fn for each mapped entry in order of LBA. It ends with fn's error,
// or that of ctx.
func (s *Snapshot) Scan(ctx context.Context, fn func(lba id.LBA, e Entry) error) error {
	if err := s.m.begin(); err != nil {
		return err
	}
	defer s.m.calls.leave()
	if !s.isOpen() {
		return fmt.Errorf("%w: a scan of a closed snapshot", ErrInvalid)
	}
	c := newCursor(0, LBAMax)
	err := c.open(s.db, s.view, s.trims)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	for n := 0; c.next(); n++ {
		if n%ctxPeriod == 0 {
			if err = s.m.interrupted(ctx); err != nil {
				break
			}
		}
		if err = fn(c.lba, c.entry); err != nil {
			break
		}
	}
	if e := c.close(); err == nil && e != nil {
		err = fmt.Errorf("scan: %w", e)
	}
	return err
}

// interrupted returns an error when a long call should end.
func (m *Map) interrupted(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.failed:
		return m.cause()
	case <-m.closing:
		return ErrClosed
	default:
		return nil
	}
}

// Close gives the snapshot up. No Scan of it may be under way. It may be called
// again, and after the map's Close.
func (s *Snapshot) Close() error {
	if !s.m.calls.enter() {
		return nil // the map's Close releases it
	}
	defer s.m.calls.leave()
	return s.release()
}

func (s *Snapshot) isOpen() bool {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	_, ok := s.m.snapshots[s]
	return ok
}

func (s *Snapshot) release() error {
	s.m.mu.Lock()
	_, ok := s.m.snapshots[s]
	delete(s.m.snapshots, s)
	s.m.mu.Unlock()
	if !ok {
		return nil
	}
	return s.db.Close()
}

func (m *Map) openSnapshots() []*Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Snapshot
	for s := range m.snapshots {
		out = append(out, s)
	}
	return out
}
