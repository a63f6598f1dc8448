package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/owner"
)

const (
	hostCount = 3
	diskFirst = 2  // disks at the beginning
	disksMax  = 14 // disks ever, from 1 on
	disksLive = 4
	moverDisk = id.Disk(disksMax + 1)
	blocks    = 8 // of a disk
	contents  = 40

	leaseTTL = 2 * time.Second
	callTime = time.Second // after which a caller gives up
	driftMax = 0.005       // by which a clock's rate differs from 1
	lateMax  = 5 * time.Second

	opsWanted    = 1000
	faultsWanted = 20
	troubleMax   = 20 * time.Minute // by when both were done
)

// flaw is what is wrong with a world: each must be found out.
type flaw uint8

const (
	sound            flaw = iota
	epochUnchecked        // nodes take records under any epoch
	ackedEarly            // one node's answer counts for all
	servedUnfenced        // nodes are asked what they have, and not fenced
	zombieReplies         // replies leave after the lease
	syncForgotten         // a node's sync does nothing
	trimmedEarly          // a log is trimmed before the result is stable
	checkpointAhead       // a checkpoint has a result that is in no log yet
	pinIgnored            // a pass gives up what a clone needs
	pinForgotten          // an older list of clones unholds a new one
	lookupUnheld          // the index finds what it does not register
	passForgets           // a pass forgets what was looked up beside it
	passTooSoon           // a pass gives up what the newest checkpoint names
	copyUnheld            // what moved is not held by who held it
	rowBeforeMark         // a snapshot's row comes before its mark is stable
	unpublished           // look-ups are not made stable before their result
	markOutOfOrder        // a result covers operations on both sides of a mark
	reusedAfterFence      // a former owner's checkpoint record is not guarded
	anewUnsaid            // a node that was made anew says it is the one before
	flaws
)

func (f flaw) String() string {
	return [...]string{"sound", "epoch unchecked", "acknowledged early", "served unfenced", "zombie replies", "sync forgotten", "log trimmed early",
		"checkpoint ahead of the log", "pin ignored", "pin forgotten", "look-up unheld", "pass forgets look-ups", "pass before its checkpoint", "copy unheld",
		"row before its mark", "look-ups not stable", "result over a mark", "checkpoint record unguarded", "node made anew unsaid"}[f]
}

// world is a pool.
type world struct {
	*Queue
	flaw  flaw
	calm  bool // no faults
	rest  bool // and no operations
	wrong error
	// betrayed: the only copy of a log was that of a node that lies, and power was lost.
	betrayed bool

	hosts []*host
	nodes []*node
	reg   *registry
	index *index
	order []id.Node // in which logs prefer nodes
	// One in so many messages is late, is lost, is there twice.
	late, lost, twice int

	truth    [disksMax + 1]truth
	clients  []*client
	tags     uint32 // the last that was written
	ops      map[uint32]*op
	stamps   uint64
	segments uint64 // the last number
	snaps    id.Snapshot

	count counts
}

// counts says what a world went through.
type counts struct {
	Ops, Faults, Takeovers, Moves, Reopened, Expired               int
	Crashes, Powers, Restarts, Cuts, Pauses, Jumps, Lates, Doubles int
	Rounds, Checkpoints, Passes, Patches, Snapshots, Clones        int
	Removed, Condemned, Copied, Freed, Hits, Resets, LostPower     int
	Lies                                                           int
}

func (w *world) fail(format string, args ...any) {
	if w.wrong == nil {
		w.wrong = fmt.Errorf("at %v: %s", w.Now, fmt.Sprintf(format, args...))
	}
}

func (w *world) chance(n int) bool { return !w.calm && w.Rand.IntN(n) == 0 }

func (w *world) stamp() uint64 { w.stamps++; return w.stamps }

