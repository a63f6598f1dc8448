package rack

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"plinth/internal/id"
	"plinth/internal/stripe"
)

var (
	changeSeed = flag.Uint64("change-seed", 0, "run this simulation of changes only")
	changeRuns = flag.Int("change-runs", 30, "simulations of changes")
)

// changeFlaw is what is wrong with a world of changes: each must be found out.
type changeFlaw int

const (
	noFlaw         changeFlaw = iota
	hostsUnasked              // a change goes on while a host has not learnt of it
	nodesUntold               // or while a node was not told
	learntTooSoon             // a host says that it has learnt while it writes as before
	removedTooSoon            // a node is taken out without a look
	reusedUnlooked            // lists are used again in which something lies
	nodesUnasked              // or that a node does not know to be free
	changeFlawCount
)

// changeWorld is a pool's registry, hosts that write segments and learn late, nodes that are
// told late, and operators. Two hosts carry changes on, also with what they read long ago.
type changeWorld struct {
	rng  *rand.Rand
	flaw changeFlaw
	roll *roll
	// hosts by name, nodes by number with the layouts that they were told.
	hosts map[string]*changeHost
	nodes map[id.Node]*stripe.Layouts
	// segments lie where their lists say that were in force when they were written.
	segments map[id.Segment][]id.Spindle
	// strays were written by hosts that died before they published them: a node that starts
	// makes them known if it keeps them.
	strays   map[id.Segment][]id.Spindle
	number   uint64
	spindles map[id.Node]int // that each has
	wardens  [2]*change      // what each read last
	wrong    error

	changes, removals, written, grown, balanced int
}

type changeHost struct {
	layouts *stripe.Layouts
	told    uint64 // in its row
	flight  map[id.Segment][]id.Spindle
	before  map[id.Segment]bool // of flight, when it learnt last
}

func (w *changeWorld) fail(format string, args ...any) {
	if w.wrong == nil {
		w.wrong = fmt.Errorf(format, args...)
	}
}

func newChangeWorld(seed uint64, flaw changeFlaw) *changeWorld {
	w := &changeWorld{
		rng: rand.New(rand.NewPCG(seed, 5)), flaw: flaw, hosts: make(map[string]*changeHost), nodes: make(map[id.Node]*stripe.Layouts),
		segments: make(map[id.Segment][]id.Spindle), strays: make(map[id.Segment][]id.Spindle), spindles: make(map[id.Node]int),
	}
	var rows []NodeRow
	for i := range 4 {
		rows = append(rows, NodeRow{Name: fmt.Sprint("dn", i), Addresses: []string{"x"}, Spindles: 3})
	}
	m, err := NewMembership(stripe.Geometry{K: 2, M: 1}, rows, new(id.Node))
	if err != nil {
		panic(err)
	}
	l, err := m.Layouts()
	if err != nil {
		panic(err)
	}
	w.roll = &roll{nodes: m.Nodes, layouts: l, revision: 1}
	for i := range rows {
		w.nodes[id.Node(i)] = l
	}
	for i := range 3 {
		w.begin(fmt.Sprint("h", i))
	}
	return w
}

func (w *changeWorld) begin(name string) {
	w.hosts[name] = &changeHost{layouts: w.roll.layouts, told: w.roll.layouts.Version, flight: make(map[id.Segment][]id.Spindle)}
}

// commit is the registry's: at was read before.
func (w *changeWorld) commit(at uint64, next *roll) {
	if at != w.roll.revision {
		return
	}
	next.revision = at + 1
	w.roll = next
	w.changes++
}

// look counts what lies in layouts, as a walk over all indexes does; nil: in those that leave.
func (w *changeWorld) look(of func(list []id.Spindle) bool) int64 {
	n := int64(0)
	for s := range w.segments {
		if of == nil && w.roll.layouts.Kind(s.Layout()) == stripe.Leaving || of != nil && of(w.roll.layouts.Lists[s.Layout()]) {
			n++
		}
	}
	return n
}

func (w *changeWorld) learnt() bool {
	for _, h := range w.hosts {
		if h.told < w.roll.layouts.Version {
			return false
		}
	}
	return true
}

func (w *changeWorld) empty() func(id.Layout) bool {
	used := make(map[id.Layout]bool)
	for s := range w.segments {
		used[s.Layout()] = true
	}
	settled := w.learnt()
	for i := range w.roll.nodes {
		if told := w.nodes[id.Node(i)]; w.roll.nodes[i].State != NodeOut && (told == nil || told.Version < w.roll.layouts.Version) && w.flaw != nodesUnasked {
			settled = false
		}
	}
	return func(l id.Layout) bool { return w.flaw == reusedUnlooked || settled && !used[l] }
}

