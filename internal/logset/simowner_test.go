package logset

import (
	"errors"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// simOwner is a host that may own the disk.
type simOwner struct {
	w           *world
	number      int
	life        int // answers to an earlier one are lost
	cut         map[*simNode]time.Duration
	registryCut time.Duration

	machine *Machine
	epoch   id.Epoch
	early   struct { // the row before the fence
		row Row
		at  uint64
	}
	next    [datanode.Streams]id.Pos
	head    [datanode.Streams]rec
	busy    [datanode.Streams]bool // an append is under way
	flight  int                    // operations that a following node has not answered
	holding int                    // while above 0 nothing new is begun
	held    []func()               // called when nothing is under way
	numbers uint64
	ops     map[uint64]*simOp
	wakes   time.Duration
	acked   int // in this life
}

// simOp is an append, or a flush of what was acknowledged.
type simOp struct {
	stream  datanode.Stream
	pos     id.Pos
	rec     rec
	flush   bool
	through [datanode.Streams]int
	open    map[id.Node]bool // not answered
}

// claim begins a life as owner under a new epoch.
func (o *simOwner) claim() {
	w := o.w
	o.life++
	if w.Now < o.registryCut {
		o.machine = nil
		return
	}
	w.epoch++
	o.epoch, o.early.row, o.early.at = w.epoch, w.row, w.revision
	o.machine = New(o.options())
	o.busy, o.flight, o.holding, o.held, o.ops = [datanode.Streams]bool{}, 0, 0, nil, make(map[uint64]*simOp)
	o.wakes, o.acked = 0, 0
	o.step(nil)
}

// options are those of an owner that knows the nodes' order of the moment.
func (o *simOwner) options() Options {
	opts := Options{Nodes: slices.Clone(o.w.order), Retry: 300 * time.Millisecond}
	if o.w.inNode && o.w.flaw != readsTooSoon {
		opts.Registry = new(id.Node)
	}
	return opts
}

func (o *simOwner) step(e Event) {
	m, life := o.machine, o.life
	if m == nil {
		return
	}
	if r, ok := e.(RowRead); ok && m.phase == reading {
		lost := r.Outcome == Done && len(r.Row) > 0
		for _, member := range r.Row {
			lost = lost && o.w.nodes[member.Node].boot != member.Boot
		}
		o.w.lostPower = o.w.lostPower || lost
	}
	for _, a := range m.Step(o.w.Now, e) {
		if o.life == life {
			o.carry(a)
		}
	}
	if at, ok := m.Wake(); ok && o.life == life && (o.wakes <= o.w.Now || at < o.wakes) {
		o.wakes = max(at, o.w.Now+time.Microsecond)
		o.w.After(o.wakes-o.w.Now, func() {
			if o.life == life {
				o.step(nil)
			}
		})
	}
}

// call sends something to a node and gives what came of it, once: errLate if it does
// not come in time. It may be carried out all the same, also later, or twice.
func (o *simOwner) call(number id.Node, do func(*simNode) error, then func(error)) {
	w, n, life, answered := o.w, o.w.nodes[number], o.life, false
	answer := func(err error) {
		if o.life == life && !answered {
			answered = true
			then(err)
		}
	}
	w.After(simTimeout, func() { answer(errLate) })
	lost := func() bool { return w.Now < n.cut || w.Now < o.cut[n] || w.chance(w.lost) }
	if lost() {
		if w.Rand.IntN(2) == 0 {
			return
		}
		w.After(w.Span(0, 8*time.Second), func() { _ = do(n) }) // held back by the network
		return
	}
	w.After(w.delay(), func() {
		err := do(n)
		if w.chance(w.lost) {
			w.After(w.delay(), func() { _ = do(n) })
		}
		if !lost() {
			w.After(w.delay(), func() { answer(err) })
		}
	})
}

func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Done
	case errors.Is(err, errFenced):
		return Overtaken
	}
	return Failed
}

