package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// clientTime is what an operation takes.
const clientTime = time.Millisecond

// rate has so many clients pass operations for a time, and returns how many passed
// per second and their bytes.
func rate(t *testing.T, d *Door, clients int, long time.Duration, ops ...Op) (iops, bps float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	var tasks sync.WaitGroup
	var mu sync.Mutex
	for i := range clients {
		tasks.Go(func() {
			for d.Enter(ctx, ops[i%len(ops)]) == nil {
				mu.Lock()
				iops++
				bps += float64(ops[i%len(ops)].Bytes)
				mu.Unlock()
				time.Sleep(clientTime)
			}
		})
	}
	tasks.Wait()
	return iops / long.Seconds(), bps / long.Seconds()
}

// door runs a test with a door of limits and a budget without bound.
func door(t *testing.T, limits Limits, f func(*testing.T, *Door)) {
	synctest.Test(t, func(t *testing.T) {
		b := open(testCores, testCores, new(machine).clock)
		defer b.Close()
		d := NewDoor(b, limits)
		defer d.Close()
		f(t, d)
	})
}

func TestSimLimitsAreKept(t *testing.T) {
	read, write := Op{Read, 4096}, Op{Write, 16384}
	for _, c := range []struct {
		limits    Limits
		ops       []Op
		iops, bps float64 // 0: not looked at
	}{
		{Limits{IOPS: 1000}, []Op{read, write}, 1000, 0},
		{Limits{IOPS: 1000, BurstSeconds: 0.01}, []Op{read}, 1000, 0},
		{Limits{BPS: 8 << 20}, []Op{read, write}, 0, 8 << 20},
		{Limits{BPS: 8 << 20}, []Op{{Write, 32 << 20}}, 0, 8 << 20},
		{Limits{ReadIOPS: 500}, []Op{read}, 500, 0},
		{Limits{WriteIOPS: 500}, []Op{write}, 500, 0},
		{Limits{ReadBPS: 2 << 20}, []Op{read}, 512, 2 << 20},
		{Limits{WriteBPS: 2 << 20}, []Op{write}, 128, 2 << 20},
		{Limits{IOPS: 1000, BPS: 8 << 20}, []Op{write}, 512, 8 << 20},
		{Limits{IOPS: 100, BPS: 1 << 30, WriteIOPS: 1000}, []Op{write}, 100, 0},
		{Limits{WriteIOPS: 200}, []Op{{Clear, 0}}, 200, 0},
		// What is not limited is not held back.
		{Limits{WriteIOPS: 10, WriteBPS: 1 << 20}, []Op{read}, 16 / clientTime.Seconds(), 0},
		{Limits{ReadIOPS: 10, ReadBPS: 1 << 20}, []Op{write}, 16 / clientTime.Seconds(), 0},
		{Limits{IOPS: 10, BPS: 1 << 20}, []Op{{Kind: Other}}, 16 / clientTime.Seconds(), 0},
		{Limits{}, []Op{read, write}, 16 / clientTime.Seconds(), 0},
	} {
		t.Run(fmt.Sprint(c.limits, c.ops), func(t *testing.T) {
			door(t, c.limits, func(t *testing.T, d *Door) {
				_, _ = rate(t, d, 1, time.Second, c.ops...) // uses up the burst
				iops, bps := rate(t, d, 16, 20*time.Second, c.ops...)
				if c.iops > 0 {
					within(t, "operations per second", iops, c.iops, 0.02)
				}
				if c.bps > 0 {
					// One operation's bytes may be on either side of the end.
					within(t, "bytes per second", bps, c.bps, 0.02+float64(c.ops[0].Bytes)/c.bps/20)
				}
			})
		})
	}
}

// What was saved up passes at once, and no more than that.
func TestBurst(t *testing.T) {
	door(t, Limits{IOPS: 100, BurstSeconds: 30}, func(t *testing.T, d *Door) {
		for round := range 2 {
			n := 0
			for d.TryEnter(Op{Read, 4096}) {
				n++
			}
			if n != 3000 {
				t.Errorf("round %d: %d operations passed at once, not 3000", round, n)
			}
			time.Sleep(time.Minute)
		}
	})
}

// A change of limits counts for what waits.
func TestSetLimitsWhileWaiting(t *testing.T) {
	door(t, Limits{BPS: 1 << 20}, func(t *testing.T, d *Door) {
		if !d.TryEnter(Op{Write, 30 << 20}) {
			t.Fatal("the first operation waits")
		}
		if d.TryEnter(Op{Read, 1}) {
			t.Fatal("the second operation does not wait")
		}
		passed := make(chan time.Duration)
		began := time.Now()
		for range 3 {
			go func() {
				if err := d.Enter(t.Context(), Op{Read, 10 << 20}); err != nil {
					t.Error(err)
				}
				passed <- time.Since(began)
			}()
		}
		time.Sleep(time.Second)
		d.SetLimits(Limits{BPS: 10 << 20, BurstSeconds: 0.1})
		for i := range 3 {
			// Nine tenths of what passed before the last wait for it to be earned.
			want := time.Second + time.Duration(i)*time.Second
			if got := <-passed; got < want-150*time.Millisecond || got > want+time.Millisecond {
				t.Errorf("operation %d passed after %v, not %v", i, got, want)
			}
		}
		d.SetLimits(Limits{IOPS: 10})
		for d.TryEnter(Op{Read, 1}) {
		}
		go func() {
			_ = d.Enter(t.Context(), Op{Read, 1})
			passed <- 0
		}()
		synctest.Wait()
		began = time.Now()
		d.SetLimits(Limits{})
		if <-passed; time.Since(began) != 0 {
			t.Errorf("waited %v without a limit", time.Since(began))
		}
		if w := d.Waits(); w.Limit != 4 || w.LimitSeconds < 6-0.5 || w.CPU != 0 {
			t.Errorf("waits: %+v", w)
		}
	})
}

