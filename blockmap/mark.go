package blockmap

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// ErrNoSnapshot is returned for a snapshot that the map has not got, or that it
// has dropped meanwhile.
var ErrNoSnapshot = fmt.Errorf("%w: no such snapshot", ErrInvalid)

// Mark ends a version of the map, if one of the ids is set: never both.
type Mark struct {
	// Snapshot makes the map, with this batch, a snapshot of that id, which the
	// map has not got. Batches that follow are of higher generations (NextGen).
	Snapshot id.Snapshot
	// Rollback makes the map show what that snapshot shows. The batch has no
	// trims and no updates, and a generation above all earlier ones.
	Rollback id.Snapshot
	// Bytes is the size of the disk at a snapshot; a rollback has none.
	Bytes int64
}

func (k *Mark) validate(b *Batch) error {
	switch {
	case k.Snapshot != 0 && k.Rollback != 0,
		k.Snapshot == 0 && k.Bytes != 0, k.Bytes < 0,
		k.Rollback != 0 && len(b.Trims)+len(b.Updates) > 0:
		return fmt.Errorf("%w: mark %+v with %d trims and %d updates", ErrInvalid, *k, len(b.Trims), len(b.Updates))
	}
	return nil
}

// SnapshotRow describes a snapshot in a map.
type SnapshotRow struct {
	ID    id.Snapshot
	Bytes int64  // of the disk
	Gen   id.Gen // the highest that it shows
}

// NextGen returns the least generation that a next batch may have, with or
// without trims.
func (m *Map) NextGen(trims bool) id.Gen {
	m.apply.Lock()
	defer m.apply.Unlock()
	if trims {
		return m.head.gen + 1
	}
	return max(m.head.gen, m.unmarked)
}

// Snapshots returns the snapshots in the map, by rising id.
func (m *Map) Snapshots() []SnapshotRow {
	m.shown.RLock()
	marks := m.marks
	m.shown.RUnlock()
	return marks.rows()
}

// HasSnapshot reports whether the map has a snapshot.
func (m *Map) HasSnapshot(s id.Snapshot) bool {
	m.shown.RLock()
	marks := m.marks
	m.shown.RUnlock()
	_, ok := marks.find(s)
	return ok
}

const (
	markPrefix  = math.MaxUint64 - 2
	markVersion = 1
	markBytes   = 16 // of a row's value, before the intervals
)

// mark is a snapshot in a map.
type mark struct {
	id    id.Snapshot
	bytes int64
	view  view         // has an end: the generation after the snapshot's
	gone  *atomic.Bool // set before anything is deleted that only it shows
}

// marks is the snapshots of a map, by rising id. A value is immutable.
type marks []mark

func (x marks) find(s id.Snapshot) (int, bool) {
	return slices.BinarySearchFunc(x, s, func(k mark, s id.Snapshot) int { return cmp.Compare(k.id, s) })
}

// insert returns the marks with k, which they have not got. The newest value may
// share its array with older ones, which are shorter.
func (x marks) insert(k mark) marks {
	if n := len(x); n == 0 || x[n-1].id < k.id {
		return append(x, k)
	}
	at, _ := x.find(k.id)
	return slices.Concat(x[:at], marks{k}, x[at:])
}

// without returns the marks that are not to be dropped.
func (x marks) without(drop map[id.Snapshot]bool) marks {
	if len(drop) == 0 {
		return x
	}
	return slices.DeleteFunc(slices.Clone(x), func(k mark) bool { return drop[k.id] })
}

func (x marks) rows() []SnapshotRow {
	out := make([]SnapshotRow, len(x))
	for i, k := range x {
		out[i] = SnapshotRow{k.id, k.bytes, k.view.last()}
	}
	return out
}

func markKey(s id.Snapshot) (k pointKey) {
	binary.BigEndian.PutUint64(k[:], markPrefix)
	binary.BigEndian.PutUint64(k[8:], uint64(s))
	return k
}

