package blockmap

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// LookupRange fills out with the entries of first, first+1, … as of one instant;
// what is not mapped is zero. It reads tables where the cache has not got them.
// Errors: ErrInvalid beyond LBAMax, ErrClosed, ErrFailed, ErrCorrupt and those
// of Objects; out is then undefined.
func (m *Map) LookupRange(first id.LBA, out []Entry) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.calls.leave()
	if first >= LBAMax || uint64(len(out)) > uint64(LBAMax-first) {
		return fmt.Errorf("%w: a look-up of %d entries from LBA %d", ErrInvalid, len(out), first)
	}
	if len(out) == 0 {
		return nil
	}
	changes, known := m.recent.get(first, out)
	if known {
		return nil
	}
	clear(out)
	if m.holes.show(first, len(out)) {
		return nil
	}
	look := m.lookup
	if len(out) == 1 {
		look = m.lookupOne
	}
	if err := look(first, out); err != nil {
		return fmt.Errorf("look up LBA %d: %w", first, err)
	}
	m.recent.learn(changes, first, out)
	if out[0].Zero() {
		m.learnHoles(first)
	}
	return nil
}

// lookup is LookupRange for who has begun, into entries that are zero.
func (m *Map) lookup(first id.LBA, out []Entry) error {
	c, err := m.cursor(first, first+id.LBA(len(out)))
	if err == nil {
		err = c.fill(out)
	}
	return err
}

// lookupOne is lookup of one LBA. Where there is one generation, it gets the row by
// its key.
func (m *Map) lookupOne(lba id.LBA, out []Entry) error {
	if gen := m.only.Load(); gen != 0 {
		if err := m.get(makePointKey(lba, id.Gen(gen-1)), &out[0]); err != nil || m.only.Load() == gen {
			return err
		}
		// A newer generation came, and a sweep may have deleted the row that
		// was looked for.
		out[0] = Entry{}
	}
	return m.lookup(lba, out)
}

// get reads one row, which may be missing: half the cost of an iterator.
func (m *Map) get(key pointKey, e *Entry) error {
	value, closer, err := m.db.Get(key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	*e, err = parseEntry(value)
	return errors.Join(err, closer.Close())
}

// cursor walks the mapped entries of a range that a view shows, in order.
type cursor struct {
	it    *pebble.Iterator
	view  view
	trims trims // cut to what may still come
	first id.LBA
	lba   id.LBA // of the entry
	entry Entry
	err   error

	// rows, unless it is negative, is how many more rows may be looked at once
	// the first LBA is done; then next ends, and stopped is the first LBA of
	// which nothing is known.
	rows    int
	stopped id.LBA

	one          bool // the range is one LBA
	started      bool
	lower, upper pointKey
}

// nextsMax is how many versions of an LBA are stepped over before it is worth
// a seek.
const nextsMax = 2

// cursor returns one over [first, end), of now. The caller closes it.
func (m *Map) cursor(first, end id.LBA) (*cursor, error) {
	c := newCursor(first, end)
	m.shown.RLock()
	defer m.shown.RUnlock()
	return c, c.open(m.db, m.view, m.trims)
}

func newCursor(first, end id.LBA) *cursor {
	return &cursor{first: first, lower: firstKey(first), upper: firstKey(end), rows: -1, stopped: end, one: end == first+1}
}

// open lets the cursor walk over rows as a view and its trims show them.
func (c *cursor) open(db pebble.Reader, v view, t trims) (err error) {
	c.view, c.trims = v, t[t.after(c.first):]
	if c.one { // a prefix, which is bounds enough: to compare blocks with others takes time
		c.it, err = db.NewIter(nil)
		return err
	}
	c.it, err = db.NewIter(&pebble.IterOptions{
		LowerBound: c.lower[:], UpperBound: c.upper[:prefixBytes], // NextPrefix wants a prefix
	})
	return err
}

// next moves to the next mapped entry; false at the end or at an error.
func (c *cursor) next() bool {
	if c.err != nil {
		return false
	}
	valid := false
	if !c.started {
		c.started = true
		valid = c.seek(c.first, c.view.last())
	} else {
		valid = c.skip()
	}
	for valid {
		lba, gen, err := parsePointKey(c.it.Key())
		if err != nil {
			c.err = err
			return false
		}
		if c.rows == 0 && lba != c.first {
			c.stopped = lba
			return false
		}
		if c.rows > 0 {
			c.rows--
		}
		floor, ok := c.view.floor(gen)
		switch {
		case !ok:
			c.lba = lba
			valid = c.skip()
			continue
		case floor != gen:
			valid = c.descend(lba, floor)
			continue
		}
		c.lba = lba
		if c.hidden(lba, gen) {
			valid = c.skip()
			continue
		}
		value, err := c.it.ValueAndErr()
		if err == nil {
			c.entry, err = parseEntry(value)
		}
		if err != nil {
			c.err = fmt.Errorf("LBA %d: %w", lba, err)
			return false
		}
		if !c.entry.Zero() {
			return true
		}
		valid = c.skip()
	}
	return false
}

// descend moves to the newest version of lba at or below a generation, or
// behind its last one.
func (c *cursor) descend(lba id.LBA, gen id.Gen) bool {
	for range nextsMax {
		if !c.it.Next() {
			return false
		}
		if at, g, err := parsePointKey(c.it.Key()); err != nil || at != lba || g <= gen {
			return true // next finds the error
		}
	}
	return c.seek(lba, gen)
}

// seek moves to the newest version of lba at or below a generation, or behind
// its last one. Of a range of one LBA it looks only into tables that may have it,
// and does not go behind it.
func (c *cursor) seek(lba id.LBA, gen id.Gen) bool {
	key := makePointKey(lba, gen)
	if c.one {
		return c.it.SeekPrefixGE(key[:])
	}
	return c.it.SeekGE(key[:])
}

// skip moves behind all versions of the current LBA. To step over the first of
// them took longer.
func (c *cursor) skip() bool { return c.it.NextPrefix() }

// hidden reports whether a trim hides generation gen of lba. LBAs only rise.
func (c *cursor) hidden(lba id.LBA, gen id.Gen) bool {
	if len(c.trims) == 0 {
		return false
	}
	if c.trims[0].End <= lba {
		c.trims = c.trims[c.trims.after(lba):]
	}
	return len(c.trims) > 0 && c.trims[0].First <= lba && c.trims[0].gen > gen
}

// fill sets the entries of out, which is zero, and closes the cursor.
func (c *cursor) fill(out []Entry) error {
	for last := id.LBA(len(out) - 1); c.next(); {
		out[c.lba-c.first] = c.entry
		if c.lba-c.first == last {
			break // or else its older versions are stepped over
		}
	}
	return c.close()
}

func (c *cursor) close() error {
	return errors.Join(c.err, c.it.Close())
}