// A queue too deep for its limit is not held until its requests' time is over, and
// the limit holds again when it has gone.
func TestLimitGivesWay(t *testing.T) {
	door(t, Limits{BPS: 1 << 20}, func(t *testing.T, d *Door) {
		var tasks sync.WaitGroup
		for range 512 {
			tasks.Go(func() {
				began := time.Now()
				if err := d.Enter(t.Context(), Op{Write, 1 << 20}); err != nil || time.Since(began) > limitWaitMax {
					t.Errorf("passed after %v with %v", time.Since(began), err)
				}
			})
		}
		tasks.Wait()
		time.Sleep(limitWaitMax + time.Second)
		if _, bps := rate(t, d, 4, 20*time.Second, Op{Write, 64 << 10}); bps > 1.05*(1<<20) {
			t.Errorf("%.0f bytes per second after it", bps)
		}
	})
}

// Who gives up while it waits takes nothing from others.
func TestLimitEndsWithContext(t *testing.T) {
	door(t, Limits{IOPS: 10}, func(t *testing.T, d *Door) {
		for d.TryEnter(Op{Read, 1}) {
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		var tasks sync.WaitGroup
		for range 100 {
			tasks.Go(func() {
				if err := d.Enter(ctx, Op{Read, 1}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		if err := d.Enter(t.Context(), Op{Read, 1}); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited > 110*time.Millisecond {
			t.Errorf("waited %v behind who gave up", waited)
		}
		tasks.Wait()
	})
}

func TestLimitsValidate(t *testing.T) {
	for _, l := range []Limits{{IOPS: 9}, {ReadIOPS: -1}, {BPS: 1000}, {WriteBPS: 1 << 51}, {BurstSeconds: -1}, {BurstSeconds: 3601}} {
		if err := l.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: error %v", l, err)
		}
	}
	for _, l := range []Limits{{}, {IOPS: 10, BPS: 1 << 20, BurstSeconds: 3600}, {ReadIOPS: 1 << 50}} {
		if err := l.Validate(); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestCPU(t *testing.T) {
	for _, c := range []struct {
		cpu     CPU
		machine float64
		want    float64 // 0: invalid
	}{
		{CPU{}, 8, 8},
		{CPU{Mode: "fast"}, 64, 12.8}, {CPU{Mode: "fast"}, 8, 2}, {CPU{Mode: "fast"}, 1, 1},
		{CPU{Mode: "insane"}, 64, 25.6}, {CPU{Mode: "insane"}, 4, 2},
		{CPU{Cores: 0.5}, 2, 0.5}, {CPU{Cores: 3}, 2, 2},
		{CPU{Cores: 0.01}, 2, 0}, {CPU{Cores: -1}, 2, 0}, {CPU{Cores: 1e9}, 2, 0},
		{CPU{Mode: "slow"}, 2, 0}, {CPU{Mode: "fast", Cores: 1}, 2, 0},
	} {
		got, err := c.cpu.of(c.machine)
		if errors.Is(err, ErrInvalid) != (c.want == 0) || err == nil && got != c.want {
			t.Errorf("%+v of %v cores: %v, %v", c.cpu, c.machine, got, err)
		}
	}
}

// What the process uses is what it works.
func TestProcessTime(t *testing.T) {
	before := processTime()
	for began := time.Now(); time.Since(began) < 20*time.Millisecond; {
	}
	if used := processTime() - before; used <= 0 || used > time.Minute {
		t.Errorf("a loop of 20 ms used %v", used)
	}
}

// Nothing is allocated, whether requests pass, are limited or wait for CPU time.
func TestEnterAllocatesNothing(t *testing.T) {
	b := open(testCores, testCores, processTime)
	defer b.Close()
	d := NewDoor(b, Limits{})
	defer d.Close()
	enter := func() {
		if err := d.Enter(t.Context(), Op{Write, 4096}); err != nil {
			t.Fatal(err)
		}
		d.TryEnter(Op{Read, 4096})
	}
	if n := testing.AllocsPerRun(1000, enter); n > 0 {
		t.Errorf("%v allocations per request", n)
	}
	d.SetLimits(Limits{IOPS: 20000, BurstSeconds: 0.0001})
	if n := testing.AllocsPerRun(500, enter); n > 0.1 {
		t.Errorf("%v allocations per limited request", n)
	}
}

func BenchmarkEnter(b *testing.B) {
	budget := Open(1 << 20)
	defer budget.Close()
	ctx := context.WithoutCancel(b.Context())
	for _, c := range []struct {
		name  string
		doors int
	}{{"OneDisk", 1}, {"DiskEach", 64}} {
		b.Run(c.name, func(b *testing.B) {
			doors := make([]*Door, c.doors)
			for i := range doors {
				doors[i] = NewDoor(budget, Limits{})
				defer doors[i].Close()
			}
			b.ReportAllocs()
			var mu sync.Mutex
			next := 0
			b.RunParallel(func(pb *testing.PB) {
				mu.Lock()
				d := doors[next%len(doors)]
				next++
				mu.Unlock()
				for pb.Next() {
					_ = d.Enter(ctx, Op{Write, 4096})
				}
			})
		})
	}
}

// BenchmarkLook is what a look at the clock takes with 1,000 disks, of which 100 are active.
func BenchmarkLook(b *testing.B) {
	budget := open(1, testCores, processTime)
	defer budget.Close()
	flows := make([]*Flow, 1000)
	for i := range flows {
		flows[i] = budget.Flow()
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, f := range flows[:100] {
			f.TryEnter(1)
		}
		budget.mu.Lock()
		budget.look(time.Now())
		budget.mu.Unlock()
	}
}
