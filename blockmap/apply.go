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
	switch {
	case b.Gen < m.head.gen, len(b.Trims) > 0 && b.Gen == m.head.gen, !m.head.view.contains(b.Gen):
		return fmt.Errorf("%w: generation %d after %d, %d trims", ErrInvalid, b.Gen, m.head.gen, len(b.Trims))
	}

	next := m.head
	next.gen = b.Gen
	next.state = slices.Clone(state)
	next.updates += uint64(len(b.Updates))
	if len(b.Updates) > 0 {
		next.floor = min(next.floor, b.Gen)
	}
	batch := m.db.NewBatchWithSize(len(b.Updates)*(keyBytes+entryBytes+4) + len(b.Trims)*trimBytes + 256)
	defer batch.Close()
	shown := m.trims // only Apply and Collect change it, under this lock
	for _, t := range b.Trims {
		row := trim{t, b.Gen}
		shown = shown.insert(row)
		if err := batch.Set(trimKey(row), nil, nil); err != nil {
			return err
		}
	}
	if err := m.putUpdates(batch, b); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if err := batch.Set(headKey[:], next.encode(), nil); err != nil {
		return err
	}

	// A reader must not see the rows without the trims, but need not wait where
	// there are none.
	if len(b.Trims) > 0 {
		m.shown.Lock()
		defer m.shown.Unlock()
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if len(b.Trims) > 0 {
		m.show(next.view, shown)
	}
	m.install(next)
	m.since.Add(uint64(len(b.Updates)))
	return m.cause()
}

// putUpdates adds the updates of b to a batch. Zeros are a row only where an
// older generation would show without it.
func (m *Map) putUpdates(batch *pebble.Batch, b *Batch) error {
	var versions *pebble.Iterator
	for i := range b.Updates {
		u := &b.Updates[i]
		key := makePointKey(u.LBA, b.Gen)
		if !u.Zero() {
			op := batch.SetDeferred(keyBytes, entryBytes)
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
		if err := putZero(batch, key, older); err != nil {
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