// newWorld is a pool one of whose nodes may lie, if that is allowed: not that with the index,
// of which there is no other copy.
func newWorld(seed uint64, f flaw, lies bool) *world {
	w := &world{Queue: NewQueue(seed), flaw: f, ops: make(map[uint32]*op)}
	w.late, w.lost, w.twice = 40<<w.Rand.IntN(4), 100<<w.Rand.IntN(4), 100
	for i := range 3 + w.Rand.IntN(2) {
		w.nodes = append(w.nodes, newNode(w, id.Node(i)))
		w.order = append(w.order, id.Node(i))
	}
	w.reg = newRegistry(w)
	w.index = &index{w: w, gone: make(map[id.Segment]bool)}
	w.index.at = &w.nodes[w.Rand.IntN(len(w.nodes))].place
	if r := rand.New(rand.NewPCG(seed, 1)); lies && r.IntN(4) == 0 { // of its own: the others' worlds stay as they were
		liar := w.nodes[r.IntN(len(w.nodes))]
		liar.lies = w.index.at != &liar.place
	}
	for i := range hostCount {
		h := &host{w: w, number: i, name: fmt.Sprint("h", i), rate: w.drift(), offset: w.Span(0, time.Hour)}
		w.hosts = append(w.hosts, h)
		h.start()
	}
	for d := id.Disk(1); d <= diskFirst; d++ {
		w.reg.disks[d].there = true
		w.truth[d].begin([blocks]uint32{})
		w.hosts[int(d)%hostCount].step(owner.Want{Disk: d})
	}
	w.reg.newest = diskFirst
	for i := range clientCount {
		c := &client{w: w, number: i, at: w.hosts[w.Rand.IntN(hostCount)]}
		w.clients = append(w.clients, c)
		w.After(w.Span(time.Second/10, time.Second/2), c.turn)
	}
	w.trouble()
	return w
}

func (w *world) drift() float64 { return 1 + driftMax*(2*w.Rand.Float64()-1) }

// trouble is what happens to hosts, nodes and the network.
func (w *world) trouble() {
	if w.calm {
		return
	}
	w.After(w.Span(0, 2*time.Second), w.trouble)
	h, n := w.hosts[w.Rand.IntN(hostCount)], w.nodes[w.Rand.IntN(len(w.nodes))]
	c := &w.count
	k := w.Rand.IntN(100)
	w.Mark(uint64(k))
	switch {
	case k < 4:
		c.Crashes++
		h.crash()
	case k < 8: // the clock goes on
		c.Pauses++
		h.paused = w.Now + w.Span(0, 3*leaseTTL)
	case k < 10:
		c.Jumps++
		h.offset += w.Span(0, 2*leaseTTL)
		h.step(nil)
	case k < 18:
		c.Cuts++
		h.cut(&n.place, w.Rand.IntN(3), w.Now+w.Span(0, 2*leaseTTL))
	case k < 22:
		c.Cuts++
		h.cut(w.reg.at, w.Rand.IntN(3), w.Now+w.Span(0, 2*leaseTTL))
	case k < 24: // from everything
		c.Cuts++
		for _, n := range w.nodes {
			h.cut(&n.place, 0, w.Now+2*leaseTTL)
		}
		h.cut(w.reg.at, 0, w.Now+2*leaseTTL)
	case k < 28:
		c.Restarts++
		n.down = w.Now + w.Span(0, 2*time.Second)
	case k < 31:
		c.Powers++
		n.power()
	case k < 32:
		c.Powers++
		for _, n := range w.nodes {
			n.power()
		}
	default:
		return
	}
	c.Faults++
}

// run goes on until a time, or until something is wrong or done.
func (w *world) run(until time.Duration, done func() bool) {
	for w.wrong == nil && !w.betrayed && w.Now < until && !done() && w.Step() {
	}
}

// simulate goes through a seed, without the lies if they were of the only copy of a log.
func simulate(seed uint64, f flaw) *world {
	w := live(newWorld(seed, f, f == sound || f == anewUnsaid))
	if w.betrayed {
		w = live(newWorld(seed, f, false))
		w.betrayed = true
	}
	return w
}

// live lets a world go through trouble, then calm, then rest.
func live(w *world) *world {
	never := func() bool { return false }
	w.run(troubleMax, func() bool { return w.count.Ops >= opsWanted && w.count.Faults >= faultsWanted })
	if w.wrong == nil && w.Now >= troubleMax {
		w.fail("only %d operations and %d faults", w.count.Ops, w.count.Faults)
	}
	w.calm = true
	for _, h := range w.hosts {
		h.paused, h.cuts = 0, [2][]time.Duration{}
	}
	for _, n := range w.nodes {
		n.down = 0
	}
	w.run(w.Now+time.Second, never)
	w.rest = true
	w.run(w.Now+lateMax+callTime, never) // what is late has come
	if w.wrong == nil && !w.betrayed {
		w.settle()
	}
	for d := range w.truth {
		w.truth[d].check(w, id.Disk(d))
	}
	for _, h := range w.hosts {
		h.kill(nil)
	}
	w.Mark(uint64(w.count.Ops))
	return w
}

// place is where something can be reached.
type place struct {
	number int // 0 for the registry outside, 1 on for nodes
	down   time.Duration
}

// host is a machine with a clock.
type host struct {
	w      *world
	number int
	name   string
	rate   float64
	offset time.Duration
	paused time.Duration      // nothing is done here before
	cuts   [2][]time.Duration // nothing passes before: to a place, and from there

	life    int // counts starts: answers to an earlier one are lost
	machine *owner.Machine
	wakes   time.Duration
	disks   [disksMax + 1]*disk
	opened  [disksMax + 1]id.Epoch // the last that was opened: a log set's machine has one epoch
	closes  [disksMax + 1]int      // how often a disk was closed here by the machine
	tasks   []*task
}

