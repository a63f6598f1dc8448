package blockmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/internal/id"
)

// model is what a map should say, and the map it is compared with.
type model struct {
	t       *testing.T
	rand    *rand.Rand
	store   *store
	cache   *Cache
	m       *Map
	opts    Options
	space   uint64 // LBAs in use
	entries map[id.LBA]Entry
	gen     id.Gen
	state   []byte
	next    uint64

	saved *savedModel // the newest checkpoint
}

type savedModel struct {
	checkpoint *Checkpoint
	entries    map[id.LBA]Entry
	gen        id.Gen
}

func runModel(t *testing.T, seed uint64, ops int, space uint64) {
	t.Logf("seed %d", seed)
	r := newRand(seed)
	s := newStore()
	m := &model{t: t, rand: r, store: s, space: space, entries: map[id.LBA]Entry{}, state: []byte{}}
	m.cache = NewCache(1<<20, 64)
	defer m.cache.Close()
	m.opts = testOptions(t, s)
	m.opts.Cache = m.cache
	var err error
	if m.m, err = Create(m.opts); err != nil {
		t.Fatal(err)
	}
	m.small()
	for i := range ops {
		m.step(i)
		if t.Failed() {
			t.Fatalf("seed %d failed at step %d", seed, i)
		}
	}
	m.compareAll()
	mustClose(t, m.m)
	if t.Failed() {
		t.Fatalf("seed %d", seed)
	}
}

// small makes regions of few LBAs.
func (m *model) small() { m.m.holes.bits = uint(m.rand.IntN(8)) }

func (m *model) step(i int) {
	ctx := context.Background()
	switch n := m.rand.IntN(100); {
	case n < 70:
		m.apply(i)
	case n < 88:
		m.lookup()
	case n < 93:
		m.checkpoint(ctx)
	case n < 95:
		m.crash(ctx)
	case n < 97:
		if err := m.m.Collect(ctx); err != nil {
			m.t.Errorf("collect: %v", err)
		}
	case n < 98:
		m.compareAll()
	default:
		s, err := m.m.Snapshot()
		if err != nil {
			m.t.Fatal(err)
		}
		want := maps.Clone(m.entries)
		m.apply(i)
		if m.rand.IntN(2) == 0 {
			if err := m.m.Collect(ctx); err != nil {
				m.t.Error(err)
			}
		}
		m.compare(want, s.Scan)
		if err := s.Close(); err != nil {
			m.t.Error(err)
		}
	}
}

func (m *model) apply(i int) {
	b := Batch{Gen: m.gen}
	switch n := m.rand.IntN(20); {
	case n == 0:
		b.Gen += id.Gen(1 + m.rand.Uint64N(3))
		for range 1 + m.rand.IntN(3) {
			first := m.rand.Uint64N(m.space)
			b.Trims = append(b.Trims, Extent{id.LBA(first), id.LBA(first + 1 + m.rand.Uint64N(m.space))})
		}
	case n < 3:
		b.Gen++
	}
	first := id.LBA(m.rand.Uint64N(m.space))
	for range m.rand.IntN(40) {
		switch m.rand.IntN(4) {
		case 0:
			first = id.LBA(m.rand.Uint64N(m.space))
		default:
			first = (first + 1) % id.LBA(m.space)
		}
		m.next++
		u := Update{first, entryOf(m.next)}
		if m.rand.IntN(4) == 0 {
			u.Entry = Entry{}
		}
		b.Updates = append(b.Updates, u)
	}
	state := fmt.Appendf(nil, "step %d", i)
	if err := m.m.Apply(&b, state); err != nil {
		m.t.Errorf("apply: %v", err)
		return
	}
	m.gen, m.state = b.Gen, state
	for _, t := range b.Trims {
		maps.DeleteFunc(m.entries, func(lba id.LBA, _ Entry) bool { return lba >= t.First && lba < t.End })
	}
	for _, u := range b.Updates {
		m.entries[u.LBA] = u.Entry
		if u.Zero() {
			delete(m.entries, u.LBA)
		}
	}
}

func (m *model) lookup() {
	m.runs()
	first := id.LBA(m.rand.Uint64N(m.space))
	out := make([]Entry, 1+m.rand.IntN(1<<m.rand.IntN(9)))
	out[0] = entryOf(99)
	if err := m.m.LookupRange(first, out); err != nil {
		m.t.Errorf("look up: %v", err)
		return
	}
	for i, e := range out {
		if want := m.entries[first+id.LBA(i)]; e != want {
			m.t.Errorf("LBA %d is %v, want %v", first+id.LBA(i), e, want)
		}
	}
}

