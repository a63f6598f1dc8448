package gate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A saturating load uses just the budget, whatever its cost and its estimate, also
// beside work that no gate holds back.
func TestSimBudgetIsUsedAndKept(t *testing.T) {
	const long = 15 * time.Second
	for _, cores := range []float64{0.3, 1, 3} {
		for _, cost := range []time.Duration{100 * time.Microsecond, 3 * time.Millisecond} {
			for _, guessed := range []float64{0.3, 3} {
				for _, ungated := range []float64{0, 0.4} {
					t.Run(fmt.Sprint(cores, cost, guessed, ungated), func(t *testing.T) {
						budget(t, cores, func(t *testing.T, m *machine, b *Budget) {
							ctx, cancel := context.WithCancel(t.Context())
							m.tasks.Go(func() {
								for ctx.Err() == nil && ungated > 0 {
									m.work(10 * time.Millisecond)
									time.Sleep(time.Duration(float64(10*time.Millisecond) * (1/(ungated*cores) - 1)))
								}
							})
							c := &client{flow: b.Flow(), depth: 64, cost: cost, guess: time.Duration(guessed * float64(cost))}
							if ungated*cores > 1 {
								cancel() // one goroutine is no more than a core
							}
							load(t, m, long, c)
							cancel()
							within(t, "cores", m.clock().Seconds()/long.Seconds(), cores, 0.05)
						})
					})
				}
			}
		}
	}
}

// A change of cores is in force within a second.
func TestSimSetCores(t *testing.T) {
	budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := &client{flow: b.Flow(), depth: 32, cost: 50 * time.Microsecond}
		c.run(ctx, m)
		time.Sleep(5 * time.Second)
		for _, cores := range []float64{4, 0.5, 2, 1} {
			b.SetCores(cores)
			before := m.clock()
			time.Sleep(time.Second)
			within(t, fmt.Sprintf("first second of %v", cores), (m.clock() - before).Seconds(), cores, 0.1)
			before = m.clock()
			time.Sleep(4 * time.Second)
			within(t, fmt.Sprintf("later seconds of %v", cores), (m.clock()-before).Seconds()/4, cores, 0.05)
			f := b.Figures()
			within(t, "figure of used cores", f.Used, cores, 0.05)
			if f.Cores != cores || f.Wanted < f.Used || f.Wanted > testCores {
				t.Errorf("figures of %v cores: %+v", cores, f)
			}
		}
		b.SetCores(testCores)
		time.Sleep(time.Second)
		_, waited := c.flow.Waits()
		time.Sleep(3 * time.Second)
		if _, now := c.flow.Waits(); now != waited {
			t.Errorf("waited %v without a bound", now-waited)
		}
		within(t, "cores without a bound", b.Figures().Used, 32, 0.05)
	})
}

// Disks at full load share evenly, whatever the depth of their queues and the cost
// of what they ask for.
func TestFlowsShareEvenly(t *testing.T) {
	const long = 5 * time.Second
	budget(t, 2, func(t *testing.T, m *machine, b *Budget) {
		clients := []*client{
			{flow: b.Flow(), depth: 4, cost: 30 * time.Microsecond},
			{flow: b.Flow(), depth: 128, cost: 30 * time.Microsecond},
			{flow: b.Flow(), depth: 16, cost: 2 * time.Millisecond},
			{flow: b.Flow(), depth: 64, cost: 100 * time.Microsecond},
		}
		load(t, m, long, clients...)
		for i, c := range clients {
			within(t, fmt.Sprintf("cores of client %d", i), c.cores(long), 0.5, 0.1)
		}
	})
}

// A disk that uses less than its share does not wait, however many others ask for
// all there is.
func TestSimLightFlowDoesNotWait(t *testing.T) {
	for _, heavies := range []int{1, 3, 20} {
		t.Run(fmt.Sprint(heavies), func(t *testing.T) {
			budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
				// Half of a fair share.
				light := &client{flow: b.Flow(), depth: 2, cost: 40 * time.Microsecond}
				light.pause = time.Duration(4*(heavies+1)-1) * light.cost
				clients := []*client{light}
				for range heavies {
					clients = append(clients, &client{flow: b.Flow(), depth: 32, cost: 40 * time.Microsecond})
				}
				light.after = time.Now().Add(time.Second)
				load(t, m, 5*time.Second, clients...)
				if longest := time.Duration(light.longest.Load()); longest > 100*time.Microsecond {
					t.Errorf("waited up to %v", longest)
				}
				if longest := time.Duration(clients[1].longest.Load()); longest < 200*time.Microsecond {
					t.Errorf("others waited up to %v only: the budget was not short", longest)
				}
				within(t, "cores", m.clock().Seconds()/5, 1, 0.05)
			})
		})
	}
}

