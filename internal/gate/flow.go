package gate

import (
	"context"
	"sync/atomic"
	"time"
)

// Flow is a stream of work that takes part in a budget.
type Flow struct {
	budget *Budget
	// passed is the cost of what passed without asking since the last look.
	passed atomic.Int64

	// Guarded by Budget.mu:
	share  float64 // of a background's: its weight for each active disk; 0: a disk's
	weight float64
	finish float64   // virtual time up to which it has been served
	tag    float64   // virtual time at which the head of its line begins
	at     int       // in the heap
	last   time.Time // that something passed
	listed bool      // among the active
	line   line
	waits  int64
	waited time.Duration
}

// Flow returns a flow of the budget: one share. One without work costs nothing.
func (b *Budget) Flow() *Flow {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &Flow{budget: b, weight: 1, finish: b.state.virtual}
}

// Background returns a flow whose weight is that of so many disks for each disk
// that is active: 1 is half of all.
func (b *Budget) Background(share float64) *Flow {
	f := b.Flow()
	f.share = share
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.backgrounds = append(b.state.backgrounds, f)
	return f
}

// TryEnter lets work pass at once or returns false. It takes no time.
func (f *Flow) TryEnter(cost float64) bool {
	if f.pass(cost) {
		return true
	}
	b := f.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.enter(f, cost, time.Now())
}

// passedMax is how much a flow may count without a look at the clock, where there
// is a bound.
const passedMax = int64(time.Millisecond)

// pass lets work pass while the budget is not short.
func (f *Flow) pass(cost float64) bool {
	b := f.budget
	if b.short.Load() {
		return false
	}
	switch passed := f.passed.Add(int64(cost)); {
	case passed == int64(cost): // since the last look it is the first
		b.mu.Lock()
		b.state.list(f)
		b.mu.Unlock()
	case passed > b.passedMax.Load() && b.mu.TryLock(): // or else somebody looks
		b.lookAgain(time.Now())
		b.mu.Unlock()
	}
	return true
}

// enter is TryEnter while the budget is short; b.mu is held.
func (b *Budget) enter(f *Flow, cost float64, now time.Time) bool {
	b.lookAgain(now)
	if !b.short.Load() {
		f.passed.Add(int64(cost))
		return true
	}
	return b.state.try(f, cost)
}

// Enter returns when work may pass, or with ctx's error.
func (f *Flow) Enter(ctx context.Context, cost float64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.pass(cost) {
		return nil
	}
	b := f.budget
	now := time.Now()
	b.mu.Lock()
	if b.enter(f, cost, now) {
		b.mu.Unlock()
		return nil
	}
	w := b.waiters.get()
	w.since, w.cost = now, cost
	f.waits++
	b.state.wait(f, w)
	b.mu.Unlock()
	passed := w.wait(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !passed {
		f.waited += time.Since(w.since)
		select {
		case <-w.ready: // it was let pass meanwhile
		default:
			b.state.leave(f, w)
		}
	}
	b.waiters.put(w)
	if !passed {
		return ctx.Err()
	}
	return nil
}

// Waits returns how often work has waited, and how long altogether.
func (f *Flow) Waits() (int64, time.Duration) {
	f.budget.mu.Lock()
	defer f.budget.mu.Unlock()
	return f.waits, f.waited
}

// Pace returns a function for background work of one goroutine to call now and
// then: it returns when work may go on, and takes what it did since the last return
// for CPU time. While hurry, which may be nil, says that somebody waits for this
// work, it counts and does not wait.
func (f *Flow) Pace(hurry func() bool) func(ctx context.Context) error {
	from := time.Now()
	return func(ctx context.Context) error {
		err := f.step(ctx, float64(min(time.Since(from), stepTimeMax)), hurry)
		from = time.Now()
		return err
	}
}

func (f *Flow) step(ctx context.Context, cost float64, hurry func() bool) error {
	if hurry == nil {
		return f.Enter(ctx, cost)
	}
	for ctx.Err() == nil {
		if hurry() {
			f.passed.Add(int64(cost))
			break
		}
		slice, cancel := context.WithTimeout(ctx, sliceTime)
		err := f.Enter(slice, cost)
		cancel()
		if err == nil {
			break
		}
	}
	return ctx.Err()
}

const (
	// stepTimeMax is what one step of the background costs at most: longer ones have
	// waited for spindles.
	stepTimeMax = 50 * time.Millisecond
	// sliceTime is how long work waits without a look at whether it is to hurry.
	sliceTime = 50 * time.Millisecond
)