// carry does an action.
func (o *simOwner) carry(a Action) {
	w := o.w
	switch a.Do {
	case Fence:
		var boot Boot
		var ends Ends
		o.call(a.Node, func(n *simNode) (err error) {
			b, e, err := n.fence(o.epoch, true)
			if err == nil {
				boot, ends = b, e
			}
			return err
		}, func(err error) { o.step(Fenced{a.Call, a.Node, outcomeOf(err), boot, ends}) })
	case Read, Commit:
		if a.Do == Commit && w.flaw == earlyCommit {
			w.After(w.delay(), func() { o.step(Committed{a.Call, Done, a.At + 1}) })
		}
		o.ask(a)
	case Equalize:
		o.equalize(a)
	case Serve:
		o.serve(a)
	case Ack:
		o.ack(a.Op)
	case End:
		o.machine = nil
		o.life++
		if !errors.Is(a.Err, datanode.ErrFenced) {
			life := o.life
			w.After(w.Span(0, time.Second), func() {
				if o.life == life {
					o.claim()
				}
			})
		}
	}
}

// ask sends something to the registry, which carries it out, or not, or late; the
// owner hears of it, or that it failed.
func (o *simOwner) ask(a Action) {
	w, life, epoch, answered := o.w, o.life, o.epoch, false
	answer := func(e Event) {
		if o.life == life && !answered {
			answered = true
			o.step(e)
		}
	}
	early := RowRead{a.Call, Done, o.early.row, o.early.at}
	late := w.delay()
	lost := w.Now < o.registryCut || w.chance(w.lostRegistry)
	if lost {
		late += w.Span(0, 8*time.Second)
	}
	if !lost || w.Rand.IntN(2) == 0 {
		w.After(late, func() {
			e := w.registry(epoch, a)
			if w.flaw == readsTooSoon && a.Do == Read && early.At != 0 && o.life == life && o.machine != nil && o.machine.phase == reading {
				e = early
			}
			if !lost && !w.chance(w.lostRegistry) {
				w.After(w.delay(), func() { answer(e) })
			}
		})
	}
	w.After(simTimeout, func() {
		if a.Do == Read {
			answer(RowRead{a.Call, Failed, nil, 0})
		} else {
			answer(Committed{a.Call, Failed, 0})
		}
	})
}

// registry reads or changes the row.
func (w *world) registry(epoch id.Epoch, a Action) Event {
	if a.Do == Read {
		if w.flaw == forgetsWriter && w.Rand.IntN(4) == 0 && w.before != nil {
			return RowRead{a.Call, Done, slices.Clone(w.before), w.revision}
		}
		return RowRead{a.Call, Done, slices.Clone(w.row), w.revision}
	}
	switch {
	case w.flaw != staleGuard && (w.inNode && epoch < w.nodes[0].epoch || !w.inNode && epoch != w.epoch):
		return Committed{a.Call, Overtaken, 0}
	case a.At != w.revision && w.flaw != noCompare:
		return Committed{a.Call, Failed, 0}
	}
	w.before, w.row = w.row, slices.Clone(a.Row)
	w.revision++
	w.changes++
	return Committed{a.Call, Done, w.revision}
}

// serve begins with what the sources have: all that was acknowledged, unless all of
// the row lost power.
func (o *simOwner) serve(a Action) {
	w := o.w
	for _, n := range a.From {
		if w.flaw != hiddenBoot && w.nodes[n].boot != o.machine.node(n).answer.boot || w.nodes[n].epoch > o.epoch && w.flaw != noFence {
			o.carry(Action{Do: End, Err: errLate}) // it cannot be read
			return
		}
	}
	w.takeovers++
	if o.epoch < w.newest && w.flaw != noFence {
		w.fail("epoch %d serves after %d", o.epoch, w.newest)
		return
	}
	w.newest = o.epoch
	for s := range o.next {
		n := w.nodes[a.From[s]]
		t := &n.log[s]
		o.next[s] = t.end()
		o.head[s] = rec{}
		if len(t.recs) > 0 {
			o.head[s] = t.recs[len(t.recs)-1]
		}
		if have := int(t.end()) - 1; have < len(w.acked[s]) {
			if have < w.flushed[s] {
				w.fail("epoch %d found %d records of stream %d, %d were flushed", o.epoch, have, s, w.flushed[s])
				return
			}
			if !w.lostPower {
				w.fail("epoch %d found %d records of stream %d, %d were acknowledged", o.epoch, have, s, len(w.acked[s]))
				return
			}
			w.acked[s] = w.acked[s][:have]
		}
		// What was found may go beyond what was acknowledged: it is seen from now on.
		for pos := id.Pos(len(w.acked[s])) + 1; pos < t.end(); pos++ {
			w.acked[s] = append(w.acked[s], t.recs[pos-t.first])
		}
	}
	w.lostPower = false
	for s := range w.acked {
		if k := len(w.acked[s]); k > 0 && !w.nodes[a.From[s]].has(datanode.Stream(s), id.Pos(k), w.acked[s][k-1]) {
			w.fail("epoch %d found another record %d of stream %d than was acknowledged", o.epoch, k, s)
		}
	}
}

