package sim

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/owner"
)

const (
	batchMax = 8               // records of one append
	patience = 3 * time.Second // for an operation to be acknowledged
)

// logSet is a disk's log under an epoch: it carries out what the machine says.
type logSet struct {
	w       *world
	h       *host
	k       *disk
	machine *logset.Machine
	joined  [8]joined
	wakes   time.Duration
	serving bool
	over    bool
	from    logset.Sources
	ready   func(error) // the takeover's

	next    [datanode.Streams]id.Pos
	last    [datanode.Streams]*rec
	busy    [datanode.Streams]bool
	queue   [datanode.Streams][]*logOp // of appends
	flight  int                        // operations at nodes that have not answered
	holding int                        // while above 0 nothing new is begun
	held    []*task                    // wait for nothing to be under way
	waiting []*logOp                   // begun while holding
	ops     map[uint64]*logOp
	numbers uint64
}

// logOp is an append, a sync or a trim.
type logOp struct {
	sync   bool
	stream datanode.Stream
	recs   []*rec // of an append
	trim   id.Pos // through here
	then   func(error)
	joined []*logOp // appended with it

	through [datanode.Streams]int // of a sync: so much is acknowledged
	number  uint64
	sent    time.Duration
}

// takeOver begins a log's takeover and says when it is served.
func (k *disk) takeOver(ready func(error)) {
	l := &logSet{w: k.h.w, h: k.h, k: k, machine: logset.New(k.h.w.options()), ready: ready, ops: make(map[uint64]*logOp)}
	k.log = l
	l.step(nil)
	l.watch()
}

// watch gives up what no node answers for long.
func (l *logSet) watch() {
	l.h.later(patience/2, func() {
		if l.over {
			return
		}
		for _, o := range l.ops { // any will do
			if l.w.Now-o.sent > patience {
				l.k.fail(owner.Failed)
				return
			}
		}
		l.watch()
	})
}

func (l *logSet) step(e logset.Event) {
	if l.over || l.k.closed {
		return
	}
	if r, ok := e.(logset.RowRead); ok && !l.serving {
		l.sawRow(r)
	}
	for _, a := range l.machine.Step(l.w.Now, e) {
		if !l.over {
			l.carry(a)
		}
	}
	if at, ok := l.machine.Wake(); ok && !l.over && (l.wakes <= l.w.Now || at < l.wakes) {
		l.wakes = max(at, l.w.Now+time.Microsecond)
		wakes := l.wakes
		l.h.later(l.wakes-l.w.Now, func() {
			if l.wakes == wakes {
				l.step(nil)
			}
		})
	}
}

// sawRow notes whether all nodes of a row have lost power since they were in sync: then
// only what was flushed need be there, and not even that if the only one lies.
func (l *logSet) sawRow(r logset.RowRead) {
	lost := r.Outcome == logset.Done && len(r.Row) > 0
	for _, m := range r.Row {
		lost = lost && l.w.nodes[m.Node].boot != m.Boot
	}
	if lost {
		l.w.truth[l.k.d].lostPower = true
	}
	if lost && len(r.Row) == 1 && l.w.nodes[r.Row[0].Node].lies {
		l.w.betrayed = true
	}
}

func outcomeOf(err error) logset.Outcome {
	switch {
	case err == nil:
		return logset.Done
	case errors.Is(err, errFenced):
		return logset.Overtaken
	}
	return logset.Failed
}

// end says that this owner can do no more.
func (l *logSet) end() {
	if l == nil || l.over {
		return
	}
	l.over = true
	var all []*logOp
	for _, o := range l.ops {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *logOp) int { return cmp.Compare(a.number, b.number) })
	for s := range l.queue {
		all = append(all, l.queue[s]...)
	}
	for _, o := range append(all, l.waiting...) {
		l.answer(o, errOver)
	}
}

func (l *logSet) answer(o *logOp, err error) {
	for _, o := range append([]*logOp{o}, o.joined...) {
		if o.then != nil {
			then := o.then
			o.then = nil
			l.h.later(0, func() { then(err) })
		}
	}
}

