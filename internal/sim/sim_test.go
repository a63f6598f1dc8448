package sim

import (
	"flag"
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

var (
	simSeed  = flag.Uint64("sim-seed", 0, "TestSimPools: this seed only")
	simSeeds = flag.Int("sim-seeds", 10_000, "TestSimPools: seeds, from 1 on")
	simDir   = flag.String("sim-dir", "", "TestSimPools: where the run is kept, to go on; empty: nowhere")
)

// sweepSeeds simulates seeds, as many at once as there are processors, and calls each
// with what became of them, one at a time.
func sweepSeeds(first uint64, n int, f flaw, each func(seed uint64, w *world) (goOn bool)) {
	// A world lives for milliseconds: what it leaves is collected now and then.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(512 << 20))
	var all sync.WaitGroup
	var mu sync.Mutex
	next, end := first, first+uint64(n)
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for {
				mu.Lock()
				seed := next
				if next < end {
					next++
				}
				mu.Unlock()
				if seed == end {
					return
				}
				w := simulate(seed, f)
				mu.Lock()
				if !each(seed, w) {
					end = next
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
}

// add counts another world in.
func (c *counts) add(o *counts) {
	sum, more := reflect.ValueOf(c).Elem(), reflect.ValueOf(o).Elem()
	for i := range sum.NumField() {
		sum.Field(i).SetInt(sum.Field(i).Int() + more.Field(i).Int())
	}
}

// String names what there was.
func (c *counts) String() (s string) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		s += fmt.Sprintf(" %d %s,", v.Field(i).Int(), v.Type().Field(i).Name)
	}
	return s[1 : len(s)-1]
}

// TestSimPools: whatever happens to a pool, what is acknowledged is there and what is
// freed was garbage. With -sim-dir the run is kept there: one that was cut off goes on.
func TestSimPools(t *testing.T) {
	if *simSeed != 0 {
		poolsOf(t, *simSeed, 1)
		return
	}
	k, err := LoadKept(*simDir)
	if err != nil {
		t.Fatal(err)
	}
	for k.Done < *simSeeds && !t.Failed() {
		began, n := time.Now(), min(*simSeeds-k.Done, seedsPerPart)
		if poolsOf(t, uint64(k.Done)+1, n); t.Failed() {
			return
		}
		if err := k.Add(n, time.Since(began)); err != nil {
			t.Fatal(err)
		}
		if *simDir != "" {
			t.Logf("%d seeds in %v", k.Done, k.Took)
		}
	}
}

const (
	// seedsPerPart is after how many seeds a run is kept.
	seedsPerPart = 10_000
	// seedsTwice is how many of these are gone through again, and must be the same.
	seedsTwice = 500
)

func poolsOf(t *testing.T, first uint64, n int) {
	var sum counts
	var trace, done, betrayed uint64
	traces := make(map[uint64]uint64)
	began := time.Now()
	sweepSeeds(first, n, sound, func(seed uint64, w *world) bool {
		if w.wrong != nil {
			t.Errorf("-sim-seed %d: %v", seed, w.wrong)
		}
		if w.count.Ops < opsWanted || w.count.Faults < faultsWanted {
			t.Errorf("seed %d: only %d operations and %d faults", seed, w.count.Ops, w.count.Faults)
		}
		sum.add(&w.count)
		trace ^= w.Trace() // seeds end in any order
		traces[seed] = w.Trace()
		done++
		if w.betrayed {
			betrayed++
		}
		return !t.Failed()
	})
	t.Logf("seeds %d to %d, trace %016x, %.0f a second: %s; %d anew without lies", first, first+done-1, trace, float64(done)/time.Since(began).Seconds(), &sum, betrayed)
	sweepSeeds(first, min(n, seedsTwice), sound, func(seed uint64, w *world) bool {
		if before := traces[seed]; before != w.Trace() {
			t.Errorf("seed %d has the traces %016x and %016x", seed, before, w.Trace())
		}
		return !t.Failed()
	})
	v := reflect.ValueOf(sum)
	for i := range v.NumField() {
		if n >= 1000 && v.Field(i).Int() == 0 {
			t.Errorf("%d seeds, and no %s", n, v.Type().Field(i).Name)
		}
	}
}

// TestSimFindsFlaws: whatever is planted is found out. Each flaw is looked for from a seed
// on that finds it.
func TestSimFindsFlaws(t *testing.T) {
	for f := sound + 1; f < flaws; f++ {
		t.Run(f.String(), func(t *testing.T) {
			n, found := 0, false
			sweepSeeds(max(finds[f], 1), flawSeeds, f, func(seed uint64, w *world) bool {
				n++
				if w.wrong != nil && !found {
					found = true
					t.Logf("seed %d: %v", seed, w.wrong)
				}
				return !found
			})
			if !found {
				t.Errorf("%d seeds found nothing", n)
			}
		})
	}
}

const flawSeeds = 2000

var finds = [flaws]uint64{
	epochUnchecked: 10, ackedEarly: 7, zombieReplies: 69, trimmedEarly: 349, checkpointAhead: 50, pinForgotten: 100, passForgets: 13, passTooSoon: 844,
	reusedAfterFence: 61,
}
