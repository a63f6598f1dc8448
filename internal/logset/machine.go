package logset

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"plinth/internal/id"
)

// Options of a machine.
type Options struct {
	// Nodes are the pool's, in the order in which this disk prefers them. The first
	// Replicas are its home; others are taken only if too few of those are left.
	Nodes    []id.Node
	Replicas int // 0: up to 3
	// MinInSync is how many must have what is acknowledged; 0: more than half of
	// Replicas.
	MinInSync int
	// First has the log of a disk without a row: the pool's only node, before it had
	// others.
	First id.Node
	// Registry has the registry, whose guards know what it was fenced with; nil where
	// they know what was claimed (etcd). Without that fence the row is not read.
	Registry *id.Node
	// Retry is how long to wait before what failed is tried again; 0: 1 s.
	Retry time.Duration
}

// WithDefaults returns the options with what is 0 filled in.
func (o Options) WithDefaults() Options {
	o.Replicas = min(cmp.Or(o.Replicas, 3), len(o.Nodes))
	o.MinInSync = min(cmp.Or(o.MinInSync, o.Replicas/2+1), o.Replicas)
	o.Retry = cmp.Or(o.Retry, time.Second)
	return o
}

type phase uint8

const (
	fencing  phase = iota // all nodes
	reading               // the row
	making                // nodes equal
	settling              // the row
	serving
	over
)

// Machine is what a disk's owner knows of its log set, for one epoch. Times are of
// any monotonic clock.
type Machine struct {
	opts  Options
	phase phase
	nodes []*node // as opts.Nodes
	from  Sources // of the takeover
	row   row
	ops   map[uint64]*op
	calls uint64
	acts  []Action
}

// row is the registry's row as far as it is known.
type row struct {
	known  Row
	at     uint64 // revision
	sent   Row    // of the commit under way
	doubts Row    // whom commits name that may yet be carried out
	unsure bool   // it must be read before it is committed again
	call   uint64 // read or commit under way
	due    time.Duration
}

// node is a data node.
type node struct {
	number  id.Node
	answer  *answer // to the fence, nil before
	follows bool
	call    uint64        // fence or equalize under way
	from    []id.Node     // of that equalize
	due     time.Duration // when to try again
}

// op is an append, a sync or a trim that is not acknowledged.
type op struct {
	waiting []wait
}

// wait is for a node's answer: one that it was sent to, or one that has to follow first.
type wait struct {
	node id.Node
	sent bool
}

// begin waits for a node, once.
func (o *op) begin(n id.Node, sent bool) {
	if !slices.ContainsFunc(o.waiting, func(w wait) bool { return w.node == n }) {
		o.waiting = append(o.waiting, wait{n, sent})
	}
}

func (o *op) done(n id.Node) {
	o.waiting = slices.DeleteFunc(o.waiting, func(w wait) bool { return w.node == n })
}

// New makes the machine of an owner that has claimed its epoch. Step begins the
// takeover.
func New(opts Options) *Machine {
	m := &Machine{opts: opts.WithDefaults(), ops: make(map[uint64]*op)}
	for _, n := range opts.Nodes {
		m.nodes = append(m.nodes, &node{number: n})
	}
	return m
}

// Step takes an event, nil for time alone, and returns what is to be done. It must be
// called again by the time that Wake says.
func (m *Machine) Step(now time.Duration, e Event) []Action {
	m.acts = nil
	if e != nil && m.phase != over {
		e.apply(m, now)
	}
	m.advance(now)
	return m.acts
}

// Begin registers an operation and returns the nodes to which it is to be sent: all
// that follow. Its number is used once. It is acknowledged by an Ack of a later Step.
// None are returned once the owner is over.
func (m *Machine) Begin(number uint64) []id.Node {
	if m.phase != serving {
		return nil
	}
	o, to := &op{}, m.following()
	for _, n := range to {
		o.begin(n, true)
	}
	for _, r := range []Row{m.row.known, m.sending(), m.row.doubts} {
		for _, member := range r {
			o.begin(member.Node, false)
		}
	}
	m.ops[number] = o
	return to
}

// Withdraw forgets an operation: nobody waits for it.
func (m *Machine) Withdraw(number uint64) { delete(m.ops, number) }

// Following returns the nodes that have all of the log, in the disk's order.
func (m *Machine) Following() []id.Node { return m.following() }