func (l *logSet) carry(a logset.Action) {
	w, k, d, e := l.w, l.k, l.k.d, l.k.epoch
	switch a.Do {
	case logset.Fence:
		n := w.nodes[a.Node]
		send(l.h, &n.place, false, func() (joined, error) { return n.fence(d, e) }, func(j joined, err error) {
			if err == nil {
				l.joined[a.Node] = j
			}
			l.step(logset.Fenced{Call: a.Call, Node: a.Node, Outcome: outcomeOf(err), Boot: j.boot, Ends: j.ends})
		})
	case logset.Read:
		send(l.h, w.reg.at, true, func() (row, error) { return w.reg.rows[d], nil }, func(r row, err error) {
			l.step(logset.RowRead{Call: a.Call, Outcome: outcomeOf(err), Row: slices.Clone(r.row), At: r.at})
		})
	case logset.Commit:
		send(l.h, w.reg.at, true, func() (uint64, error) { return w.reg.commitRow(d, e, a) }, func(at uint64, err error) {
			l.step(logset.Committed{Call: a.Call, Outcome: outcomeOf(err), At: at})
		})
	case logset.Equalize:
		l.h.spawn(k, func(t *task) {
			err := l.equalize(t, a)
			l.step(logset.Equalized{Call: a.Call, Node: a.Node, Outcome: outcomeOf(err)})
		})
	case logset.Serve:
		l.from, l.serving = a.From, true
		l.ready(nil)
	case logset.Ack:
		l.acked(a.Op)
	case logset.End:
		if k.serves || l.serving {
			k.fail(owner.Failed)
		} else {
			l.over = true
			l.ready(errOver)
		}
	}
}

// append adds records of a stream, in the order of the calls.
func (l *logSet) append(s datanode.Stream, recs []*rec, then func(error)) {
	if l.over {
		l.h.later(0, func() { then(errOver) })
		return
	}
	l.queue[s] = append(l.queue[s], &logOp{stream: s, recs: recs, then: then})
	l.pump()
}

// pump begins what waits.
func (l *logSet) pump() {
	if l.over || l.k.closed || l.holding > 0 {
		return
	}
	waiting := l.waiting
	l.waiting = nil
	for _, o := range waiting {
		l.begin(o)
	}
	for s := range l.queue {
		if l.busy[s] || len(l.queue[s]) == 0 || l.over {
			continue
		}
		o := l.queue[s][0]
		l.queue[s] = l.queue[s][1:]
		for len(l.queue[s]) > 0 && len(o.recs) < batchMax {
			more := l.queue[s][0]
			l.queue[s] = l.queue[s][1:]
			o.recs, o.joined = append(o.recs, more.recs...), append(o.joined, more)
		}
		for _, r := range o.recs {
			r.before, r.pos, r.epoch = l.last[s], l.next[s], l.k.epoch
			l.last[s], l.next[s] = r, r.pos+1
		}
		l.busy[s] = true
		l.begin(o)
	}
}

// begin sends an operation to all that follow.
func (l *logSet) begin(o *logOp) {
	if l.over || l.k.closed {
		l.answer(o, errOver)
		return
	}
	if l.holding > 0 {
		l.waiting = append(l.waiting, o)
		return
	}
	l.numbers++
	number := l.numbers
	o.number, o.sent = number, l.w.Now
	if o.sync {
		for s := range o.through {
			o.through[s] = len(l.w.truth[l.k.d].acked[s])
		}
	}
	l.ops[number] = o
	to := l.machine.Begin(number)
	l.flight += len(to)
	d, e, recs, stream, trim := l.k.d, l.k.epoch, o.recs, o.stream, o.trim
	for _, to := range to {
		n, boot := l.w.nodes[to], l.joined[to].boot
		send(l.h, &n.place, false, func() (struct{}, error) {
			var err error
			switch {
			case o.sync:
				err = n.sync(d, boot, e)
			case trim != 0:
				err = n.trim(d, boot, e, stream, trim)
			default:
				err = n.add(d, boot, e, stream, recs)
			}
			return struct{}{}, err
		}, func(_ struct{}, err error) {
			l.flight--
			l.step(logset.Answered{Op: number, Node: to, Outcome: outcomeOf(err)})
			if l.w.flaw == ackedEarly && err == nil && !l.over && l.ops[number] != nil {
				l.machine.Withdraw(number)
				l.acked(number)
			}
			if l.flight == 0 && len(l.held) > 0 {
				next := l.held[0]
				l.held = l.held[1:]
				next.run()
			}
		})
	}
	l.step(nil)
}

