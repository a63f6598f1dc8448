package owner

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/sim"
)

var (
	simSeed = flag.Uint64("owner-seed", 0, "run this simulation only")
	simRuns = flag.Int("owner-runs", 300, "simulations")
)

const (
	simHosts   = 5
	simDisks   = 4
	simSpan    = 3 * time.Minute // with faults
	simCalm    = time.Minute     // without, and with moves
	simRest    = time.Minute     // without either, at the end
	simTTL     = 10 * time.Second
	simTimeout = 2 * time.Second // of a call, by its caller
	simDrift   = 0.005           // by which each clock's rate differs from 1
)

// world is a registry, data nodes, a network and hosts, in simulated time.
type world struct {
	*sim.Queue         // its time is real
	calm       bool    // no faults
	quiet      bool    // no moves
	early      float64 // part of its time by which the registry ends leases too soon; 0 as it should be
	rate       float64 // of the registry's clock

	revision uint64
	owners   map[id.Disk]ownerKey
	epochs   map[id.Disk]epochKey
	leases   map[datanode.LeaseID]time.Duration // when they end, in real time
	fenced   map[id.Disk]id.Epoch               // by data nodes
	served   map[id.Disk]id.Epoch               // the newest
	content  map[id.Disk]int                    // last acknowledged write
	hosts    []*simHost

	writes, takeovers, handovers, expired int
	wrong                                 error
}

type ownerKey struct {
	host  string
	lease datanode.LeaseID
	epoch id.Epoch
}

type epochKey struct {
	newest id.Epoch
	at     uint64
}

// simHost is a machine with a clock and a connection.
type simHost struct {
	w       *world
	name    string
	machine *Machine
	life    int // counts restarts: answers to an earlier one are lost
	rate    float64
	offset  time.Duration
	cut     time.Duration   // no message passes before
	knows   map[id.Disk]int // content, as of the disk it serves
	wakes   time.Duration   // real; the next that is queued
}

func (w *world) drift() float64 { return 1 + simDrift*(2*w.Rand.Float64()-1) }

func newWorld(seed uint64, early float64) *world {
	w := &world{
		Queue: sim.NewQueue(seed), early: early,
		owners: make(map[id.Disk]ownerKey), epochs: make(map[id.Disk]epochKey), leases: make(map[datanode.LeaseID]time.Duration),
		fenced: make(map[id.Disk]id.Epoch), served: make(map[id.Disk]id.Epoch), content: make(map[id.Disk]int),
	}
	w.rate = w.drift()
	for d := range id.Disk(simDisks) {
		w.epochs[d+1] = epochKey{0, 0}
	}
	for i := range simHosts {
		h := &simHost{w: w, name: fmt.Sprint("h", i), rate: w.drift(), offset: w.Span(0, time.Hour)}
		w.hosts = append(w.hosts, h)
		h.start()
	}
	w.trouble()
	return w
}

// clock is the host's.
func (h *simHost) clock() time.Duration {
	return h.offset + time.Duration(float64(h.w.Now)*h.rate)
}

// start begins a life without memory.
func (h *simHost) start() {
	h.life++
	h.machine, h.knows, h.wakes = New(h.name, Options{TTL: simTTL}), make(map[id.Disk]int), 0
	h.step(nil)
}

// step gives the machine an event and carries out what it says.
func (h *simHost) step(e Event) {
	for _, a := range h.machine.Step(h.clock(), e) {
		h.carry(a)
	}
	wake := h.w.Now + max(time.Duration(float64(h.machine.Wake()-h.clock())/h.rate), 0) + time.Microsecond
	if h.wakes <= h.w.Now || wake < h.wakes {
		h.wakes = wake
		life := h.life
		h.w.After(wake-h.w.Now, func() {
			if h.life == life {
				h.step(nil)
			}
		})
	}
}

