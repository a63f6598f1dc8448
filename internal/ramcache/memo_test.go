package ramcache

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/internal/id"
)

func one(lba id.LBA, fp id.Fingerprint) func(func(id.LBA, *id.Fingerprint) bool) {
	return func(yield func(id.LBA, *id.Fingerprint) bool) { yield(lba, &fp) }
}

func TestMemo(t *testing.T) {
	c := newCache(t, BytesMin)
	m, other := c.NewMemo(), c.NewMemo()
	is := func(what string, m *Memo, lba id.LBA, want uint64) {
		t.Helper()
		if fp, ok := m.Get(lba); ok != (want != 0) || ok && fp != fingerprint(want) {
			t.Errorf("%s: %v %v, want %d", what, fp, ok, want)
		}
	}
	put := func(m *Memo, tk Ticket, lba id.LBA, n uint64) {
		fp := fingerprint(n)
		m.Put(tk, lba, &fp)
	}
	put(m, m.Ticket(), 5, 1)
	is("put", m, 5, 1)
	is("another LBA", m, 6, 0)
	is("another memo", other, 5, 0)
	old := m.Ticket()
	m.Changed(one(5, fingerprint(2)))
	is("changed", m, 5, 2)
	put(m, old, 5, 1)
	is("put as of before the change", m, 5, 2)
	put(m, old, 7, 1)
	is("put elsewhere as of before the change", m, 7, 0)
	m.Changed(one(8, fingerprint(3)))
	is("changed, but never asked", m, 8, 0)
	old = m.Ticket()
	m.Forget()
	is("forgotten", m, 5, 0)
	put(m, old, 5, 2)
	is("put as of before it was forgotten", m, 5, 0)
	put(m, m.Ticket(), 5, 4)
	is("put since", m, 5, 4)
	is("another memo", other, 5, 0)
}

// TestMemoFollows lets one goroutine change a map and tell the memo, and then raise
// the least that readers may see, while others ask the map and put what it says:
// the memo never says anything older.
func TestMemoFollows(t *testing.T) {
	const lbas = 64
	c := newCache(t, BytesMin)
	m := c.NewMemo()
	var truth, least [lbas]atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 1))
			for !stop.Load() {
				lba := rng.Uint64N(lbas)
				floor := least[lba].Load()
				fp, ok := m.Get(id.LBA(lba))
				if n := number(fp); ok && n < floor {
					t.Errorf("LBA %d: the memo says %d, the map said %d before", lba, n, floor)
					return
				}
				if !ok || rng.IntN(4) == 0 {
					tk := m.Ticket()
					fp = numbered(truth[lba].Load())
					m.Put(tk, id.LBA(lba), &fp)
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for n := uint64(1); n < 50_000 && !t.Failed(); n++ {
		lba := rng.Uint64N(lbas)
		truth[lba].Store(n)
		if n%512 == 0 {
			m.Forget()
		} else {
			m.Changed(one(id.LBA(lba), numbered(n)))
		}
		least[lba].Store(n)
	}
	stop.Store(true)
	wg.Wait()
	if s := c.Stats(); s.MemoHits == 0 || s.MemoMisses == 0 {
		t.Errorf("nothing was tested: %+v", s)
	}
}

func numbered(n uint64) (fp id.Fingerprint) {
	for i := range 8 {
		fp[i] = byte(n >> (8 * i))
	}
	return fp
}

func number(fp id.Fingerprint) (n uint64) {
	for i := range 8 {
		n |= uint64(fp[i]) << (8 * i)
	}
	return n
}

// TestMemoBounded puts more than fits: what is read again and again stays.
func TestMemoBounded(t *testing.T) {
	c := newCache(t, BytesMin)
	m := c.NewMemo()
	hits := 0
	for i := range 20 * len(c.memos.sets) {
		fp := fingerprint(uint64(i))
		m.Put(m.Ticket(), id.LBA(1000+i), &fp)
		if _, ok := m.Get(7); ok {
			hits++
		} else {
			m.Put(m.Ticket(), 7, &fp)
		}
	}
	if hits < 19*len(c.memos.sets) {
		t.Errorf("a hot entry was there %d times of %d", hits, 20*len(c.memos.sets))
	}
}

func BenchmarkHit(b *testing.B) {
	c := newCache(b, 1<<30)
	m := c.NewMemo()
	const chunks = 200_000
	p := make([]byte, PageBytes)
	for i := range uint64(chunks) {
		fp := fingerprint(i)
		m.Put(m.Ticket(), id.LBA(i), &fp)
		c.Put(&fp, p)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, bench := range []struct {
		name string
		get  func(lba id.LBA) bool
	}{
		{"memo", func(lba id.LBA) bool { _, ok := m.Get(lba); return ok }},
		{"memo, page", func(lba id.LBA) bool { fp, ok := m.Get(lba); return ok && c.Get(p, &fp, 0) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			hits, n := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				if n++; bench.get(id.LBA(rng.Uint64N(chunks))) {
					hits++
				}
			}
			b.ReportMetric(float64(hits)/float64(n), "hits/op")
		})
	}
}

func BenchmarkPut(b *testing.B) {
	c := newCache(b, 64<<20)
	p := make([]byte, PageBytes)
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		fp := fingerprint(i)
		c.Put(&fp, p)
	}
}
