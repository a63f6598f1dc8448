package gate

import (
	"context"
	"time"
)

// Door is where the requests of one disk come in.
type Door struct {
	limiter limiter
	flow    *Flow
}

// NewDoor returns a door to a budget, with a disk's limits.
func NewDoor(b *Budget, limits Limits) *Door {
	d := &Door{flow: b.Flow()}
	d.limiter.set(limits)
	return d
}

// Close ends the limits: what waits for them goes on.
func (d *Door) Close() { d.limiter.set(Limits{}) }

// SetLimits changes the limits, for what waits too.
func (d *Door) SetLimits(limits Limits) { d.limiter.set(limits) }

// Enter returns when a request may be done, or with ctx's error.
func (d *Door) Enter(ctx context.Context, op Op) error {
	if err := d.limiter.enter(ctx, op); err != nil {
		return err
	}
	return d.flow.Enter(ctx, op.cost())
}

// TryEnter reports whether a request may be done now, and counts it if so. It does
// not wait.
func (d *Door) TryEnter(op Op) bool {
	if !d.limiter.tryEnter(op) {
		return false
	}
	if !d.flow.TryEnter(op.cost()) {
		d.limiter.giveBack(op)
		return false
	}
	return true
}

// GiveBack is for a request that entered and then was not done: it will enter again.
func (d *Door) GiveBack(op Op) {
	d.limiter.giveBack(op)
	d.flow.passed.Add(int64(-op.cost()))
}

// Waits says what a disk's requests have waited for.
type Waits struct {
	// For the disk's limits, and for CPU time: how many, and how long together.
	Limit        int64   `json:"limit_waits"`
	LimitSeconds float64 `json:"limit_wait_seconds"`
	CPU          int64   `json:"cpu_waits"`
	CPUSeconds   float64 `json:"cpu_wait_seconds"`
}

// Waits returns what requests have waited for.
func (d *Door) Waits() Waits {
	var w Waits
	var cpu, limit time.Duration
	w.CPU, cpu = d.flow.Waits()
	d.limiter.mu.Lock()
	w.Limit, limit = d.limiter.waits, d.limiter.waited
	d.limiter.mu.Unlock()
	w.CPUSeconds, w.LimitSeconds = cpu.Seconds(), limit.Seconds()
	return w
}