// Nor does it while rounds of the background run the budget into debt, when its
// promised part is less than it uses.
func TestLightFlowDoesNotWaitForDebts(t *testing.T) {
	budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
		light := &client{flow: b.Flow(), depth: 2, cost: 40 * time.Microsecond, pause: 19 * 40 * time.Microsecond, after: time.Now().Add(time.Second)}
		clients := []*client{light}
		for range 3 {
			clients = append(clients, &client{flow: b.Flow(), depth: 32, cost: 40 * time.Microsecond})
		}
		ctx, cancel := context.WithCancel(t.Context())
		m.tasks.Go(func() {
			pace := b.Background(1).Pace(nil)
			for ctx.Err() == nil {
				time.Sleep(time.Second)
				for range 3 {
					var writers sync.WaitGroup
					for range 3 {
						writers.Go(func() { m.work(40 * time.Millisecond) })
					}
					writers.Wait()
					_ = pace(ctx)
				}
			}
		})
		load(t, m, 6*time.Second, clients...)
		cancel()
		if longest := time.Duration(light.longest.Load()); longest > 100*time.Microsecond {
			t.Errorf("waited up to %v", longest)
		}
		if longest := time.Duration(clients[1].longest.Load()); longest < 20*time.Millisecond {
			t.Errorf("others waited up to %v only: there was no debt", longest)
		}
	})
}

// The background has as much as all disks, if it asks for it, and what it leaves
// goes to the disks.
func TestSimBackgroundHasItsShare(t *testing.T) {
	const long = 5 * time.Second
	for _, disks := range []int{1, 5} {
		for _, share := range []float64{1, 0.25} {
			t.Run(fmt.Sprint(disks, share), func(t *testing.T) {
				budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
					back := b.Background(share)
					var clients []*client
					for range disks {
						clients = append(clients, &client{flow: b.Flow(), depth: 32, cost: 40 * time.Microsecond})
					}
					ctx, cancel := context.WithCancel(t.Context())
					var used atomic.Int64
					m.tasks.Go(func() {
						pace := back.Pace(nil)
						for pace(ctx) == nil {
							m.work(10 * time.Millisecond)
							used.Add(int64(10 * time.Millisecond))
						}
					})
					load(t, m, long, clients...)
					cancel()
					weight := max(share*float64(disks), 1)
					within(t, "cores of the background", float64(used.Load())/float64(long), weight/(weight+float64(disks)), 0.15)
					within(t, "cores", m.clock().Seconds()/long.Seconds(), 1, 0.05)
				})
			})
		}
	}
}

// No flow starves in a random mix: each that always has work gets half of an even
// share at least, though what no gate holds back uses most of the budget.
func TestSimNoFlowStarves(t *testing.T) {
	const long = 5 * time.Second
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%#x", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			cores := 0.3 + 4*rng.Float64()
			budget(t, cores, func(t *testing.T, m *machine, b *Budget) {
				ctx, cancel := context.WithCancel(t.Context())
				ungated := min(rng.Float64()*0.6*cores, 0.9)
				m.tasks.Go(func() {
					for ctx.Err() == nil {
						m.work(time.Millisecond)
						time.Sleep(time.Duration(float64(time.Millisecond) * (1/ungated - 1)))
					}
				})
				var clients []*client
				weights := 0.
				for range 1 + rng.IntN(10) {
					c := &client{flow: b.Flow(), depth: 8 + rng.IntN(100), cost: time.Duration(20+rng.IntN(1000)) * time.Microsecond}
					c.guess = time.Duration(float64(c.cost) * (0.7 + 0.6*rng.Float64()))
					clients = append(clients, c)
					weights++
				}
				back := &client{flow: b.Background(1), depth: 1, cost: 10 * time.Millisecond}
				clients, weights = append(clients, back), 2*weights
				load(t, m, long, clients...)
				cancel()
				for i, c := range clients {
					even := (cores - ungated) / weights
					if c == back {
						even *= weights / 2
					}
					// The background is one goroutine.
					if got := c.cores(long); got < min(even/2, 0.5) {
						t.Errorf("client %d of %d, cost %v, guess %v, depth %d: %.4f cores, even is %.4f", i, len(clients), c.cost, c.guess, c.depth, got, even)
					}
				}
				if got := m.clock().Seconds() / long.Seconds(); got > cores*1.05 {
					t.Errorf("%.3f cores used of %.3f", got, cores)
				}
			})
		})
	}
}

