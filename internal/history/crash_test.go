package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

// crashIn crashes the pool before or after a call that an operation makes, or
// anywhere in a write, or when it is done.
func (w *world) crashIn(ctx context.Context, o op) error {
	if w.rng.IntN(2) == 0 { // where most of the order is
		o = w.work(w.rng.IntN(3))
	}
	if len(o.calls) == 0 {
		return w.do(ctx, o)
	}
	w.note("crash in %s", o.name)
	power := w.rng.IntN(2) == 0
	if power { // what is not stable would be in doubt
		if err := w.flush(); err != nil {
			return err
		}
	}
	old := w.life
	die := w.killer(power)
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	t := &trigger{
		call: o.calls[w.rng.IntN(len(o.calls))], after: w.rng.IntN(2) == 0, skip: max(0, w.rng.IntN(4)-2),
		do: func() { die(); cancel() }, err: errCrash, // nobody waits for the dead
	}
	if w.rng.IntN(4) == 0 {
		t.call = "none"
		old.fs.Limit(w.rng.Int64N(256 << 10))
	}
	old.faults.arm(t)
	err := o.do(ctx)
	cancel()
	old.faults.arm(nil)
	met := t.fired || old.fs.Crashed()
	if t.fired {
		w.note("  at %s, after: %v", t.call, t.after)
		w.tally.at(t.call, 1)
	}
	if err != nil && !met {
		if o.mayFail == nil || !o.mayFail(err) {
			return fmt.Errorf("%s: %w", o.name, err)
		}
		w.note("  refused: %v", err)
	}
	// What was only acknowledged does not survive a loss of power. And after a crash
	// nobody is answered, but here: what the index writes then seems to succeed.
	doubt := met || power && o.weak
	if err == nil && !doubt {
		o.done()
	}
	if !t.fired {
		die()
	}
	w.tally.Crashes++
	if err := old.close(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
		w.note("  closed: %v", err)
	}
	if err := w.reopen(old); err != nil {
		return err
	}
	if doubt {
		w.tally.Doubts++
		if o.settle != nil {
			if err := o.settle(context.Background()); err != nil {
				return fmt.Errorf("after a crash in %s: %w", o.name, err)
			}
		}
	}
	return w.compare()
}

// errCrash is what a call returns in which a life ends.
var errCrash = errors.New("the call met a crash")

// killer returns what ends a life: the process, or the power.
func (w *world) killer(power bool) func() {
	rng := rand.New(rand.NewPCG(w.rng.Uint64(), 1)) // another goroutine's
	l := w.life
	return func() {
		if power {
			l.after = l.fs.Crash(rng, []int{0, 100, rng.IntN(101)}[rng.IntN(3)])
		} else {
			l.after = l.fs.Kill()
		}
	}
}

// flush makes all that was acknowledged stable.
func (w *world) flush() error {
	for name := range w.disks {
		if err := w.life.with(name, func(d nbd.Device) error { return d.Flush(context.Background()) }); err != nil {
			return fmt.Errorf("flush %s: %w", name, err)
		}
	}
	return nil
}

// reopen begins the next life on what the last one left, perhaps with another
// crash in the opening, perhaps without the index.
func (w *world) reopen(old *pool) error {
	fs := old.after
	old.fs.Drop()
	for w.rng.IntN(8) == 0 {
		w.note("  crash in the opening")
		fs.Limit(w.rng.Int64N(64 << 10))
		l, err := w.plan.open(fs, false)
		if err != nil && !fs.Crashed() {
			return fmt.Errorf("open: %w", err)
		}
		next := fs.Kill()
		if l != nil {
			if err := l.close(); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
				w.note("  closed: %v", err)
			}
		}
		fs.Drop()
		fs = next
	}
	rebuilt := w.rng.IntN(6) == 0
	if rebuilt {
		w.note("  without the index")
		w.tally.Recoveries++
		if err := fs.RemoveAll(poolDir + "/index"); err != nil {
			return err
		}
	}
	var err error
	if w.life, err = w.plan.open(fs, rebuilt); err != nil {
		w.life = old // which is closed
		return fmt.Errorf("open after a crash: %w", err)
	}
	if rebuilt && w.rng.IntN(2) == 0 { // else the background, or a later sweep
		return w.life.host.Sweep(context.Background())
	}
	return nil
}

// restart ends a life in good order.
func (w *world) restart() error {
	old := w.life
	if err := old.close(); err != nil {
		return err
	}
	var err error
	if w.life, err = w.plan.open(old.fs, false); err != nil {
		w.life = old
	}
	return err
}

// settleChunks finds out which of its chunks a write that failed has changed.
func (w *world) settleChunks(disk string, d *model, after *image) error {
	found := d.head.clone()
	for _, lba := range d.head.places() {
		a, b := d.head.at[lba], after.at[lba]
		if a == b {
			continue
		}
		err := w.life.compare(disk, d.head, lba, lba+1)
		if err != nil {
			if w.life.compare(disk, after, lba, lba+1) != nil {
				return err
			}
			found.set(lba, b)
		}
	}
	d.head = found
	return nil
}