// operate has an operator change something, which may be refused.
func (w *changeWorld) operate() {
	name := w.roll.nodes[w.rng.IntN(len(w.roll.nodes))].Name
	var next *roll
	var err error
	switch w.rng.IntN(10) {
	case 9:
		l, err := rebalance(w.roll.layouts, w.rng.IntN(4) > 0, draining(w.roll.nodes), w.roll.placed)
		if err == nil {
			w.commit(w.roll.revision, &roll{nodes: w.roll.nodes, layouts: l})
		}
		return
	case 8:
		if n := id.Node(w.rng.IntN(len(w.roll.nodes))); w.spindles[n] < 6 && w.roll.nodes[n].State != NodeOut {
			w.spindles[n] = w.roll.nodes[n].Numbers().Count() + 1 + w.rng.IntN(2)
		}
		return
	case 0:
		if len(w.roll.nodes) < 40 {
			next, err = w.roll.add(NodeRow{Name: fmt.Sprint("dn", len(w.roll.nodes)), Addresses: []string{"x"}, Spindles: 2 + w.rng.IntN(3)}, w.empty())
		}
	case 1: // it is called off, if it was drained
		next, err = w.roll.add(NodeRow{Name: name, Addresses: []string{"x"}, Spindles: 3}, w.empty())
	case 2, 3:
		next, err = w.roll.drain(name, new(id.Node), w.empty())
	default:
		i := slices.IndexFunc(w.roll.nodes, func(n NodeRow) bool { return n.State == NodeDraining })
		if i < 0 || !w.learnt() && w.flaw != removedTooSoon {
			return
		}
		n := &w.roll.nodes[i]
		name = n.Name
		left := &Leaving{Segments: w.look(func(list []id.Spindle) bool {
			return slices.ContainsFunc(list, n.Numbers().Has)
		})}
		if w.flaw == removedTooSoon {
			left = &Leaving{}
		}
		if next, err = w.roll.remove(name, left); err == nil {
			w.removals++
		}
	}
	if err == nil && next != nil {
		w.commit(w.roll.revision, next)
	}
}

// host does a step of one: it learns, begins to write a segment, or publishes one; or it
// dies, and another one begins.
func (w *changeWorld) host() {
	name := slices.Sorted(maps.Keys(w.hosts))[w.rng.IntN(len(w.hosts))]
	h := w.hosts[name]
	switch w.rng.IntN(20) {
	case 0:
		delete(w.hosts, name)
		w.begin(name)
		for s, list := range h.flight {
			w.strays[s] = list
		}
	case 1, 2, 3, 4:
		if h.layouts.Version < w.roll.layouts.Version {
			h.layouts, h.before = w.roll.layouts, make(map[id.Segment]bool)
			for s := range h.flight {
				h.before[s] = true
			}
		}
		if len(h.before) == 0 || w.flaw == learntTooSoon {
			h.told = h.layouts.Version
		}
	case 5, 6, 7, 8, 9, 10, 11:
		var usual []id.Layout
		for n := range h.layouts.Lists {
			if h.layouts.Kind(id.Layout(n)) == stripe.Usual {
				usual = append(usual, id.Layout(n))
			}
		}
		w.number++
		l := usual[w.rng.IntN(len(usual))]
		h.flight[id.MakeSegment(l, w.number)] = h.layouts.Lists[l]
	default:
		for s, list := range h.flight {
			delete(h.flight, s)
			delete(h.before, s)
			w.segments[s] = list
			w.written++
			w.known(s, list)
			return
		}
	}
}

// known wants every host and the keeper to know where a segment lies.
func (w *changeWorld) known(s id.Segment, list []id.Spindle) {
	for name, h := range w.hosts {
		if !h.layouts.Has(s.Layout()) || !slices.Equal(h.layouts.Lists[s.Layout()], list) {
			w.fail("segment %s lies in %v, which host %s of version %d does not know", s, list, name, h.layouts.Version)
		}
	}
	keeper, _ := w.roll.placed(list[0])
	if told := w.nodes[keeper]; told == nil || !told.Has(s.Layout()) || !slices.Equal(told.Lists[s.Layout()], list) {
		w.fail("segment %s lies in %v, and its keeper, node %d, was not told so", s, list, keeper)
	}
}