// InSync returns the row that the registry is known to have.
func (m *Machine) InSync() Row { return m.row.known }

// Wake is when Step has something to do without an event; false: never.
func (m *Machine) Wake() (at time.Duration, ok bool) {
	if m.phase == over {
		return 0, false
	}
	at = 1<<63 - 1
	if m.row.call == 0 && m.row.unsure {
		at = m.row.due
	}
	if m.phase == serving {
		for _, n := range m.wanted() {
			at = min(at, n.due)
		}
	}
	return at, at != 1<<63-1
}

func (m *Machine) do(a Action) uint64 {
	m.calls++
	a.Call = m.calls
	m.acts = append(m.acts, a)
	return a.Call
}

// node returns a node, nil if it is none of the pool's.
func (m *Machine) node(number id.Node) *node {
	for _, n := range m.nodes {
		if n.number == number {
			return n
		}
	}
	return nil
}

func (m *Machine) follows(number id.Node) bool {
	n := m.node(number)
	return n != nil && n.follows
}

// answers returns the node if call is what is under way of it, and ends that.
func (m *Machine) answers(number id.Node, call uint64) *node {
	n := m.node(number)
	if n == nil || call == 0 || n.call != call {
		return nil
	}
	n.call = 0
	return n
}

// out says that a node does not follow any more. What is being made equal to it may
// miss what it has lost.
func (m *Machine) out(n *node, now time.Duration) {
	n.follows, n.call, n.answer, n.due = false, 0, nil, now+m.opts.Retry
	if m.phase != serving {
		return // without a source there is no takeover
	}
	for _, o := range m.nodes {
		if o.call != 0 && slices.Contains(o.from, n.number) {
			m.out(o, now)
		}
	}
}

func (m *Machine) end(err error) {
	m.phase = over
	m.acts = append(m.acts, Action{Do: End, Err: err})
}

// busy tells whether a call to a node is under way.
func (m *Machine) busy() bool {
	return slices.ContainsFunc(m.nodes, func(n *node) bool { return n.call != 0 })
}

func (m *Machine) following() []id.Node {
	var all []id.Node
	for _, n := range m.nodes {
		if n.follows {
			all = append(all, n.number)
		}
	}
	return all
}

// serving returns sources while the log is served: whoever follows has all.
func (m *Machine) serving() Sources {
	var from Sources
	for s := range from {
		from[s] = m.following()[0]
	}
	return from
}

// sending is the row of a commit under way, which may be carried out at any time.
func (m *Machine) sending() Row {
	if m.row.call != 0 && m.phase >= settling && !m.row.unsure {
		return m.row.sent
	}
	return nil
}

// mayBe tells whether the registry's row names a node, or may come to.
func (m *Machine) mayBe(n id.Node) bool {
	return m.row.known.Has(n) || m.sending().Has(n) || m.row.doubts.Has(n)
}

// takeOver chooses the sources and has the others made equal to them.
func (m *Machine) takeOver() {
	row := m.row.known
	if m.row.at == 0 {
		row = Row{{Node: m.opts.First}}
	}
	answers := make(map[id.Node]answer)
	for _, n := range m.nodes {
		if n.answer != nil {
			answers[n.number] = *n.answer
		}
	}
	var err error
	if m.from, err = sources(row, answers); err != nil {
		m.end(err)
		return
	}
	m.phase = making
	some := 0
	for i, n := range m.nodes {
		if n.answer == nil || i >= m.opts.Replicas && !row.Has(n.number) && some >= m.opts.MinInSync {
			continue
		}
		some++
		m.equalize(n, m.from)
	}
}

func (m *Machine) equalize(n *node, from Sources) {
	reset := !m.mayBe(n.number)
	if m.phase == making && m.row.at == 0 {
		reset = n.number != m.opts.First
	}
	n.from = from[:]
	n.call = m.do(Action{Do: Equalize, Node: n.number, From: from, Ends: n.answer.ends, Reset: reset})
}