// work appends and flushes for as long as the log is served.
func (o *simOwner) work() {
	w := o.w
	w.After(w.Span(0, 60*time.Millisecond), o.work)
	if o.machine == nil || o.machine.phase != serving || o.holding > 0 {
		return
	}
	s := datanode.Stream(w.Rand.IntN(datanode.Streams))
	switch {
	case w.Rand.IntN(4) == 0:
		o.begin(&simOp{flush: true, through: [datanode.Streams]int{len(w.acked[0]), len(w.acked[1])}})
	case w.Rand.IntN(20) == 0:
		// Only what is flushed is given up.
		if through := id.Pos(w.flushed[s]); through > 0 && w.newest == o.epoch {
			for _, n := range o.machine.Following() {
				epoch := o.epoch
				o.call(n, func(n *simNode) error {
					if epoch >= n.epoch {
						n.trim(s, through)
					}
					return nil
				}, func(error) {})
			}
		}
	case !o.busy[s]:
		o.busy[s] = true
		r := rec{o.epoch, o.head[s].mac*1000003 + uint64(o.epoch)<<32 + w.Rand.Uint64N(1<<30) + 1}
		o.begin(&simOp{stream: s, pos: o.next[s], rec: r})
		o.next[s]++
		o.head[s] = r
	}
}

func (o *simOwner) begin(op *simOp) {
	o.numbers++
	number, epoch := o.numbers, o.epoch
	op.open = make(map[id.Node]bool)
	to := o.machine.Begin(number)
	o.ops[number] = op
	for _, n := range to {
		op.open[n] = true
		o.flight++
	}
	for _, n := range to {
		boot := o.machine.node(n).answer.boot
		o.call(n, func(n *simNode) error {
			if o.w.flaw == hiddenBoot {
				boot = n.boot
			}
			if err := n.allow(boot, epoch); err != nil {
				return err
			}
			if op.flush {
				n.sync()
				return nil
			}
			return n.appendRecs(op.stream, op.pos, []rec{op.rec})
		}, func(err error) {
			delete(op.open, n)
			o.flight--
			o.step(Answered{number, n, outcomeOf(err)})
			if o.machine != nil && o.flight == 0 {
				held := o.held
				o.held = nil
				for _, f := range held {
					if o.machine != nil {
						f()
					}
				}
			}
		})
	}
	o.step(nil)
}

func (o *simOwner) ack(number uint64) {
	w, op := o.w, o.ops[number]
	delete(o.ops, number)
	if op.flush {
		for s, n := range op.through {
			if w.newest == o.epoch && n <= len(w.acked[s]) {
				w.flushed[s] = max(w.flushed[s], n)
			}
		}
		return
	}
	w.acks++
	o.acked++
	o.busy[op.stream] = false
	s := op.stream
	if w.newest != o.epoch {
		if int(op.pos) > len(w.acked[s]) || w.acked[s][op.pos-1] != op.rec {
			w.fail("epoch %d acknowledges record %d of stream %d, which epoch %d has not", o.epoch, op.pos, s, w.newest)
		}
		return
	}
	if int(op.pos) != len(w.acked[s])+1 {
		w.fail("epoch %d acknowledges record %d of stream %d after %d", o.epoch, op.pos, s, len(w.acked[s]))
		return
	}
	w.acked[s] = append(w.acked[s], op.rec)
}
