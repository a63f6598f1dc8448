package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	// atOnce histories go on at a time: the machine that checks has two cores.
	atOnce = 2
	// findingsMax ends a run that is kept, which goes on after a finding: more
	// would tell the same again.
	findingsMax = 16
)

// tally counts what histories went through.
type tally struct {
	Histories, Ops, Snapshots, Rollbacks, Clones, Removals, Cycles, Moved, Crashes, Doubts, Recoveries, Takeovers, Moves, Lost, Again, Full, Refused int64
	ByCall                                                                                                                                           map[string]int64 // crashes
}

func (s *tally) add(o *tally) {
	for _, x := range [][2]*int64{
		{&s.Histories, &o.Histories}, {&s.Ops, &o.Ops}, {&s.Snapshots, &o.Snapshots}, {&s.Rollbacks, &o.Rollbacks}, {&s.Clones, &o.Clones},
		{&s.Removals, &o.Removals}, {&s.Cycles, &o.Cycles}, {&s.Moved, &o.Moved}, {&s.Crashes, &o.Crashes}, {&s.Doubts, &o.Doubts},
		{&s.Recoveries, &o.Recoveries}, {&s.Takeovers, &o.Takeovers}, {&s.Moves, &o.Moves}, {&s.Lost, &o.Lost}, {&s.Again, &o.Again}, {&s.Full, &o.Full}, {&s.Refused, &o.Refused},
	} {
		*x[0] += *x[1]
	}
	for call, n := range o.ByCall {
		s.at(call, n)
	}
}

func (s *tally) at(call string, n int64) {
	if s.ByCall == nil {
		s.ByCall = map[string]int64{}
	}
	s.ByCall[call] += n
}

func (s *tally) String() string {
	out := fmt.Sprintf("%d histories, %d operations: %d snapshots, %d rollbacks, %d clones, %d removals, %d cycles that moved %d chunks, %d crashes, of these %d in doubt, %d indexes rebuilt, %d takeovers, %d moves, %d lost answers; %d found no space, %d were refused; %d contents are stored twice",
		s.Histories, s.Ops, s.Snapshots, s.Rollbacks, s.Clones, s.Removals, s.Cycles, s.Moved, s.Crashes, s.Doubts, s.Recoveries, s.Takeovers, s.Moves, s.Lost, s.Full, s.Refused, s.Again)
	out += "\ncrashes at"
	for _, call := range slices.Sorted(maps.Keys(s.ByCall)) {
		out += fmt.Sprintf(" %s %d,", call, s.ByCall[call])
	}
	return strings.TrimSuffix(out, ",")
}

// finding is a history that failed.
type finding struct {
	Seed uint64
	Text string
}

// run is one of TestSimHistories. Exported fields are what is kept.
type run struct {
	Seed     uint64 // of its first history
	Done     int    // so many have ended, the first ones
	Tally    tally
	Findings []finding
	// Stood are failures of histories in which the process stood still, and that
	// did not fail when they were gone through again: timeouts of the pool go on
	// meanwhile.
	Stood []finding

	file  string // where it is kept; empty: nowhere
	clock *clock

	mu    sync.Mutex
	begun int
	ended map[int]*tally // after the first Done
	err   error          // of saving
}

// TestSimHistories: whatever happens, every disk and snapshot reads as the model
// says, and in the end nothing is left of what nobody can reach.
//
// With -history-dir the run is kept in that directory. One that was cut off goes
// on there, and goes through those again that had not ended.
func TestSimHistories(t *testing.T) {
	// Most of what is allocated is for a moment: a tenth less time.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(4 << 30))
	r := &run{clock: startClock(t)}
	r.resume(t, *historyDir, *firstSeed)
	t.Logf("seeds from %d, %d histories done", r.Seed, r.Done)
	wanted := *histories
	if *most > 0 {
		wanted = min(wanted, r.Done+*most)
	}
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for {
				n, ok := r.next(wanted)
				if !ok {
					return
				}
				sum, failed := r.history(t, r.Seed+uint64(n))
				r.end(n, sum, failed)
			}
		})
	}
	all.Wait()
	t.Log(r.Tally.String())
	if len(r.Stood) > 0 {
		t.Logf("%d failed when the process stood still, and not again", len(r.Stood))
	}
	if r.err != nil {
		t.Error(r.err)
	}
	for _, f := range r.Findings { // last: the end of a log is what is read
		t.Errorf("history %d: %s", f.Seed, f.Text)
	}
}

// resume goes on with the run that is kept in dir, or begins one with this seed;
// 0 draws one.
func (r *run) resume(t *testing.T, dir string, first uint64) {
	t.Helper()
	if dir != "" {
		r.file = filepath.Join(dir, "run.json")
		b, err := os.ReadFile(r.file)
		if err == nil {
			err = json.Unmarshal(b, r)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if r.Seed == 0 {
		if r.Seed = first; r.Seed == 0 {
			r.Seed = 1 + rand.Uint64N(1<<40)
		}
	} else if first != 0 && first != r.Seed {
		t.Fatalf("the run in %s begins with seed %d", dir, r.Seed)
	}
	r.begun, r.ended = r.Done, map[int]*tally{}
}

// next returns which history comes next; false if none does.
func (r *run) next(wanted int) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	findings := 1
	if r.file != "" {
		findings = findingsMax
	}
	if r.begun >= wanted || len(r.Findings) >= findings || r.err != nil {
		return 0, false
	}
	r.begun++
	return r.begun - 1, true
}

// history goes through one.
func (r *run) history(t *testing.T, seed uint64) (*tally, *finding) {
	var before *finding
	for {
		w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 0)), seed: seed, tally: &tally{}, clock: r.clock}
		stops := r.clock.stops.Load()
		err := w.run()
		if err == nil {
			if before != nil {
				r.mu.Lock()
				r.Stood = append(r.Stood, *before)
				r.mu.Unlock()
			}
			return w.tally, nil
		}
		f := &finding{seed, fmt.Sprintf("\n%sseed %d: %v", w.tail(), seed, err)}
		if r.clock.stops.Load() == stops {
			return w.tally, f
		}
		before = f
	}
}

// end counts a history in, when all before it are, and keeps the run.
func (r *run) end(n int, sum *tally, failed *finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended[n] = sum
	if failed != nil {
		r.Findings = append(r.Findings, *failed)
	}
	for r.ended[r.Done] != nil {
		r.Tally.add(r.ended[r.Done])
		delete(r.ended, r.Done)
		r.Done++
	}
	if r.file != "" {
		r.err = errors.Join(r.err, r.save())
	}
}

func (r *run) save() error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.file+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(r.file+".new", r.file)
}
