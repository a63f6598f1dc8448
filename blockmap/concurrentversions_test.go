package blockmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"plinth/internal/id"
)

// crowd is a map that several use at once, and what it should show.
type crowd struct {
	m     *Map
	opts  Options
	width id.LBA

	mu    sync.Mutex
	steps uint64 // that have begun
	done  uint64 // that have ended
	heads map[uint64][]Entry
	snaps map[id.Snapshot][]Entry // also those that were dropped
	gone  map[id.Snapshot]bool    // to be dropped, perhaps
	back  id.Snapshot             // that a rollback needs
	next  uint64
	newid id.Snapshot
}

// TestConcurrentVersions writes, marks, rolls back and moves chunks in one
// goroutine while others sweep, drop, look and make checkpoints: every snapshot
// shows what it showed first, or is gone for good.
func TestConcurrentVersions(t *testing.T) {
	seed := rand.Uint64()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c := &crowd{
		opts: testOptions(t, newStore()), width: 120,
		heads: map[uint64][]Entry{}, snaps: map[id.Snapshot][]Entry{}, gone: map[id.Snapshot]bool{},
	}
	c.heads[0] = make([]Entry, c.width)
	c.m = mustCreate(t, c.opts)
	c.m.sweepRows, c.m.holes.bits = 7, 2
	var wg sync.WaitGroup
	for i, step := range []func(context.Context, *rand.Rand) error{c.change, c.sweep, c.look, c.lookBack, c.save} {
		r := newRand(seed + uint64(i))
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := step(ctx, r); err != nil && ctx.Err() == nil {
					t.Errorf("seed %d, goroutine %d: %v", seed, i, err)
					cancel()
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d steps, %d snapshots, %d dropped", c.done, len(c.snaps), len(c.gone))
}

// pick returns a snapshot, 0 if there is none.
func (c *crowd) pick(r *rand.Rand, dropped bool) id.Snapshot {
	var some []id.Snapshot
	for s := range c.snaps {
		if dropped || !c.gone[s] {
			some = append(some, s)
		}
	}
	if len(some) == 0 {
		return 0
	}
	slices.Sort(some)
	return some[r.IntN(len(some))]
}

func (c *crowd) change(_ context.Context, r *rand.Rand) error {
	c.mu.Lock()
	c.steps++
	n := c.steps
	now := slices.Clone(c.heads[n-1])
	var b Batch
	switch back := c.pick(r, false); {
	case back != 0 && r.IntN(12) == 0:
		b.Gen, b.Mark.Rollback = c.m.Gen()+1, back
		copy(now, c.snaps[back])
		c.back = back
	case r.IntN(8) == 0:
		b.Gen = c.m.Gen()
		for lba, e := range now { // only the newest version's generation may fit
			c.next++
			b.Patches = append(b.Patches, Patch{LBA: id.LBA(lba), Gen: b.Gen, From: e.Ref, To: entryOf(c.next).Ref})
		}
		b.Patches = slices.DeleteFunc(b.Patches, func(p Patch) bool { return p.From.Segment == 0 })
		if len(b.Patches) == 0 {
			b.Gen = c.m.NextGen(false)
		}
	default:
		if r.IntN(6) == 0 {
			first := id.LBA(r.Uint64N(uint64(c.width)))
			b.Trims = []Extent{{first, first + 40}}
			clear(now[first:min(first+40, c.width)])
		}
		b.Gen = c.m.NextGen(len(b.Trims) > 0)
		for range r.IntN(30) {
			lba := id.LBA(r.Uint64N(uint64(c.width)))
			var e Entry
			if r.IntN(3) > 0 {
				c.next++
				e = entryOf(c.next)
			}
			b.Updates = append(b.Updates, Update{lba, e})
			now[lba] = e
		}
		if len(c.snaps)-len(c.gone) < 12 && r.IntN(3) == 0 {
			c.newid++
			b.Mark = Mark{Snapshot: c.newid}
		}
	}
	c.heads[n] = now
	delete(c.heads, n-200)
	c.mu.Unlock()
	if err := c.m.Apply(&b, binary.BigEndian.AppendUint64(nil, n)); err != nil {
		return fmt.Errorf("step %d: %w", n, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done, c.back = n, 0
	if s := b.Mark.Snapshot; s != 0 {
		c.snaps[s] = now
	}
	return nil
}

// same compares content: places change.
func same(got, want []Entry) error {
	for i := range got {
		if got[i].Fingerprint != want[i].Fingerprint || got[i].Zero() != want[i].Zero() {
			return fmt.Errorf("LBA %d has %v, want %v", i, got[i], want[i])
		}
	}
	return nil
}

func (c *crowd) sweep(ctx context.Context, r *rand.Rand) error {
	s, err := c.m.Snapshot()
	if err != nil {
		return err
	}
	defer s.Close()
	c.mu.Lock()
	if doomed := c.pick(r, false); doomed != 0 && doomed != c.back {
		c.gone[doomed] = true
	}
	drop := maps.Clone(c.gone)
	c.mu.Unlock()
	stop := errors.New("stop")
	_, err = s.Sweep(ctx, drop, nil, func(*Version) error {
		if r.IntN(2000) == 0 {
			return stop
		}
		return nil
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return err
}

// look reads the map itself.
func (c *crowd) look(_ context.Context, r *rand.Rand) error {
	c.mu.Lock()
	low := c.done
	c.mu.Unlock()
	out := make([]Entry, c.width)
	if err := c.m.LookupRange(0, out); err != nil {
		return err
	}
	lba := r.IntN(len(out))
	one := make([]Entry, 1)
	if err := c.m.LookupRange(id.LBA(lba), one); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	found := false
	for n := low; n <= c.steps; n++ {
		if c.heads[n] == nil {
			return nil // long ago
		}
		if err = same(out, c.heads[n]); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("no step from %d to %d: %w", low, c.steps, err)
	}
	for n := low; n <= c.steps && !found; n++ {
		found = c.heads[n] == nil || same(one, c.heads[n][lba:lba+1]) == nil
	}
	if !found {
		return fmt.Errorf("no step from %d to %d has LBA %d alone as %v", low, c.steps, lba, one[0])
	}
	return nil
}

// lookBack reads a snapshot.
func (c *crowd) lookBack(_ context.Context, r *rand.Rand) error {
	c.mu.Lock()
	s := c.pick(r, true)
	want := c.snaps[s]
	c.mu.Unlock()
	v, err := c.m.At(s)
	out := make([]Entry, c.width)
	if err == nil {
		for range 3 {
			if err = v.LookupRange(0, out); err != nil {
				break
			}
			if err := same(out, want); err != nil {
				return fmt.Errorf("snapshot %d: %w", s, err)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, ErrNoSnapshot) && (s == 0 || c.gone[s]) {
		err = nil
	}
	return err
}

// save attaches a checkpoint.
func (c *crowd) save(ctx context.Context, _ *rand.Rand) error {
	saved, err := c.m.Checkpoint(ctx)
	if err != nil || len(saved.State) == 0 {
		return err
	}
	own := c.opts
	own.Dir = "attached"
	m, err := Attach(ctx, saved.Manifest, own)
	if err != nil {
		return err
	}
	defer m.Close()
	m.holes.bits = 2
	n := binary.BigEndian.Uint64(saved.State)
	out := make([]Entry, c.width)
	if err := m.LookupRange(0, out); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if want := c.heads[n]; want != nil {
		if err := same(out, want); err != nil {
			return fmt.Errorf("checkpoint of step %d: %w", n, err)
		}
	}
	for _, row := range m.Snapshots() {
		v, err := m.At(row.ID)
		if err == nil {
			err = v.LookupRange(0, out)
		}
		if err != nil {
			return err
		}
		if want := c.snaps[row.ID]; want != nil { // else its Apply has not returned
			if err := same(out, want); err != nil {
				return fmt.Errorf("checkpoint of step %d, snapshot %d: %w", n, row.ID, err)
			}
		}
	}
	return nil
}