// advance does what the phase asks for when nothing is under way.
func (m *Machine) advance(now time.Duration) {
	if m.phase == fencing && m.calls == 0 {
		for _, n := range m.nodes {
			n.call = m.do(Action{Do: Fence, Node: n.number})
		}
	}
	if m.phase == reading && m.row.call == 0 && now >= m.row.due {
		m.row.call = m.do(Action{Do: Read})
	}
	if m.phase == making && !m.busy() {
		m.made()
	}
	if m.phase == serving {
		m.spare()
	}
	if m.phase == settling || m.phase == serving {
		m.settle(now)
	}
	if m.phase == serving {
		if len(m.following()) == 0 {
			m.end(fmt.Errorf("%w: none of those in sync", ErrNoReplica))
			return
		}
		m.join(now)
		m.ack()
	}
}

// made goes on when all nodes that could be made equal are.
func (m *Machine) made() {
	for _, from := range m.from {
		if !m.node(from).follows { // another epoch begins with what the others have by now
			m.end(fmt.Errorf("%w: node %d, which has most of the log, was lost", ErrNoReplica, from))
			return
		}
	}
	if n := len(m.following()); n < m.opts.MinInSync {
		m.end(fmt.Errorf("%w: %d, want %d in sync", ErrNoReplica, n, m.opts.MinInSync))
		return
	}
	m.phase = settling
}

// asDesired reports whether the row is of those that follow. It is asked at each step,
// and so it makes none.
func (m *Machine) asDesired() bool {
	follow := 0
	for _, n := range m.nodes {
		if !n.follows {
			continue
		}
		if follow++; !slices.Contains(m.row.known, Member{n.number, n.answer.boot}) {
			return false
		}
	}
	return follow == len(m.row.known)
}

// desired is the row of those that follow.
func (m *Machine) desired() Row {
	var r Row
	for _, n := range m.nodes {
		if n.follows {
			r = append(r, Member{n.number, n.answer.boot})
		}
	}
	slices.SortFunc(r, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return r
}

// settle brings the row to what is desired. With too few that follow it is left: what
// is begun waits for who is in it.
func (m *Machine) settle(now time.Duration) {
	r := &m.row
	if r.call != 0 {
		return
	}
	if r.unsure {
		if now >= r.due {
			r.call = m.do(Action{Do: Read})
		}
		return
	}
	if m.asDesired() && len(r.doubts) == 0 {
		if m.phase == settling {
			m.phase = serving
			m.acts = append(m.acts, Action{Do: Serve, From: m.from})
		}
		return
	}
	desired := m.desired()
	if len(desired) < m.opts.MinInSync {
		return
	}
	r.sent = desired
	r.call = m.do(Action{Do: Commit, Row: desired, At: r.at})
}

// athome reports whether all nodes of the disk's home follow.
func (m *Machine) athome() bool {
	return !slices.ContainsFunc(m.nodes[:m.opts.Replicas], func(n *node) bool { return !n.follows })
}

// spare lets go of the nodes that are not needed any more: those of the home have all, and
// the registry's row says so. One that is being made equal may need them.
func (m *Machine) spare() {
	r := &m.row
	if r.call != 0 || r.unsure || len(r.doubts) > 0 || !m.athome() || m.busy() || !m.asDesired() {
		return
	}
	for _, n := range m.nodes[m.opts.Replicas:] {
		n.follows, n.answer = false, nil
	}
}

// wanted returns the nodes that do not follow and shall, when they are due.
func (m *Machine) wanted() []*node {
	var all []*node
	few, athome := len(m.following()) < m.opts.MinInSync, m.athome()
	for i, n := range m.nodes {
		if !n.follows && n.call == 0 && (i < m.opts.Replicas || few || m.row.known.Has(n.number) && !athome) {
			all = append(all, n)
		}
	}
	return all
}

// join brings nodes back.
func (m *Machine) join(now time.Duration) {
	for _, n := range m.wanted() {
		if now >= n.due {
			n.from = nil
			n.call = m.do(Action{Do: Fence, Node: n.number})
		}
	}
}

// ack acknowledges what no node is waited for any more that could be in the row.
func (m *Machine) ack() {
	var done []uint64
	for number, o := range m.ops {
		waits := false
		for _, w := range o.waiting {
			waits = waits || m.mayBe(w.node) || m.follows(w.node)
		}
		if !waits {
			done = append(done, number)
		}
	}
	slices.Sort(done)
	for _, number := range done {
		delete(m.ops, number)
		m.acts = append(m.acts, Action{Do: Ack, Op: number})
	}
}
