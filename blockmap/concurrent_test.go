package blockmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/internal/id"
)

// TestConcurrency: each batch sets every LBA to one entry, so that whatever
// reads during that must see one entry only, and never an older one again.
func TestConcurrency(t *testing.T) {
	const width = 300
	s := newStore()
	opts := testOptions(t, s)
	m := mustCreate(t, opts)
	m.holes.bits = 4
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	var newest atomic.Uint64 // of an Apply that has returned
	number := func(e Entry) uint64 { return uint64(e.Ref.Segment.Number()) }
	entry := func(n uint64) Entry { return Entry{Ref: id.Ref{Segment: id.MakeSegment(3, n)}} }

	var wg sync.WaitGroup
	run := func(what string, step func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := step(); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	check := func(n, low uint64, got Entry) error {
		if number(got) != n || n < low {
			return fmt.Errorf("entry %d among %d, after %d", number(got), n, low)
		}
		return nil
	}

	run("apply", func() error {
		n := newest.Load() + 1
		b := Batch{Gen: id.Gen(n / 7)}
		if n%7 == 0 {
			b.Trims = []Extent{{0, width + 50}}
		}
		for i := range id.LBA(width) {
			b.Updates = append(b.Updates, Update{i, entry(n)})
		}
		if err := m.Apply(&b, binary.BigEndian.AppendUint64(nil, n)); err != nil {
			return err
		}
		newest.Store(n)
		return nil
	})
	for _, width := range []int{1, width} {
		run("look up", func() error {
			low := newest.Load()
			out := make([]Entry, width)
			if err := m.LookupRange(0, out); err != nil {
				return err
			}
			n := number(out[0])
			for _, e := range out {
				if err := check(n, low, e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	run("scan", func() error {
		low := newest.Load()
		snapshot, err := m.Snapshot()
		if err != nil {
			return err
		}
		defer snapshot.Close()
		n, seen := uint64(0), 0
		err = snapshot.Scan(ctx, func(_ id.LBA, e Entry) error {
			if seen++; seen == 1 {
				n = number(e)
			}
			return check(n, low, e)
		})
		if err == nil && low > 0 && seen != width {
			err = fmt.Errorf("%d entries", seen)
		}
		return err
	})
	run("collect", func() error { return m.Collect(ctx) })
	run("checkpoint", func() error {
		low := newest.Load()
		c, err := m.Checkpoint(ctx)
		if err != nil || len(c.State) == 0 {
			return err
		}
		own := opts
		own.Dir = "attached"
		a, err := Attach(ctx, c.Manifest, own)
		if err != nil {
			return err
		}
		defer a.Close()
		n := binary.BigEndian.Uint64(c.State)
		return a.Scan(ctx, func(_ id.LBA, e Entry) error { return check(n, low, e) })
	})
	wg.Wait()
	t.Logf("%d batches", newest.Load())
}