// acked is told that every node in sync has an operation.
func (l *logSet) acked(number uint64) {
	o := l.ops[number]
	if o == nil {
		return
	}
	delete(l.ops, number)
	switch {
	case o.sync:
		l.w.truth[l.k.d].synced(l.k.epoch, o.through)
	case o.recs != nil:
		l.busy[o.stream] = false
		for _, r := range o.recs {
			l.w.truth[l.k.d].add(l.w, l.k, o.stream, r)
		}
		if o.stream == datanode.Ops {
			for _, r := range o.recs {
				l.k.buffer(r)
			}
		}
	}
	l.answer(o, nil)
	l.pump()
}

// do is an operation of a task.
func (l *logSet) do(t *task, o *logOp) error {
	var failed error
	o.then = func(err error) {
		failed = err
		t.run()
	}
	if o.recs != nil {
		l.append(o.stream, o.recs, o.then)
	} else {
		l.begin(o)
	}
	t.wait()
	return failed
}

func (l *logSet) sync(t *task) error { return l.do(t, &logOp{sync: true}) }

// equalize makes a node's log equal to what its sources have, and stable.
func (l *logSet) equalize(t *task, a logset.Action) error {
	d, e := l.k.d, l.k.epoch
	n, boot := l.w.nodes[a.Node], l.joined[a.Node].boot
	var theirs [datanode.Streams]stream
	source := func(s int) (stream, error) {
		from := l.w.nodes[a.From[s]]
		boot := l.joined[a.From[s]].boot
		return fetch(t, &from.place, func() (stream, error) { return from.read(d, boot, e, datanode.Stream(s)) })
	}
	end, first, other, skip := a.Ends.End, [datanode.Streams]id.Pos{}, false, false
	for s := range theirs {
		first[s] = a.Ends.First[s]
		if a.From[s] == a.Node {
			continue
		}
		from, err := source(s)
		if err != nil {
			return err
		}
		mine, err := fetch(t, &n.place, func() (stream, error) { return n.read(d, boot, e, datanode.Stream(s)) })
		if err != nil {
			return err
		}
		first[s] = from.first
		switch {
		case end[s] < from.first:
			skip = true
		case mine.end() != end[s]:
			return errPosition
		case end[s] > from.end() || end[s] == from.first && mine.first < end[s] && a.Reset:
			other = true
		case mine.first < end[s] && end[s] > from.first:
			other = other || mine.recs[end[s]-1-mine.first] != from.recs[end[s]-1-from.first]
		}
	}
	if other || skip {
		if other && !a.Reset {
			return errPosition
		}
		if !other {
			for s := range first {
				if first[s] <= end[s] {
					first[s] = 0
				}
			}
		}
		turn := a.Ends.Turn
		if _, err := ask(t, &n.place, false, func() (struct{}, error) { return struct{}{}, n.reset(d, boot, e, turn, first) }); err != nil {
			return err
		}
		for s := range first {
			if first[s] != 0 {
				end[s] = first[s]
			}
		}
	}
	copyAll := func() error {
		for s := range theirs {
			if a.From[s] == a.Node {
				continue
			}
			from, err := source(s)
			if err != nil {
				return err
			}
			if end[s] < from.first || end[s] > from.end() {
				return errPosition
			}
			if more := from.recs[end[s]-from.first:]; len(more) > 0 {
				if _, err := ask(t, &n.place, false, func() (struct{}, error) {
					return struct{}{}, n.add(d, boot, e, datanode.Stream(s), more)
				}); err != nil {
					return err
				}
				end[s] += id.Pos(len(more))
			}
		}
		return nil
	}
	if err := copyAll(); err != nil {
		return err
	}
	// The rest while nothing is under way.
	l.holding++
	defer func() {
		l.holding--
		l.pump()
	}()
	for l.flight > 0 {
		l.held = append(l.held, t)
		t.wait()
	}
	if err := copyAll(); err != nil {
		return err
	}
	_, err := ask(t, &n.place, false, func() (struct{}, error) { return struct{}{}, n.sync(d, boot, e) })
	if err == nil {
		// Within the hold: what is begun after it goes to the node.
		l.step(logset.Equalized{Call: a.Call, Node: a.Node})
	}
	return err
}
