package blockmap

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
)

// collectRows is how many rows one batch of Collect deletes.
const collectRows = 4096

// Collect deletes what no look-up can see, as of now: entries of generations
// outside of the view, below a newer one or under a trim, zeros with nothing
// left below them, and then the trims. It reads the whole map once. It may be
// interrupted and repeated; the rest is found by the next one. Errors: of ctx,
// of Objects, ErrClosed, ErrFailed, ErrCorrupt.
func (m *Map) Collect(ctx context.Context) error {
	if err := m.begin(); err != nil {
		return err
	}
	defer m.calls.leave()
	m.collecting.Lock()
	defer m.collecting.Unlock()
	s, err := m.Snapshot()
	if err != nil {
		return err
	}
	c := collector{m: m, s: s, floor: s.gen, batch: m.db.NewBatch()}
	err = c.entries(ctx)
	if err == nil {
		err = c.finish()
	}
	c.batch.Close()
	if err = errors.Join(err, s.release()); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return m.cause()
}

// collector deletes rows whose generation is below the snapshot's: nothing is
// written under those any more, so what the snapshot says of them is final.
// Only zeros of the snapshot's own generation are looked at again.
type collector struct {
	m     *Map
	s     *Snapshot
	floor id.Gen // of what stays
	batch *pebble.Batch
	zeros []pointKey // of the snapshot's generation, with nothing below them
}

func (c *collector) entries(ctx context.Context) error {
	lower, upper := firstKey(0), firstKey(LBAMax)
	it, err := c.s.db.NewIter(&pebble.IterOptions{LowerBound: lower[:], UpperBound: upper[:]})
	if err != nil {
		return err
	}
	defer it.Close()
	var (
		lba     id.LBA
		covered bool     // a newer version of lba shows, or hides
		zero    pointKey // the version that shows, if isZero
		isZero  bool
		n       int
	)
	for valid := it.First(); valid; valid = it.Next() {
		if n++; n%ctxPeriod == 0 {
			if err := c.m.interrupted(ctx); err != nil {
				return err
			}
		}
		at, gen, err := parsePointKey(it.Key())
		if err != nil {
			return err
		}
		if at != lba || n == 1 {
			if err := c.endLBA(zero, isZero); err != nil {
				return err
			}
			lba, covered, isZero = at, false, false
		}
		key := makePointKey(at, gen)
		switch {
		case covered, !c.s.view.contains(gen), c.s.trims.gen(at) > gen:
			if err := c.delete(key); err != nil {
				return err
			}
			continue
		}
		covered = true
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if len(value) == 0 {
			zero, isZero = key, true
		} else {
			c.floor = min(c.floor, gen)
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	return c.endLBA(zero, isZero)
}

// endLBA deletes the zeros that an LBA begins with, after all that they hid.
func (c *collector) endLBA(key pointKey, isZero bool) error {
	if !isZero {
		return nil
	}
	if _, gen, err := parsePointKey(key[:]); err != nil {
		return err
	} else if gen < c.s.gen {
		return c.delete(key)
	}
	c.zeros = append(c.zeros, key)
	if len(c.zeros) >= collectRows {
		return c.commit()
	}
	return nil
}

func (c *collector) delete(key pointKey) error {
	if err := c.batch.Delete(key[:], nil); err != nil {
		return err
	}
	if c.batch.Count() >= collectRows {
		return c.commit()
	}
	return nil
}

// commit makes the deletions so far. Applying is held up, because a zero of the
// current generation may have been overwritten since.
func (c *collector) commit() error {
	c.m.apply.Lock()
	defer c.m.apply.Unlock()
	for _, key := range c.zeros {
		value, closer, err := c.m.db.Get(key[:])
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		isZero := len(value) == 0
		if err := closer.Close(); err != nil {
			return err
		}
		if isZero {
			if err := c.batch.Delete(key[:], nil); err != nil {
				return err
			}
		}
	}
	c.zeros = c.zeros[:0]
	err := c.batch.Commit(pebble.NoSync)
	c.batch.Close()
	c.batch = c.m.db.NewBatch()
	return err
}

// finish removes the trims and the view's gaps that hide nothing any more.
func (c *collector) finish() error {
	if err := c.commit(); err != nil {
		return err
	}
	rows, err := readTrims(c.s.db)
	if err != nil {
		return err
	}
	m := c.m
	m.apply.Lock()
	defer m.apply.Unlock()
	for _, t := range rows {
		if err := c.batch.Delete(trimKey(t), nil); err != nil {
			return err
		}
	}
	next := m.head
	next.view = wholeView()
	next.floor = max(next.floor, c.floor)
	if err := c.batch.Set(headKey[:], next.encode(), nil); err != nil {
		return err
	}
	m.shown.Lock()
	defer m.shown.Unlock()
	if err := c.batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	m.show(next.view, m.trims.newer(c.s.gen))
	m.install(next)
	return nil
}