// runs walks over the runs of a range, in one call or in several.
func (m *model) runs() {
	first := id.LBA(m.rand.Uint64N(m.space))
	end := first + 1 + id.LBA(m.rand.Uint64N(min(2*m.space, 2000)))
	rowsMax := 1 + m.rand.IntN(400)
	mapped := map[id.LBA]bool{}
	for at := first; at < end; {
		last := at
		stopped, err := m.m.MappedRuns(at, end, rowsMax, func(e Extent) {
			if e.First < last || e.First >= e.End || e.First == last && last > at || e.End > end {
				m.t.Errorf("run %v after %d in [%d, %d)", e, last, at, end)
			}
			for last = e.First; last < e.End; last++ {
				mapped[last] = true
			}
		})
		if err != nil || stopped <= at || stopped > end || last > stopped {
			m.t.Errorf("runs from %d to %d: stopped at %d, last %d: %v", at, end, stopped, last, err)
			return
		}
		at = stopped
	}
	for lba := first; lba < end; lba++ {
		if _, want := m.entries[lba]; mapped[lba] != want {
			m.t.Errorf("LBA %d is mapped: %v, want %v", lba, mapped[lba], want)
		}
	}
}

func (m *model) checkpoint(ctx context.Context) {
	if m.rand.IntN(3) == 0 {
		m.store.fail(2, 0)
		defer m.store.fail(0, 0)
	}
	c, err := m.m.Checkpoint(ctx)
	if errors.Is(err, errInjected) {
		return
	}
	if err != nil {
		m.t.Errorf("checkpoint: %v", err)
		return
	}
	if !bytes.Equal(c.State, m.state) {
		m.t.Errorf("checkpoint has state %q, want %q", c.State, m.state)
	}
	named, err := ManifestObjects(c.Manifest)
	if err != nil || !slices.EqualFunc(named, c.Objects, func(a, b Object) bool { return bytes.Equal(a, b) }) {
		m.t.Errorf("manifest names %v (%v), checkpoint %v", named, err, c.Objects)
	}
	if n := m.m.Stats().UpdatesSinceCheckpoint; n != 0 {
		m.t.Errorf("%d updates since a checkpoint of now", n)
	}
	m.saved = &savedModel{c, maps.Clone(m.entries), m.gen}
	m.store.keep(c.Objects, m.m.Objects())
}

// crash drops the map and attaches the newest checkpoint, sometimes while the
// store does not answer well.
func (m *model) crash(ctx context.Context) {
	mustClose(m.t, m.m)
	if m.saved == nil {
		m.entries, m.gen, m.state = map[id.LBA]Entry{}, 0, []byte{}
		var err error
		if m.m, err = Create(m.opts); err != nil {
			m.t.Fatal(err)
		}
		m.small()
		return
	}
	m.store.keep(m.saved.checkpoint.Objects)
	if m.rand.IntN(2) == 0 {
		m.store.fail(0, 256)
	}
	next, err := Attach(ctx, m.saved.checkpoint.Manifest, m.opts)
	if err != nil {
		m.t.Fatalf("attach: %v", err)
	}
	m.m = next
	m.small()
	m.entries, m.gen, m.state = maps.Clone(m.saved.entries), m.saved.gen, m.saved.checkpoint.State
	if next.Gen() != m.gen || !bytes.Equal(next.State(), m.state) {
		m.t.Errorf("attached at generation %d with state %q, want %d, %q", next.Gen(), next.State(), m.gen, m.state)
	}
}

func (m *model) compareAll() { m.compare(m.entries, m.m.Scan) }

func (m *model) compare(want map[id.LBA]Entry, scan func(context.Context, func(id.LBA, Entry) error) error) {
	m.t.Helper()
	n, last := 0, id.LBA(0)
	err := scan(context.Background(), func(lba id.LBA, e Entry) error {
		if n > 0 && lba <= last {
			m.t.Errorf("LBA %d after %d", lba, last)
		}
		if e != want[lba] || e.Zero() {
			m.t.Errorf("LBA %d is %v, want %v", lba, e, want[lba])
		}
		n, last = n+1, lba
		return nil
	})
	if err != nil || n != len(want) {
		m.t.Errorf("a scan of %d entries, want %d: %v", n, len(want), err)
	}
}

func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			runModel(t, seed, modelOps, []uint64{40, 400, 20_000}[seed%3])
		})
	}
}

func TestSimModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			runModel(t, 100+seed, 6000, []uint64{60, 5_000, 200_000, 1000}[seed])
		})
	}
}
