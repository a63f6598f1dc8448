package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"plinth/internal/failpoint"
	"plinth/internal/host"
)

const snapshotRounds = 12

// TestCrashSnapshots kills the program while snapshots and clones of disks under
// load are made, read, rolled back to and removed, and space is reclaimed under
// them: every second time at a random moment, and else at one of the points of
// snapshots and reclaim in turn. After each start the snapshots that were
// acknowledged are there, groups whole, and hold what they must; so do the
// clones.
//
// PLINTH_CRASH_ROUNDS says how many kills.
func TestCrashSnapshots(t *testing.T) {
	rounds := snapshotRounds
	if text := os.Getenv("PLINTH_CRASH_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := &killRun{fleet: newFleet("vm1", "vm2")}
	r.Seed, r.site = seed, newSite(t, "")
	r.create(t)
	k := newKeeper(r.fleet, seed)
	for n := range rounds {
		k.rng = rand.New(rand.NewPCG(seed, uint64(n)))
		point := failpoint.Point("")
		if n%2 == 1 {
			point = failpoint.SnapshotPoints[n/2%len(failpoint.SnapshotPoints)]
		}
		k.life(t, r.site, point)
		if t.Failed() {
			t.Fatalf("seed %d, kill %d at %q, data in %s", seed, n, point, r.site.dir)
		}
	}
	t.Logf("%d kills, %d operations of the load; %v", rounds, r.fleet.ops.Load(), k.counts)
	for _, name := range []string{"create", "remove", "clone", "drop", "rollback", "read", "reclaim", "write"} {
		if k.counts[name] == 0 {
			t.Errorf("no %s in %d kills", name, rounds)
		}
	}
	k.finish(t, r.site)
}

// life is one: check, load, death.
func (k *keeper) life(t *testing.T, s *site, point failpoint.Point) {
	t.Helper()
	armed, limit := "", loadTimeMin+time.Duration(k.rng.Int64N(int64(2*loadTimeMax)))
	k.favour = ""
	if point != "" {
		armed, limit = fmt.Sprintf("%s:%d", point, 1+k.rng.IntN(2)), pointTimeMax
		if k.favour = "reclaim"; point == failpoint.Mark {
			k.favour = "create"
		}
	}
	l := s.start(t, armed)
	if k.fleet.check(t, l) && k.settle(t, l) {
		wait := k.fleet.load(t, l, k.rng.Uint64())
		ended := make(chan error, 1)
		go func() {
			var err error
			defer func() { ended <- err }() // also when the test has failed there
			err = k.run(t, l)
		}()
		select {
		case <-l.gone:
		case <-time.After(limit):
			if armed != "" {
				t.Errorf("the point %s was not reached in %v", armed, limit)
			}
		}
		l.kill(t)
		wait()
		if err := <-ended; !errors.Is(err, errDied) && !t.Failed() {
			t.Errorf("snapshots: %v", err)
		}
	} else {
		l.kill(t)
	}
	if t.Failed() {
		t.Log(l.tail())
	}
}

// finish removes half of it, reclaims while nothing changes, and sees that nothing
// is wrong and nothing left over.
func (k *keeper) finish(t *testing.T, s *site) {
	t.Helper()
	ctx := context.Background()
	l := s.start(t, "")
	if !k.fleet.check(t, l) || !k.settle(t, l) {
		t.Fatalf("the process died\n%s", l.tail())
	}
	var errs []error
	for range len(k.snaps) / 2 {
		errs = append(errs, k.remove(t, l))
	}
	errs = append(errs, k.drop(t, l))
	for range 2 {
		errs = append(errs, l.api.Quiesce(ctx))
		_, err := l.api.Reclaim(ctx, host.ReclaimOptions{Full: true})
		errs = append(errs, err)
	}
	report, err := l.api.Verify(ctx, host.VerifyOptions{Strict: true})
	if err := errors.Join(append(errs, err)...); err != nil {
		l.kill(t)
		t.Fatal(err, l.tail())
	}
	if !report.OK() {
		t.Errorf("%d findings, first %+v", len(report.Findings)+report.More, report.Findings[0])
	}
	if !k.fleet.check(t, l) || !k.settle(t, l) {
		t.Fatalf("the process died\n%s", l.tail())
	}
	l.stop(t)
}