// clock is the host's.
func (h *host) clock() time.Duration { return h.offset + time.Duration(float64(h.w.Now)*h.rate) }

// later does something on this host, if it is the same life then.
func (h *host) later(d time.Duration, do func()) { h.in(h.life, d, do) }

func (h *host) in(life int, d time.Duration, do func()) {
	h.w.After(d, func() {
		switch {
		case h.life != life:
		case h.w.Now < h.paused:
			h.in(life, h.paused-h.w.Now, do)
		default:
			do()
		}
	})
}

func (h *host) start() {
	h.life++
	h.machine, h.wakes = owner.New(h.name, owner.Options{TTL: leaseTTL}), 0
	h.disks, h.opened = [disksMax + 1]*disk{}, [disksMax + 1]id.Epoch{}
	h.closes = [disksMax + 1]int{}
	h.step(nil)
	h.spawn(nil, h.sweep)
}

func (h *host) crash() {
	for _, k := range h.disks {
		if k != nil {
			k.closed = true
		}
	}
	h.life++
	h.kill(nil)
	for _, c := range h.w.clients {
		if c.at == h && c.waits != nil {
			h.w.After(h.w.Span(0, time.Second), c.waits)
		}
	}
	h.start()
}

// cut keeps messages back: both ways, to a place, or from there.
func (h *host) cut(p *place, which int, until time.Duration) {
	for way := range h.cuts {
		if which != 0 && which != way+1 {
			continue
		}
		for len(h.cuts[way]) <= p.number {
			h.cuts[way] = append(h.cuts[way], 0)
		}
		h.cuts[way][p.number] = until
	}
}

// lost tells whether a message to a place (way 0), or from it (1), is lost.
func (h *host) lost(p *place, way int) bool {
	return p.number < len(h.cuts[way]) && h.w.Now < h.cuts[way][p.number] || h.w.chance(h.w.lost)
}

func (w *world) delay() time.Duration {
	if w.chance(w.late) {
		return w.Span(0, lateMax/2)
	}
	return w.Span(100*time.Microsecond, 4*time.Millisecond)
}

// send has something done at a place and tells what came of it, once: errLate if no
// answer is there in time. It may be done all the same, also later, or twice unless it
// is to be done once. What do returns is all that the sender learns.
func send[R any](h *host, p *place, once bool, do func() (R, error), then func(R, error)) {
	w := h.w
	if h.lost(p, 0) {
		if w.Rand.IntN(2) == 0 { // the network holds it back
			w.count.Lates++
			again(w, p, w.Span(0, lateMax), do)
		}
		unanswered(h, w.Now, then)
		return
	}
	sent := w.Now
	w.After(w.delay(), func() {
		if w.Now < p.down {
			unanswered(h, sent, then)
			return
		}
		r, err := do()
		if !once && w.chance(w.twice) {
			w.count.Doubles++
			again(w, p, w.delay(), do)
		}
		back := w.delay()
		if h.lost(p, 1) || w.Now+back > sent+callTime {
			unanswered(h, sent, then)
			return
		}
		h.later(back, func() { then(r, err) })
	})
}

// again has something done later, of which nobody hears.
func again[R any](w *world, p *place, after time.Duration, do func() (R, error)) {
	w.After(after, func() {
		if w.Now >= p.down {
			_, _ = do()
		}
	})
}

// unanswered tells the sender in time that it gets no answer.
func unanswered[R any](h *host, sent time.Duration, then func(R, error)) {
	h.later(max(sent+callTime-h.w.Now, 0), func() {
		var none R
		then(none, errLate)
	})
}

// ask is send for a task.
func ask[R any](t *task, p *place, once bool, do func() (R, error)) (R, error) {
	var result R
	var failed error
	send(t.h, p, once, do, func(r R, err error) {
		result, failed = r, err
		t.run()
	})
	t.wait()
	return result, failed
}

// fetch is ask for what changes nothing, and is asked again if it is lost.
func fetch[R any](t *task, p *place, do func() (R, error)) (r R, err error) {
	for range 3 {
		if r, err = ask(t, p, true, do); err != errLate {
			break
		}
	}
	return r, err
}

// options are a log set's.
func (w *world) options() logset.Options {
	opts := logset.Options{Nodes: append([]id.Node(nil), w.order...), Retry: 200 * time.Millisecond}
	if w.reg.inNode {
		opts.Registry = new(id.Node)
	}
	return opts
}
