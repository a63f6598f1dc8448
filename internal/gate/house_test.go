package gate

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// machine has as many cores as anybody needs, and a clock of the CPU time used.
type machine struct {
	used  atomic.Int64
	tasks sync.WaitGroup
}

func (m *machine) clock() time.Duration { return time.Duration(m.used.Load()) }

// work uses CPU time.
func (m *machine) work(d time.Duration) {
	time.Sleep(d)
	m.used.Add(int64(d))
}

const testCores = 64

// budget runs a test with a budget of a machine, in a time of its own.
func budget(t *testing.T, cores float64, f func(*testing.T, *machine, *Budget)) {
	synctest.Test(t, func(t *testing.T) {
		m := new(machine)
		b := open(cores, testCores, m.clock)
		f(t, m, b)
		b.Close()
		m.tasks.Wait()
	})
}

// client is closed-loop load on a flow: so many at once, each taking this long.
type client struct {
	flow    *Flow
	depth   int
	cost    time.Duration // in truth
	guess   time.Duration // estimate; 0: the same
	pause   time.Duration // after each
	used    atomic.Int64
	after   time.Time    // when waits count from
	longest atomic.Int64 // wait
}

// run starts it until ctx ends.
func (c *client) run(ctx context.Context, m *machine) {
	if c.guess == 0 {
		c.guess = c.cost
	}
	for range c.depth {
		m.tasks.Go(func() {
			for ctx.Err() == nil {
				asked := time.Now()
				if c.flow.Enter(ctx, float64(c.guess)) != nil {
					return
				}
				if asked.After(c.after) {
					c.longest.Store(max(c.longest.Load(), int64(time.Since(asked))))
				}
				m.work(c.cost)
				c.used.Add(int64(c.cost))
				if c.pause > 0 {
					time.Sleep(c.pause)
				}
			}
		})
	}
}

// cores returns what it used in this time.
func (c *client) cores(d time.Duration) float64 { return float64(c.used.Load()) / float64(d) }

// load runs clients for a time.
func load(t *testing.T, m *machine, d time.Duration, clients ...*client) {
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range clients {
		c.run(ctx, m)
	}
	time.Sleep(d)
	cancel()
}

// within fails the test unless got is so near to want.
func within(t *testing.T, what string, got, want, part float64) {
	t.Helper()
	if got < want*(1-part) || got > want*(1+part) {
		t.Errorf("%s: %.3f, want %.3f within %.0f %%", what, got, want, 100*part)
	}
}
