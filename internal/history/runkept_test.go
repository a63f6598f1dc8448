package history

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestRunGoesOn: a run that was cut off goes on after the first histories that all
// ended, with what they found.
func TestRunGoesOn(t *testing.T) {
	dir := t.TempDir()
	r := &run{}
	r.resume(t, dir, 0)
	for range 4 {
		if _, ok := r.next(10); !ok {
			t.Fatal("there is no next history")
		}
	}
	ended := func() *tally {
		sum := &tally{Histories: 1, Ops: 200}
		sum.at("Sync", 2)
		return sum
	}
	r.end(3, ended(), nil)
	r.end(0, ended(), nil)
	r.end(1, ended(), &finding{r.Seed + 1, "wrong"})
	if r.err != nil {
		t.Fatal(r.err)
	}

	next := &run{}
	next.resume(t, dir, 0)
	if next.Seed != r.Seed || next.Done != 2 || len(next.Findings) != 1 || next.Findings[0] != r.Findings[0] {
		t.Fatalf("a run goes on as %+v, want %+v", next, r)
	}
	if got := next.Tally; got.Histories != 2 || got.Ops != 400 || got.ByCall["Sync"] != 4 {
		t.Errorf("two histories count as %+v", got)
	}
	if n, ok := next.next(3); n != 2 || !ok {
		t.Errorf("it goes on with %d, %v", n, ok)
	}
	if n, ok := next.next(3); ok {
		t.Errorf("after all three comes %d", n)
	}

	alone := &run{}
	alone.resume(t, "", 7)
	alone.next(10)
	alone.end(0, ended(), &finding{7, "wrong"})
	if n, ok := alone.next(10); ok {
		t.Errorf("a run that is not kept goes on after a finding, with %d", n)
	}
}

// TestClock: a limit ends a context, and says so, but not before its time.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startClock(t)
		began := time.Now()
		ctx, cancel := c.within(t.Context(), 30*time.Second)
		defer cancel()
		<-ctx.Done()
		if took := time.Since(began); took < 30*time.Second || took > 35*time.Second || context.Cause(ctx) != errHangs {
			t.Errorf("it ended after %v: %v", took, context.Cause(ctx))
		}
		if n := c.stops.Load(); n != 0 {
			t.Errorf("the process stood still %d times", n)
		}
		// Who is stopped takes no ticks.
		ctx, cancel = c.within(t.Context(), 30*time.Second)
		c.ticks.Add(-int64(20 * time.Second / tickTime))
		time.Sleep(40 * time.Second)
		if ctx.Err() != nil {
			t.Error("it ended while the clock stood")
		}
		cancel()
		if time.Sleep(time.Minute); context.Cause(ctx) != context.Canceled {
			t.Errorf("who was cancelled in time got %v", context.Cause(ctx))
		}
	})
}