// trouble moves disks, cuts hosts off, kills them, reads and writes.
func (w *world) trouble() {
	if w.quiet {
		w.After(time.Minute, w.trouble)
		return
	}
	h := w.hosts[w.Rand.IntN(len(w.hosts))]
	d := id.Disk(1 + w.Rand.IntN(simDisks))
	switch n := w.Rand.IntN(100); {
	case n < 7:
		h.step(Want{d})
	case n < 10:
		h.step(Adopt{d})
	case n < 12:
		h.step(Unwant{d})
	case w.calm:
	case n < 15:
		h.cut = w.Now + w.Span(0, 25*time.Second)
	case n < 17:
		h.start()
	}
	w.After(w.Span(0, 200*time.Millisecond), w.trouble)
}

// check tests what must hold at every instant. What may be replied only becomes
// less with time, so that it is enough to look after each event.
func (w *world) check() {
	for d := id.Disk(1); d <= simDisks; d++ {
		var one *simHost
		for _, h := range w.hosts {
			k := h.machine.disks[d]
			if k == nil || !h.machine.MayReply(d, k.epoch, h.clock()) {
				continue
			}
			if one != nil {
				w.fail("%s and %s both reply for disk %d", one.name, h.name, d)
			}
			one = h
			if h.knows[d] != w.content[d] {
				w.fail("%s reads %d of disk %d, %d was written", h.name, h.knows[d], d, w.content[d])
			}
			if w.fenced[d] == k.epoch { // the data node takes it
				w.content[d]++
				h.knows[d]++
				w.writes++
			}
		}
	}
}

func (w *world) fail(format string, args ...any) {
	if w.wrong == nil {
		w.wrong = fmt.Errorf("at %v: %s", w.Now, fmt.Sprintf(format, args...))
	}
}

// run goes on until a time, or until something is wrong.
func (w *world) run(until time.Duration) {
	for w.wrong == nil && w.Now < until {
		w.Step()
		w.check()
	}
}

// settled tests that a disk that somebody wants is served in the end.
func (w *world) settled() {
	for d := id.Disk(1); d <= simDisks; d++ {
		wanted, served := 0, 0
		for _, h := range w.hosts {
			if k := h.machine.disks[d]; k != nil {
				if k.wanted {
					wanted++
				}
				if h.machine.MayReply(d, k.epoch, h.clock()) {
					served++
				}
			}
		}
		if wanted > 0 && served == 0 {
			w.fail("nobody serves disk %d, which %d want", d, wanted)
		}
	}
}

func simulate(seed uint64, early float64) *world {
	w := newWorld(seed, early)
	w.run(simSpan)
	w.calm = true
	for _, h := range w.hosts {
		h.cut = 0
	}
	w.run(simSpan + simCalm)
	w.quiet = true
	w.run(simSpan + simCalm + simRest)
	if w.wrong == nil {
		w.settled()
	}
	return w
}

func TestSimOwners(t *testing.T) {
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		seeds = nil
		for range *simRuns {
			seeds = append(seeds, rand.Uint64())
		}
	}
	var sum world
	for _, seed := range seeds {
		w := simulate(seed, 0)
		if w.wrong != nil {
			t.Fatalf("-owner-seed %d: %v", seed, w.wrong)
		}
		sum.writes += w.writes
		sum.takeovers += w.takeovers
		sum.handovers += w.handovers
		sum.expired += w.expired
	}
	t.Logf("%d runs: %d claims fenced, %d hand-overs asked for, %d owner keys expired, %d writes", len(seeds), sum.takeovers, sum.handovers, sum.expired, sum.writes)
	if sum.takeovers == 0 || sum.handovers == 0 || sum.expired == 0 {
		t.Error("the simulations went through too little")
	}
}

// A registry that ends leases early is found out: the simulation can fail.
func TestSimFindsEarlyEnds(t *testing.T) {
	for seed := range uint64(100) {
		if w := simulate(seed+1, 0.3); w.wrong != nil {
			t.Logf("seed %d: %v", seed+1, w.wrong)
			return
		}
	}
	t.Error("100 simulations with leases that end early found nothing")
}
