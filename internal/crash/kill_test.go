package crash

import (
	"context"
	"encoding/gob"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/internal/failpoint"
	"plinth/internal/host"
)

const (
	killRounds = 30
	// What a run must have gone through to mean anything.
	destagesMin = 100
	trimsMin    = 20
	attachesMin = 10
	// loadTimeMin and loadTimeMax bound the random moment of a kill, and
	// pointTimeMax the wait for an armed point.
	loadTimeMin  = 100 * time.Millisecond
	loadTimeMax  = 2500 * time.Millisecond
	pointTimeMax = 30 * time.Second
)

// tally is what a run went through, at least: what the API said last before each
// death.
type tally struct {
	Rounds, Destages, Trims, Checkpoints, Passes, Attaches, Replayed int64
	Hits                                                             map[failpoint.Point]int
}

func (y *tally) add(l *life) {
	for _, d := range l.last {
		y.Destages += d.Stats.Destages
		y.Trims += d.Stats.LogTrims
		y.Checkpoints += d.Stats.Checkpoints
		y.Passes += d.Stats.Passes
		y.Replayed += d.Stats.OpsReplayed
		if d.Stats.FromCheckpoint {
			y.Attaches++
		}
	}
}

func (y *tally) require(t *testing.T) {
	t.Helper()
	t.Logf("%d kills: %d destage commits, %d log trims, %d checkpoints, %d passes, %d attaches from a checkpoint, %d operations replayed, crashes at %v",
		y.Rounds, y.Destages, y.Trims, y.Checkpoints, y.Passes, y.Attaches, y.Replayed, y.Hits)
	if y.Destages < destagesMin || y.Trims < trimsMin || y.Attaches < attachesMin {
		t.Errorf("too few: want %d destage commits, %d log trims, %d attaches from a checkpoint", destagesMin, trimsMin, attachesMin)
	}
	for _, p := range failpoint.Points {
		if y.Hits[p] == 0 {
			t.Errorf("no crash at the point %q", p)
		}
	}
}

// TestCrashKill kills the program under load, every second time at a random
// moment and else at one of the named points in turn. After each start, every
// write that was ever acknowledged must be there.
//
// PLINTH_CRASH_ROUNDS says how many kills; with PLINTH_CRASH_DIR the run is kept
// in that directory, and one that was cut off goes on.
func TestCrashKill(t *testing.T) {
	rounds := int64(killRounds)
	if text := os.Getenv("PLINTH_CRASH_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	r := &killRun{fleet: newFleet("vm1", "vm2"), dir: os.Getenv("PLINTH_CRASH_DIR")}
	r.Tally.Hits = map[failpoint.Point]int{}
	r.resume(t)
	t.Logf("seed %d, from kill %d on", r.Seed, r.Tally.Rounds)
	for r.Tally.Rounds < rounds {
		r.round(t)
		if t.Failed() {
			t.Fatalf("seed %d, kill %d, data in %s", r.Seed, r.Tally.Rounds, r.site.dir)
		}
		r.Tally.Rounds++
		r.save(t)
	}
	r.finish(t)
	r.Tally.require(t)
	t.Logf("%d operations, of which %d found no space", r.fleet.ops.Load(), r.fleet.full.Load())
}

// killRun is one run of TestCrashKill. Exported fields are what is kept.
type killRun struct {
	Seed    uint64
	Seq     uint64
	Oracles []*oracle
	Tally   tally

	dir   string // where it is kept; empty: nowhere
	site  *site
	fleet *fleet
}

func (r *killRun) file() string { return filepath.Join(r.dir, "run") }

// resume goes on with a run that is kept, or begins one.
func (r *killRun) resume(t *testing.T) {
	t.Helper()
	r.Seed, r.Oracles = rand.Uint64(), r.fleet.oracles
	r.site = newSite(t, r.dir)
	if r.dir == "" {
		r.create(t)
		return
	}
	f, err := os.Open(r.file())
	if os.IsNotExist(err) {
		r.create(t)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.Oracles = nil
	if err := gob.NewDecoder(f).Decode(r); err != nil {
		t.Fatal(err)
	}
	// A round may have been cut off after this was kept: what it wrote is not
	// known, but has higher numbers.
	for _, o := range r.Oracles {
		o.Since = r.Seq + 1
	}
	r.fleet.oracles = r.Oracles
	r.fleet.seq.Store(r.Seq + 1<<32)
}

func (r *killRun) create(t *testing.T) {
	t.Helper()
	l := r.site.start(t, "")
	c, err := l.dial(t, "vm1")
	if err != nil {
		l.kill(t)
		t.Fatal(err, l.tail())
	}
	c.Close()
	if _, err := l.api.CreateDisk(context.Background(), api.CreateDisk{Name: "vm2", Bytes: diskBytes}); err != nil {
		l.kill(t)
		t.Fatal(err)
	}
	l.kill(t)
	r.save(t)
}

// save keeps the run, if it has a directory.
func (r *killRun) save(t *testing.T) {
	t.Helper()
	if r.dir == "" {
		return
	}
	r.Seq = r.fleet.seq.Load()
	f, err := os.Create(r.file() + ".new")
	if err == nil {
		err = gob.NewEncoder(f).Encode(r)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(r.file()+".new", r.file())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// round is one life: check, load, death.
func (r *killRun) round(t *testing.T) {
	t.Helper()
	n := uint64(r.Tally.Rounds)
	rng := rand.New(rand.NewPCG(r.Seed, n))
	var point failpoint.Point
	armed, limit := "", loadTimeMin+rand.N(loadTimeMax-loadTimeMin)
	if n%2 == 1 {
		point = failpoint.Points[int(n/2)%len(failpoint.Points)]
		armed, limit = fmt.Sprintf("%s:%d", point, 1+rng.IntN(4)), pointTimeMax
	}
	l := r.site.start(t, armed)
	if r.fleet.check(t, l) {
		wait := r.fleet.load(t, l, rng.Uint64())
		select {
		case <-l.gone:
		case <-time.After(limit):
			if armed != "" {
				t.Errorf("the point %s was not reached in %v", armed, limit)
			}
		}
		l.kill(t)
		wait()
	} else {
		l.kill(t)
	}
	if t.Failed() {
		t.Log(l.tail())
	}
	if armed != "" {
		r.Tally.Hits[point]++
	}
	r.Tally.add(l)
	if r.dir != "" { // a long run
		t.Logf("kill %d %s: %d operations so far", n, armed, r.fleet.ops.Load())
	}
}

// finish looks at everything once more, by verify too, and after a stop in good
// order.
func (r *killRun) finish(t *testing.T) {
	t.Helper()
	for _, swept := range []bool{false, true} {
		l := r.site.start(t, "")
		if !r.fleet.check(t, l) {
			t.Fatalf("the process died\n%s", l.tail())
		}
		if swept {
			if err := l.api.Sweep(context.Background()); err != nil {
				t.Error(err)
			}
		}
		report, err := l.api.Verify(context.Background(), host.VerifyOptions{})
		if err != nil {
			t.Error(err)
		} else if !report.OK() {
			t.Errorf("verify, swept %t: %d findings, first %+v", swept, len(report.Findings)+report.More, report.Findings[0])
		}
		l.stop(t)
		r.Tally.add(l)
	}
}
