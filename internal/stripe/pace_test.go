package stripe

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plinth/internal/id"
)

// shelf is a rig whose spindles take time, that of discs, and some times as long where
// one of them is slow.
type shelf struct {
	*rig
	slowdown [12]atomic.Int64
	segments []*Segment
	chunks   [][][]byte
}

func newShelf(t *testing.T) *shelf {
	g := Geometry{8, 2}
	s := &shelf{rig: newRig(t, g, 12)}
	rng := seeded(t)
	for range 40 {
		seg, chunks := pack(t, rng, g, 64<<10)
		s.write(seg)
		s.segments, s.chunks = append(s.segments, seg), append(s.chunks, chunks)
	}
	spindles := numbers(12)
	s.node.takes = func(sp id.Spindle) time.Duration {
		takes := 2*time.Millisecond + time.Duration(rand.Int64N(int64(12*time.Millisecond)))
		return takes * time.Duration(max(s.slowdown[slices.Index(spindles, sp)].Load(), 1))
	}
	return s
}

// load has readers read so many times each, n chunks at a time, and returns the time
// that one read in a hundred exceeds.
func (s *shelf) load(times, n int) time.Duration {
	s.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			var m Memory
			for range times {
				time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond))))
				at := rand.IntN(len(s.segments))
				chunks := s.chunks[at]
				n := min(n, len(chunks))
				first := rand.IntN(len(chunks) - n + 1)
				var ranges []Range
				for slot := first; slot < first+n; slot++ {
					ranges = append(ranges, s.g.Locate(s.segments[at].Ref(id.Slot(slot))))
				}
				began := time.Now()
				for i, d := range s.store.ReadIn(s.Context(), &m, ranges) {
					if d.Err != nil || !bytes.Equal(d.Bytes, chunks[first+i]) {
						s.Errorf("%s: %v", ranges[i], d.Err)
					}
				}
				took := time.Since(began)
				mu.Lock()
				all = append(all, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(all)
	return all[len(all)*99/100]
}

// probing has the store probed for as long as f takes.
func (s *shelf) probing(f func()) {
	ctx, stop := s.Context(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
				s.store.Probe(ctx)
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	f()
}

// TestSimSlowSpindle makes a spindle take 50 times as long, in simulated time: the reads
// that one in a hundred exceeds take at most twice as long, those to find it out
// included, and new segments are elsewhere; when it is well again it is read again.
func TestSimSlowSpindle(t *testing.T) {
	for name, n := range map[string]int{"one chunk": 1, "many chunks": 256} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf(t)
				s.probing(func() {
					healthy := s.load(1000, n)
					if slow := s.store.Slow(); len(slow) > 0 {
						t.Fatalf("slow with all well: %v", slow)
					}
					s.slowdown[3].Store(50)
					ill := s.load(1000, n)
					t.Logf("p99 %v with all well, %v with one slow; %d ranges read around it", healthy, ill, s.store.ReadAround())
					if ill > 2*healthy {
						t.Errorf("p99 is %v with a slow spindle, %v without", ill, healthy)
					}
					bad := numbers(12)[3]
					if slow := s.store.Slow(); !slices.Equal(slow, []id.Spindle{bad}) {
						t.Fatalf("slow: %v, want %v", slow, bad)
					}
					for range 24 {
						seg, _ := pack(t, rand.New(rand.NewPCG(1, 1)), s.g, 10_000)
						s.write(seg)
						if slices.Contains(s.store.Layouts().Lists[seg.Header.Segment.Layout()], bad) {
							t.Error("a new segment has a fragment on a slow spindle")
						}
					}
					s.slowdown[3].Store(1)
					for deadline := time.Now().Add(5 * time.Minute); len(s.store.Slow()) > 0; {
						if time.Now().After(deadline) {
							t.Fatal("a spindle that is well again is avoided after five minutes")
						}
						s.load(10, n)
					}
				})
			})
		})
	}
}

// TestStuckSpindle has a spindle answer nothing for an hour: reads go around it though
// no answer says that it is slow.
func TestStuckSpindle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t)
		s.probing(func() {
			s.load(200, 1)
			s.slowdown[7].Store(int64(time.Hour / (2 * time.Millisecond)))
			began := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() { s.load(20, 1) }) // some of which wait for the hour
			time.Sleep(3 * time.Second)
			if slow := s.store.Slow(); len(slow) != 1 {
				t.Errorf("slow after three seconds: %v", slow)
			}
			s.load(200, 1)
			if took := time.Since(began); took > time.Minute {
				t.Errorf("reads beside a spindle that is stuck took %v", took)
			}
			wg.Wait()
		})
	})
}

// TestSlowSpindleIsNeeded reads what can only be had with a slow spindle.
func TestSlowSpindleIsNeeded(t *testing.T) {
	g := Geometry{4, 2}
	r := newRig(t, g, 6)
	s, chunks := pack(t, seeded(t), g, 300_000)
	r.write(s)
	list := r.store.Layouts().Lists[s.Header.Segment.Layout()]
	r.store.paces()[list[0]].slow.Store(true)
	r.readsBack(s, chunks)
	if r.store.ReadAround() == 0 || r.store.Reconstructed() != 0 {
		t.Errorf("%d ranges read around a slow spindle, %d reconstructed", r.store.ReadAround(), r.store.Reconstructed())
	}
	r.node.down[list[1]], r.node.down[list[5]] = true, true
	r.readsBack(s, chunks)
	other, _ := pack(t, seeded(t), g, 10_000)
	clear(r.node.down)
	r.write(other) // all spindles are in every layout
}
