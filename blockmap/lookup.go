package blockmap

import (
	"context"
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
	clear(out)
	if len(out) == 0 {
		return nil
	}
	if gen := m.only.Load(); len(out) == 1 && gen != 0 {
		if err := m.get(makePointKey(first, id.Gen(gen-1)), &out[0]); err != nil {
			return fmt.Errorf("look up LBA %d: %w", first, err)
		}
		if m.only.Load() == gen {
			return nil
		}
		// A newer generation came, and a Collect may have deleted the row that
		// was looked for.
		out[0] = Entry{}
	}
	c, err := m.cursor(nil, first, first+id.LBA(len(out)))
	if err != nil {
		return fmt.Errorf("look up LBA %d: %w", first, err)
	}
	for c.next() {
		out[c.lba-first] = c.entry
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("look up LBA %d: %w", first, err)
	}
	return nil
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
	lba   id.LBA
	entry Entry
	err   error

	// rows, unless it is negative, is how many more rows may be looked at; then
	// next ends, and stopped is the first LBA of which nothing is known.
	rows    int
	stopped id.LBA

	started      bool
	lower, upper pointKey
}

// nextsMax is how many versions of an LBA are stepped over before it is worth
// a seek.
const nextsMax = 8

// cursor returns one over [first, end), of a snapshot or of now. The caller
// closes it.
func (m *Map) cursor(s *Snapshot, first, end id.LBA) (*cursor, error) {
	c := &cursor{lower: firstKey(first), upper: firstKey(end), rows: -1, stopped: end}
	opts := pebble.IterOptions{LowerBound: c.lower[:], UpperBound: c.upper[:prefixBytes]} // NextPrefix wants a prefix
	var err error
	if s != nil {
		c.it, err = s.db.NewIter(&opts)
		c.view, c.trims = s.view, s.trims
	} else {
		m.shown.RLock()
		c.it, err = m.db.NewIter(&opts)
		c.view, c.trims = m.view, m.trims
		m.shown.RUnlock()
	}
	if err != nil {
		return nil, err
	}
	c.trims = c.trims[c.trims.after(first):]
	return c, nil
}

// next moves to the next mapped entry; false at the end or at an error.
func (c *cursor) next() bool {
	if c.err != nil {
		return false
	}
	valid := false
	if !c.started {
		c.started = true
		valid = c.it.First()
	} else {
		valid = c.skip()
	}
	for valid {
		lba, gen, err := parsePointKey(c.it.Key())
		if err != nil {
			c.err = err
			return false
		}
		if c.rows == 0 {
			c.stopped = lba
			return false
		}
		c.rows--
		floor, ok := c.view.floor(gen)
		switch {
		case !ok:
			c.lba = lba
			valid = c.skip()
			continue
		case floor != gen:
			key := makePointKey(lba, floor)
			valid = c.it.SeekGE(key[:])
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

// skip moves behind all versions of the current LBA.
func (c *cursor) skip() bool {
	for range nextsMax {
		if !c.it.Next() {
			return false
		}
		if lba, _, err := parsePointKey(c.it.Key()); err != nil || lba != c.lba {
			return true // next finds the error
		}
	}
	return c.it.NextPrefix()
}

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

func (c *cursor) close() error {
	return errors.Join(c.err, c.it.Close())
}

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
	m     *Map
	db    *pebble.Snapshot
	view  view
	trims trims
	gen   id.Gen
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
	s := &Snapshot{m: m, db: m.db.NewSnapshot(), view: m.view, trims: m.trims, gen: m.head.gen}
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
	c, err := s.m.cursor(s, 0, LBAMax)
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
