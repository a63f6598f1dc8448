package host

import (
	"context"
	"sync"
	"sync/atomic"

	"plinth/internal/rebuild"
)

// crewMax bounds the layouts that are gone through at once, with those that are being left.
const crewMax = 2 * rebuild.TasksMax

// crew goes through the layouts that this host was given. Of its methods the rebuild's loop
// calls all.
type crew struct {
	h     *Host
	slots chan struct{} // room for rebuildWorkers
	alive atomic.Int64
	work  sync.WaitGroup
	runs  map[uint64]*layoutRebuild // by their tasks' numbers
	done  *restoredSum
}

// restoredSum is what was restored for one row.
type restoredSum struct{ fragments, bytes atomic.Int64 }

func newCrew(h *Host) crew {
	return crew{
		h: h, slots: make(chan struct{}, rebuildWorkers), runs: make(map[uint64]*layoutRebuild), done: new(restoredSum),
	}
}

// follow begins tasks that are new, leaves those that are not there any more, and notes how far the
// others are: ended says that one has come to its end, further that one got on.
func (c *crew) follow(w *rebuild.Work, t *term) (ended, further bool) {
	has := make(map[uint64]bool, len(w.Tasks))
	for i := range w.Tasks {
		task := &w.Tasks[i]
		has[task.Number] = true
		r := c.runs[task.Number]
		switch {
		case task.Ended(): // and is not taken note of yet
			continue
		case r == nil:
			c.begin(task, t)
			continue
		}
		if steps := r.steps.Load(); steps > task.Steps {
			task.Steps, further = steps, true
		}
		select {
		case <-r.ended:
			if ended = true; r.failure != nil {
				task.Error = textOf(r.failure)
			} else {
				task.Outcome = &r.outcome
			}
		default:
		}
	}
	for n, r := range c.runs {
		if !has[n] {
			r.cancel()
			delete(c.runs, n)
		}
	}
	w.Fragments, w.Bytes = c.done.fragments.Load(), c.done.bytes.Load()
	return ended, further
}

// textOf is what a row says of an error.
func textOf(err error) string {
	const textMax = 1024
	text := err.Error()
	return text[:min(len(text), textMax)]
}

// begin goes through a layout, if there is room.
func (c *crew) begin(task *rebuild.Task, t *term) {
	if c.alive.Load() >= crewMax {
		return // what was left has not ended yet
	}
	ctx, cancel := context.WithCancel(c.h.life)
	r := &layoutRebuild{h: c.h, layout: task.Layout, targets: task.Targets, term: t, sum: c.done, cancel: cancel, ended: make(chan struct{})}
	c.runs[task.Number] = r
	c.alive.Add(1)
	c.work.Go(func() {
		defer c.alive.Add(-1)
		defer cancel()
		r.failure = r.run(ctx)
		close(r.ended)
		wake(c.h.rebuild.wake)
	})
}

// reset leaves all tasks: the next are of another row.
func (c *crew) reset() {
	for n, r := range c.runs {
		r.cancel()
		delete(c.runs, n)
	}
	c.done = new(restoredSum)
}

// end leaves all and waits for that.
func (c *crew) end() {
	c.reset()
	c.work.Wait()
}