// warden does what was read some steps ago asks for, or reads.
func (w *changeWorld) warden(n int) {
	c := w.wardens[n]
	w.wardens[n] = nil
	if c == nil {
		c = &change{hosts: make(map[string]uint64), told: make(map[id.Node]uint64)}
		for name, h := range w.hosts { // before the roll
			c.hosts[name] = h.told
		}
		c.roll = w.roll
		c.spindles = maps.Clone(w.spindles)
		for node, l := range w.nodes {
			c.told[node] = l.Version
		}
		w.wardens[n] = c
		return
	}
	if w.flaw == hostsUnasked {
		c.hosts = nil
	}
	if w.flaw == nodesUntold {
		for i := range c.nodes {
			c.told[id.Node(i)] = c.layouts.Version
		}
	}
	s, err := c.next()
	switch {
	case err != nil:
		w.fail("%v", err)
	case s.commit != nil:
		w.commit(c.revision, s.commit)
	case s.grow: // after another look
		c.roll = w.roll
		if next, err := c.grow(w.empty()); err == nil {
			w.commit(c.revision, next)
			w.grown++
		} else if !strings.Contains(err.Error(), "lists of spindles are in use") {
			w.fail("%v", err)
		}
	case s.rests() && draining(c.nodes) == "" && c.layouts.Any(stripe.Leaving) && c.revision == w.roll.revision:
		if w.look(nil) == 0 {
			next, err := c.layouts.Rebalance(false, c.placed)
			if err != nil || next == nil || next.Any(stripe.Leaving) {
				w.fail("a rebalance does not end: %v", err)
				return
			}
			w.commit(c.revision, &roll{nodes: c.nodes, layouts: next})
			w.balanced++
		}
	case len(s.tell) > 0: // one of them answers
		node := s.tell[w.rng.IntN(len(s.tell))]
		if told := w.nodes[node]; told == nil || told.Version < c.layouts.Version {
			w.nodes[node] = c.layouts
		}
	}
}

// moves has some of what leaves a node written anew.
func (w *changeWorld) moves() {
	for s := range w.segments {
		if w.roll.layouts.Kind(s.Layout()) == stripe.Leaving || w.rng.IntN(4) == 0 {
			delete(w.segments, s)
		}
	}
}

// start has a node start, which makes known what it keeps and did not know.
func (w *changeWorld) start() {
	n := id.Node(w.rng.IntN(len(w.roll.nodes)))
	row, told := &w.roll.nodes[n], w.nodes[n]
	if told == nil || row.State == NodeOut {
		return
	}
	p := &Part{Layouts: told, row: *row}
	for s, list := range w.strays {
		for index, sp := range list {
			own, has := row.Numbers().Local(sp)
			if has && slices.Equal(list, told.Lists[s.Layout()]) && p.Keeps(s, uint8(index), own) {
				delete(w.strays, s)
				w.segments[s] = list
			}
		}
	}
}

// check wants what lies somewhere to be where the registry says.
func (w *changeWorld) check() {
	for s, list := range w.segments {
		keeper, _ := w.roll.placed(list[0])
		if !slices.Equal(w.roll.layouts.Lists[s.Layout()], list) || w.roll.nodes[keeper].State == NodeOut {
			w.fail("segment %s lies in %v, and version %d says otherwise", s, list, w.roll.layouts.Version)
		}
	}
}

func (w *changeWorld) step() {
	switch k := w.rng.IntN(100); {
	case k < 3:
		w.operate()
	case k < 80:
		w.host()
	case k < 94:
		w.warden(k % 2)
	case k < 96:
		w.start()
	default:
		w.moves()
	}
	w.check()
}

func simulateChanges(seed uint64, flaw changeFlaw) *changeWorld {
	w := newChangeWorld(seed, flaw)
	for range 3000 {
		if w.step(); w.wrong != nil {
			return w
		}
	}
	for range 1000 { // without operators every change ends
		switch {
		case w.rng.IntN(2) == 0:
			w.host()
			w.start()
		default:
			w.warden(w.rng.IntN(2))
		}
		if w.check(); w.wrong != nil {
			return w
		}
	}
	if w.roll.layouts.Any(stripe.Coming) || slices.ContainsFunc(w.roll.nodes, func(n NodeRow) bool { return n.State == NodeJoining }) {
		w.fail("a change has not ended: %+v", w.roll.nodes)
	}
	return w
}

func TestSimChanges(t *testing.T) {
	seeds := []uint64{*changeSeed}
	if *changeSeed == 0 {
		seeds = nil
		for range *changeRuns {
			seeds = append(seeds, rand.Uint64())
		}
	}
	changes, removals, written, grown, balanced := 0, 0, 0, 0, 0
	for _, seed := range seeds {
		w := simulateChanges(seed, noFlaw)
		if w.wrong != nil {
			t.Fatalf("-change-seed %d: %v", seed, w.wrong)
		}
		balanced += w.balanced
		changes, removals, written, grown = changes+w.changes, removals+w.removals, written+w.written, grown+w.grown
	}
	t.Logf("%d runs: %d changes of the registry, %d nodes taken out, %d times spindles came, %d rebalances ended, %d segments", len(seeds), changes, removals, grown, balanced, written)
	if changes == 0 || removals == 0 || written == 0 || grown == 0 || balanced == 0 {
		t.Error("the simulations went through too little")
	}
}

// Whatever is planted is found out.
func TestSimChangesFindsFlaws(t *testing.T) {
	for flaw := noFlaw + 1; flaw < changeFlawCount; flaw++ {
		found := false
		for seed := uint64(0); seed < 200 && !found; seed++ {
			if w := simulateChanges(seed, flaw); w.wrong != nil {
				found = true
				t.Logf("flaw %d, seed %d: %v", flaw, seed, w.wrong)
			}
		}
		if !found {
			t.Errorf("flaw %d was not found", flaw)
		}
	}
}
