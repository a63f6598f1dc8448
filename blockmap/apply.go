package blockmap

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// Apply adds a batch to the map and replaces the owner's state, in one step:
// either both are seen, by readers as by checkpoints, or neither. One caller at
// a time, in the order of the disk's history. It keeps neither b nor state, and
// may wait for flushes of earlier batches. Nothing is durable at return.
//
// Errors: ErrInvalid, ErrClosed, ErrFailed; errors of reading the map, when
// zeros have to hide an older generation, and then nothing was applied.
func (m *Map) Apply(b *Batch, state []byte) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.calls.leave()
	if err := b.validate(); err != nil {
		return err
	}
	if len(state) > StateBytesMax {
		return fmt.Errorf("%w: a state of %d bytes", ErrInvalid, len(state))
	}
	m.apply.Lock()
	defer m.apply.Unlock()
	if !m.follows(b) {
		return fmt.Errorf("%w: generation %d after %d (%d marked), %d trims, %d patches, mark %+v",
			ErrInvalid, b.Gen, m.head.gen, m.unmarked, len(b.Trims), len(b.Patches), b.Mark)
	}
	s := m.step()
	s.head.gen = b.Gen
	s.head.state = slices.Clone(state)
	s.head.updates += uint64(len(b.Updates))
	if len(b.Updates) > 0 {
		s.head.floor = min(s.head.floor, b.Gen)
	}
	s.batch = m.db.NewBatchWithSize((len(b.Updates)+len(b.Patches))*(keyBytes+entryBytes+4) + len(b.Trims)*trimBytes + 256)
	defer s.batch.Close()
	for _, put := range []func(*step, *Batch) error{m.putTrims, m.putUpdates, m.putPatches, m.putMark} {
		if err := put(s, b); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
	}
	m.recent.begin()
	err := m.take(s)
	m.recent.end(b, err != nil)
	m.holes.changed(b)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	m.since.Add(uint64(len(b.Updates) + len(b.Patches)))
	return m.cause()
}

// follows reports whether b's generation may come now. m.apply is held.
func (m *Map) follows(b *Batch) bool {
	switch {
	case len(b.Patches) > 0:
		return b.Gen == m.head.gen
	case b.Gen == m.head.gen && (len(b.Trims) > 0 || b.Mark.Rollback != 0):
		return false
	}
	return b.Gen >= m.head.gen && b.Gen >= m.unmarked && b.Gen < genEnd
}

// step is what the map becomes with a batch of rows, all at once.
type step struct {
	batch     *pebble.Batch
	head      head
	trims     trims
	marks     marks
	unmarked  id.Gen
	rollbacks uint64
	shows     bool // other trims, another view or other snapshots
}

// step returns one that changes nothing. m.apply is held until it is taken.
func (m *Map) step() *step {
	return &step{head: m.head, trims: m.trims, marks: m.marks, unmarked: m.unmarked, rollbacks: m.rollbacks}
}

// take commits a step's batch with its head. m.apply is held.
func (m *Map) take(s *step) error {
	if err := s.batch.Set(headKey[:], s.head.encode(), nil); err != nil {
		return err
	}
	// A reader must not see the rows without the trims, but need not wait where
	// there are none.
	if s.shows {
		m.shown.Lock()
		defer m.shown.Unlock()
	}
	if err := s.batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	if s.shows {
		m.show(s.head.view, s.trims, s.marks)
	}
	m.unmarked, m.rollbacks = s.unmarked, s.rollbacks
	m.install(s.head)
	return nil
}

func (m *Map) putTrims(s *step, b *Batch) error {
	for _, t := range b.Trims {
		row := trim{t, b.Gen}
		s.trims = s.trims.insert(row)
		s.shows = true
		if err := s.batch.Set(trimKey(row), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// putUpdates adds the updates of b to a step. Zeros are a row only where an
// older generation would show without it.
func (m *Map) putUpdates(s *step, b *Batch) error {
	var versions *pebble.Iterator
	for i := range b.Updates {
		u := &b.Updates[i]
		key := makePointKey(u.LBA, b.Gen)
		if !u.Zero() {
			op := s.batch.SetDeferred(keyBytes, entryBytes)
			copy(op.Key, key[:])
			putEntry((*[entryBytes]byte)(op.Value), &u.Entry)
			if err := op.Finish(); err != nil {
				return err
			}
			continue
		}
		older := false
		if m.head.floor < b.Gen {
			if versions == nil {
				it, err := m.db.NewIter(nil)
				if err != nil {
					return err
				}
				defer it.Close()
				versions = it
			}
			below := makePointKey(u.LBA, b.Gen-1)
			if older = versions.SeekPrefixGE(below[:]); !older && versions.Error() != nil {
				return versions.Error()
			}
		}
		if err := putZero(s.batch, key, older); err != nil {
			return err
		}
	}
	return nil
}

func putZero(batch *pebble.Batch, key pointKey, older bool) error {
	if older {
		return batch.Set(key[:], nil, nil)
	}
	return batch.Delete(key[:], nil)
}

// State returns a copy of the state that the last Apply, or the checkpoint that
// was attached, came with.
func (m *Map) State() []byte {
	m.apply.Lock()
	defer m.apply.Unlock()
	return slices.Clone(m.head.state)
}

// Gen returns the highest generation applied.
func (m *Map) Gen() id.Gen {
	m.apply.Lock()
	defer m.apply.Unlock()
	return m.head.gen
}