// A flow goes on though everything that is earned is used by what no gate holds
// back.
func TestPromiseHolds(t *testing.T) {
	budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
		ctx, cancel := context.WithCancel(t.Context())
		for range 3 {
			m.tasks.Go(func() {
				for ctx.Err() == nil {
					m.work(time.Millisecond)
				}
			})
		}
		c := &client{flow: b.Flow(), depth: 8, cost: 50 * time.Microsecond}
		load(t, m, 10*time.Second, c)
		cancel()
		if got := c.cores(10 * time.Second); got < 0.05 {
			t.Errorf("%.4f cores", got)
		}
	})
}

// Who gives up leaves the line, and who comes after it goes on.
func TestEnterEndsWithContext(t *testing.T) {
	budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
		f := b.Flow()
		m.used.Add(int64(200 * time.Millisecond)) // a debt
		time.Sleep(2 * openTime)
		if err := f.Enter(t.Context(), 1e8); err != nil {
			t.Error(err)
		}
		if f.TryEnter(1) {
			t.Error("the budget is not short")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := f.Enter(ctx, 1e9); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if waited := time.Since(began); waited != 5*time.Millisecond {
			t.Errorf("waited %v", waited)
		}
		if err := f.Enter(t.Context(), 1000); err != nil {
			t.Error(err)
		}
		if err := f.Enter(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if n, waited := f.Waits(); n < 2 || waited < 5*time.Millisecond {
			t.Errorf("%d waits of %v", n, waited)
		}
	})
}

// Work for which somebody waits goes on though the budget is deep in debt, also when
// it waits already, and pays for what it does.
func TestHurry(t *testing.T) {
	budget(t, 0.1, func(t *testing.T, m *machine, b *Budget) {
		var hurry atomic.Bool
		back, f := b.Background(1), b.Flow()
		pace := back.Pace(hurry.Load)
		m.used.Add(int64(time.Hour))
		time.Sleep(2 * openTime)
		for range 5 { // uses up what it may be behind
			m.work(100 * time.Millisecond)
			if err := pace(t.Context()); err != nil {
				t.Error(err)
			}
		}
		m.tasks.Go(func() {
			time.Sleep(10 * time.Millisecond)
			hurry.Store(true)
		})
		began := time.Now()
		for range 10 {
			m.work(time.Second)
			if err := pace(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began) - 10*time.Second; took > 2*sliceTime {
			t.Errorf("ten steps of work for which others wait have waited %v", took)
		}
		if f.TryEnter(1e9) && f.TryEnter(1) {
			t.Error("nobody pays for it")
		}
		hurry.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := pace(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after it, error %v", err)
		}
	})
}

// Close lets go what waits, and all that comes.
func TestCloseLetsPass(t *testing.T) {
	budget(t, 1, func(t *testing.T, m *machine, b *Budget) {
		f := b.Flow()
		m.used.Add(int64(time.Hour))
		time.Sleep(2 * openTime)
		passed := make(chan error)
		for range 10 {
			go func() { passed <- f.Enter(t.Context(), 1e12) }()
		}
		time.Sleep(time.Millisecond)
		b.Close()
		b.Close()
		for range 10 {
			if err := <-passed; err != nil {
				t.Error(err)
			}
		}
		if !f.TryEnter(1e12) {
			t.Error("a closed budget holds back")
		}
		b.SetCores(1)
		if err := f.Enter(t.Context(), 1e12); err != nil {
			t.Error(err)
		}
	})
}