func (k *mark) encode() []byte {
	b := make([]byte, 0, markBytes+intervalBytes*len(k.view))
	b = binary.LittleEndian.AppendUint16(b, markVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(k.view)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(k.bytes))
	return k.view.append(b)
}

func parseMark(key, value []byte) (mark, error) {
	if len(key) != keyBytes || binary.BigEndian.Uint64(key) != markPrefix || len(value) < markBytes {
		return mark{}, fmt.Errorf("%w: snapshot key %x, %d bytes", ErrCorrupt, key, len(value))
	}
	if v := binary.LittleEndian.Uint16(value); v != markVersion {
		return mark{}, fmt.Errorf("%w: snapshot version %d", ErrUnsupported, v)
	}
	if bits := binary.LittleEndian.Uint32(value[4:]); bits != 0 {
		return mark{}, fmt.Errorf("%w: snapshot features %#x", ErrUnsupported, bits)
	}
	k := mark{
		id:    id.Snapshot(binary.BigEndian.Uint64(key[8:])),
		bytes: int64(binary.LittleEndian.Uint64(value[8:])),
		gone:  new(atomic.Bool),
	}
	var rest []byte
	var err error
	if k.view, rest, err = parseView(value[markBytes:], int(binary.LittleEndian.Uint16(value[2:]))); err != nil {
		return mark{}, err
	}
	if k.id == 0 || k.bytes < 0 || len(rest) > 0 || !k.view.ends() {
		return mark{}, fmt.Errorf("%w: snapshot %d of %d bytes, view %v", ErrCorrupt, k.id, k.bytes, k.view)
	}
	return k, nil
}

// readMarks returns the rows of snapshots, or of one if only is not 0.
func readMarks(db pebble.Reader, only id.Snapshot) (out marks, err error) {
	lower, end := markKey(only), trimPrefixKey()
	upper := end[:]
	if only != 0 {
		upper = append(lower[:keyBytes:keyBytes], 0) // right behind it
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower[:], UpperBound: upper})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for valid := it.First(); valid; valid = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		k, err := parseMark(it.Key(), value)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}

// putMark adds b's mark to a step. m.apply is held.
func (m *Map) putMark(s *step, b *Batch) error {
	if b.Mark == (Mark{}) {
		return nil
	}
	if b.Mark.Rollback != 0 {
		return m.putRollback(s, b)
	}
	if _, ok := m.marks.find(b.Mark.Snapshot); ok || b.Gen+1 == genEnd {
		return fmt.Errorf("%w: snapshot %d again, or after the last generation", ErrInvalid, b.Mark.Snapshot)
	}
	k := mark{b.Mark.Snapshot, b.Mark.Bytes, s.head.view.cut(b.Gen + 1), new(atomic.Bool)}
	s.head.marked = true
	s.marks = s.marks.insert(k)
	s.unmarked = b.Gen + 1
	s.shows = true
	key := markKey(k.id)
	return s.batch.Set(key[:], k.encode(), nil)
}

// putRollback makes a step show a snapshot and what comes after the step.
func (m *Map) putRollback(s *step, b *Batch) error {
	at, ok := m.marks.find(b.Mark.Rollback)
	if !ok {
		return fmt.Errorf("roll back to snapshot %d: %w", b.Mark.Rollback, ErrNoSnapshot)
	}
	s.head.view = m.marks[at].view.resume(b.Gen)
	if len(s.head.view) > intervalsMax {
		return fmt.Errorf("%w: a rollback to a view of %d intervals", ErrInvalid, len(s.head.view))
	}
	rows, err := readTrims(m.db)
	if err != nil {
		return err
	}
	s.trims = shownTrims(s.head.view, rows)
	s.rollbacks++
	s.shows = true
	return nil
}

// shownTrims returns the index of the trims that a view shows. It changes rows.
func shownTrims(v view, rows []trim) trims {
	return buildTrims(slices.DeleteFunc(rows, func(t trim) bool { return !v.contains(t.gen) }))
}
