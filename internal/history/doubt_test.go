package history

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"plinth/datanode"
	"plinth/internal/host"
)

// errLost is what a call returns whose answer is lost.
var errLost = errors.New("the answer is lost")

// loseIn lets an operation lose an answer, or not get through with a call. Who
// wants to know what became of it asks the next life.
func (w *world) loseIn(ctx context.Context, o op) error {
	calls := []string{"RegistryCommit"}
	if o.settle == nil || w.rng.IntN(2) == 0 {
		o = w.work(1 + w.rng.IntN(2))
		calls = []string{"RegistryCommit", "SetLists", "Condemn", "Forward", "Reclaim", "Publish", "CompleteIndex"}
	}
	w.note("lose an answer in %s", o.name)
	t := &trigger{
		call: calls[w.rng.IntN(len(calls))], after: w.rng.IntN(2) == 0, skip: max(0, w.rng.IntN(4)-2),
		do: func() {}, err: errLost,
	}
	w.life.faults.arm(t)
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	err := o.do(ctx)
	w.life.faults.arm(nil)
	switch {
	case err == nil:
		o.done()
		return w.look(o)
	case !t.fired && o.mayFail != nil && o.mayFail(err):
		return nil
	case !t.fired:
		return fmt.Errorf("%s: %w", o.name, err)
	}
	w.note("  at %s, after: %v: %v", t.call, t.after, err)
	w.tally.Lost++
	if err := w.restart(); err != nil {
		return err
	}
	if o.settle != nil {
		if err := o.settle(ctx); err != nil {
			return fmt.Errorf("after a lost answer in %s: %w", o.name, err)
		}
	}
	return w.compare()
}

// takeOver stops a host in the middle of its work, opens another one, and lets
// the first go on some time later: nothing that it does may count.
func (w *world) takeOver(ctx context.Context) error {
	if w.life.other != nil {
		return w.leave(ctx)
	}
	if err := w.flush(); err != nil {
		return err
	}
	old, o := w.life, w.work(w.rng.IntN(2))
	reached, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	t := &trigger{
		call: o.calls[w.rng.IntN(len(o.calls))], after: w.rng.IntN(2) == 0, skip: max(0, w.rng.IntN(4)-2),
		do: func() { close(reached); <-resume },
	}
	w.note("take over in %s, at %s, after: %v", o.name, t.call, t.after)
	old.faults.arm(t)
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	go func() { ended <- o.do(ctx) }()
	select {
	case err := <-ended: // it does not come by
		old.faults.arm(nil)
		close(resume) // for who does now
		return err
	case <-reached:
	case <-ctx.Done():
		return fmt.Errorf("%s hangs", o.name)
	}
	next := &pool{fs: old.fs, node: old.node, faults: &faults{Node: old.node}, clock: old.clock}
	var err error
	if next.host, err = w.plan.host(ctx, next, "host"); err != nil {
		close(resume)
		<-ended
		return fmt.Errorf("open another host: %w", err)
	}
	w.life = next
	w.tally.Takeovers++
	err = w.someBeside(ctx)
	close(resume)
	w.note("  the first one goes on")
	e := <-ended // an error, or all was done before
	w.note("  it got: %v", e)
	if e := old.host.Close(); e != nil {
		w.note("  it closed with: %v", e)
	}
	if err == nil {
		err = w.compare()
	}
	if err == nil {
		err = w.restart() // as the mover may be the first one's
	}
	return err
}

// beside has a pass wait when it has looked at the map, and writes and destages
// meanwhile: what is found again then must not be given up by the pass.
func (w *world) beside(ctx context.Context) error {
	o := w.work(1 + w.rng.IntN(2))
	reached, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	t := &trigger{call: "RegistryList", skip: w.rng.IntN(3), do: func() { close(reached); <-resume }}
	w.note("beside %s", o.name)
	w.life.faults.arm(t)
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	go func() { ended <- o.do(ctx) }()
	select {
	case err := <-ended:
		w.life.faults.arm(nil)
		close(resume)
		return err
	case <-reached:
	}
	var err error
	for n := 1 + w.rng.IntN(5); n > 0 && err == nil; n-- {
		err = w.do(ctx, []func() op{w.write, w.write, w.zero, w.trim}[w.rng.IntN(4)]())
	}
	if err == nil {
		err = w.do(ctx, w.work(0))
	}
	close(resume)
	w.note("  %s goes on", o.name)
	if err = errors.Join(err, <-ended); err == nil {
		err = w.compare()
	}
	if err != nil {
		return err
	}
	if st, err := w.life.node.Status(ctx); err != nil || !st.Index.Complete {
		return err
	}
	return w.verify(ctx, false)
}

// someBeside carries out some operations while another host is about. It leaves
// out what the other one, which does not know that it lost its disks, may hinder:
// reclaim, as that has one mover; verify, which takes what it is writing for a
// leak; removals of disks, as nobody gives up what it writes for those later.
func (w *world) someBeside(ctx context.Context) error {
	for range 1 + w.rng.IntN(6) {
		o := w.draw(0)
		if slices.ContainsFunc([]string{"restart", "reclaim", "sweep and verify", "remove disk"}, func(name string) bool {
			return strings.HasPrefix(o.name, name)
		}) {
			continue
		}
		if err := w.do(ctx, o); err != nil && !givenUpByBoth(err) {
			return err
		}
	}
	return nil
}

// givenUpByBoth reports whether all that failed is that the other host, whose background
// work goes on too, was giving up the same removed disks: they stay to be given up.
func givenUpByBoth(err error) bool {
	for line := range strings.Lines(err.Error()) {
		if !strings.Contains(line, "the removed disk") || !strings.Contains(line, datanode.ErrFenced.Error()) {
			return false
		}
	}
	return true
}

// listsAgain delivers some list update once more, as a network might: it must
// change nothing.
func (w *world) listsAgain(ctx context.Context) error {
	w.life.faults.mu.Lock()
	lists := w.life.faults.lists
	w.life.faults.mu.Unlock()
	if len(lists) == 0 {
		return nil
	}
	r := lists[w.rng.IntN(len(lists))]
	if !slices.ContainsFunc(w.life.host.Disks(), func(d host.DiskInfo) bool { return d.ID == r.Disk }) {
		return nil // who was removed does not come back
	}
	_, err := w.life.node.SetLists(ctx, r)
	for _, gone := range []error{datanode.ErrNotFound, datanode.ErrFenced, datanode.ErrGone} { // disk or segment
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}
