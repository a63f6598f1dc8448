package gate

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// The times between two looks at the kernel's clock, which costs some 1 µs.
const (
	lookTimeMin   = 500 * time.Microsecond // while somebody asks
	waitingTime   = time.Millisecond       // while work waits
	shortTime     = 2 * time.Millisecond
	openTime      = 20 * time.Millisecond  // who passes looks sooner
	unlimitedTime = 250 * time.Millisecond // for figures alone
	// figuresTime is what figures are averages over.
	figuresTime = time.Second
)

// Budget holds a process to a number of cores. Open makes one.
type Budget struct {
	clock   func() time.Duration // CPU time of the process
	machine float64              // cores there are

	short     atomic.Bool  // or else work need not ask
	passedMax atomic.Int64 // of flows
	poke      chan struct{}
	stop      chan struct{}
	done      chan struct{}

	mu      sync.Mutex
	state   state
	waiters waiters
	closed  bool
	figures figures
}

// Figures say what a budget does.
type Figures struct {
	// Cores is what the process may use, MachineCores what there is.
	Cores        float64 `json:"cores"`
	MachineCores float64 `json:"machine_cores"`
	// Used is what it used in the last second or two, Wanted that and one core
	// for each piece of work that waited, no more than there are.
	Used   float64 `json:"used_cores"`
	Wanted float64 `json:"wanted_cores"`
	// UsedSeconds is the CPU time that the process has used since its start.
	UsedSeconds float64 `json:"used_seconds"`
}

// Open starts a budget of the process that calls it. cores at or above those of
// the machine are no bound.
func Open(cores float64) *Budget {
	return open(cores, machineCores, processTime)
}

func open(cores, machine float64, clock func() time.Duration) *Budget {
	b := &Budget{
		clock: clock, machine: machine, poke: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	now, used := time.Now(), clock()
	b.state = state{cores: min(cores, machine), at: now, used: used, scale: 1}
	b.state.balance = float64(burstTime) * b.state.cores
	b.figures = figures{at: now, used: used}
	go b.run()
	return b
}

// Close lets all pass from now on.
func (b *Budget) Close() {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		b.state.cores = b.machine
		b.release()
		close(b.stop)
	}
	b.mu.Unlock()
	<-b.done
}

// SetCores changes what the process may use, at once.
func (b *Budget) SetCores(cores float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.look(time.Now())
	b.state.cores = min(cores, b.machine)
	b.state.balance = max(b.state.balance, 0) // what is past was paid at another rate
	b.release()
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

// Figures returns what it does.
func (b *Budget) Figures() Figures {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look(time.Now())
	b.release()
	f := &b.figures
	return Figures{
		Cores: b.state.cores, MachineCores: b.machine, UsedSeconds: b.state.used.Seconds(),
		Used: f.cores, Wanted: min(f.cores+f.waiting, b.machine),
	}
}

// run looks at the clock as often as there is need.
func (b *Budget) run() {
	defer close(b.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-b.poke:
		case <-timer.C:
		}
		timer.Reset(b.turn())
	}
}

// turn looks at the clock, lets pass what may, and returns when to do so again.
func (b *Budget) turn() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.look(time.Now())
	b.release()
	switch {
	case b.unlimited():
		return unlimitedTime
	case len(b.state.waiting) > 0:
		return waitingTime
	case b.state.short:
		return shortTime
	}
	return openTime
}

func (b *Budget) unlimited() bool { return b.state.cores >= b.machine }

// look looks at the clock; b.mu is held.
func (b *Budget) look(now time.Time) {
	elapsed := now.Sub(b.state.at)
	if elapsed <= 0 {
		return
	}
	waiting := 0
	for _, f := range b.state.waiting {
		waiting += f.line.n
	}
	b.state.look(now, b.clock())
	b.figures.add(now, b.state.used, float64(waiting)*elapsed.Seconds())
}

// lookAgain looks and lets pass what may, unless somebody just did; b.mu is held.
func (b *Budget) lookAgain(now time.Time) {
	if now.Sub(b.state.at) >= lookTimeMin {
		b.look(now)
		b.release()
	}
}

// release lets pass what may; b.mu is held.
func (b *Budget) release() {
	for {
		f, w := b.state.next()
		if w == nil && b.unlimited() && len(b.state.waiting) > 0 {
			f = b.state.waiting[0]
			w = f.line.head
			b.state.leave(f, w)
		}
		if w == nil {
			break
		}
		f.waited += b.state.at.Sub(w.since)
		w.ready <- struct{}{}
	}
	b.passedMax.Store(passedMax)
	if b.unlimited() {
		b.state.short = false
		b.passedMax.Store(math.MaxInt64)
	}
	b.short.Store(b.state.short)
}

// figures are averages over a second or more.
type figures struct {
	at             time.Time // since when the next are gathered
	used           time.Duration
	sum            float64 // seconds that work has waited since then
	cores, waiting float64 // the last
}

func (f *figures) add(now time.Time, used time.Duration, waited float64) {
	f.sum += waited
	if since := now.Sub(f.at); since >= figuresTime {
		f.cores, f.waiting = (used-f.used).Seconds()/since.Seconds(), f.sum/since.Seconds()
		f.at, f.used, f.sum = now, used, 0
	}
}
