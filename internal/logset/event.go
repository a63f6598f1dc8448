package logset

import (
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// Do is what an action is.
type Do uint8

const (
	// Fence makes the machine's epoch the newest at Node and asks what it has:
	// Fenced. It may be asked again.
	Fence Do = iota + 1
	// Read reads the row: RowRead.
	Read
	// Equalize makes the log of Node, which has Ends, equal to what From have, and
	// stable: Equalized. What Node has beside it may be thrown away only if Reset is
	// set. It ends while nothing is under way, and what is begun after it goes to Node.
	Equalize
	// Commit puts Row, if the row's revision is At and the epoch is still the newest:
	// Committed.
	Commit
	// Serve says that the log is taken over: From have it. Not answered.
	Serve
	// Ack says that every node in sync has Op. Not answered.
	Ack
	// End says that this owner can do no more: another one has taken over, or the log
	// was not taken over, for Err. Not answered.
	End
)

// Action is what is to be done. Call names it in the event that answers it.
type Action struct {
	Do    Do
	Call  uint64
	Node  id.Node
	From  Sources
	Ends  Ends
	Reset bool
	Row   Row
	At    uint64
	Op    uint64
	Err   error
}

// Outcome is what came of an action or an operation at a node.
type Outcome uint8

const (
	// Done: it was carried out.
	Done Outcome = iota
	// Failed: it was not, or nobody knows.
	Failed
	// Overtaken: a newer epoch owns the disk.
	Overtaken
)

// Event is something that happened.
type Event interface {
	apply(m *Machine, now time.Duration)
}

// Fenced, RowRead, Equalized and Committed answer actions. At is the row's revision,
// 0 if there is none.
type (
	Fenced struct {
		Call    uint64
		Node    id.Node
		Outcome Outcome
		Boot    Boot
		Ends    Ends
	}
	RowRead struct {
		Call    uint64
		Outcome Outcome
		Row     Row
		At      uint64
	}
	Equalized struct {
		Call    uint64
		Node    id.Node
		Outcome Outcome
	}
	Committed struct {
		Call    uint64
		Outcome Outcome
		At      uint64
	}
)

// Answered says what came of an operation at a node.
type Answered struct {
	Op      uint64
	Node    id.Node
	Outcome Outcome
}

// Changed says that the pool's nodes have changed. A node that is not named any more and
// may have some of the log is kept, behind all others.
type Changed struct{ Options Options }

func (e Changed) apply(m *Machine, _ time.Duration) {
	before := m.opts
	m.opts = e.Options.WithDefaults()
	m.opts.Nodes = slices.Clone(m.opts.Nodes)
	for _, n := range before.Nodes {
		known := m.node(n)
		if !slices.Contains(m.opts.Nodes, n) && (m.phase != serving || known.follows || known.call != 0 || m.mayBe(n)) {
			m.opts.Nodes = append(m.opts.Nodes, n)
		}
	}
	if m.phase != serving && m.phase != over { // who was not fenced with the others is not waited for
		m.opts.First, m.opts.Registry = before.First, before.Registry
	}
	nodes := make([]*node, len(m.opts.Nodes))
	for i, n := range m.opts.Nodes {
		if nodes[i] = m.node(n); nodes[i] == nil {
			nodes[i] = &node{number: n}
		}
	}
	m.nodes = nodes
}

func (e Fenced) apply(m *Machine, now time.Duration) {
	n := m.answers(e.Node, e.Call)
	if n == nil {
		return
	}
	switch {
	case e.Outcome == Overtaken:
		m.end(datanode.ErrFenced)
	case e.Outcome == Failed:
		m.out(n, now)
		if m.phase == fencing && m.opts.Registry != nil && *m.opts.Registry == e.Node {
			m.end(fmt.Errorf("%w: node %d, which has the registry", ErrNoReplica, e.Node))
		}
	default:
		n.answer = &answer{e.Boot, e.Ends}
		if m.phase == serving {
			m.equalize(n, m.serving())
		}
	}
	if m.phase == fencing && !m.busy() {
		m.phase = reading
		m.row.call = m.do(Action{Do: Read})
	}
}

func (e RowRead) apply(m *Machine, now time.Duration) {
	if e.Call == 0 || e.Call != m.row.call {
		return
	}
	m.row.call = 0
	switch {
	case e.Outcome == Overtaken:
		m.end(datanode.ErrFenced)
	case e.Outcome == Failed:
		m.row.due = now + m.opts.Retry
		m.row.unsure = true
	case m.phase == reading:
		m.row.known, m.row.at, m.row.unsure = e.Row, e.At, false
		m.takeOver()
	default:
		m.row.unsure = false
		if e.At != m.row.at { // what was in doubt was carried out, or can never be
			m.row.known, m.row.at, m.row.doubts = e.Row, e.At, nil
		}
	}
}

func (e Equalized) apply(m *Machine, now time.Duration) {
	n := m.answers(e.Node, e.Call)
	if n == nil {
		return
	}
	switch e.Outcome {
	case Overtaken:
		m.end(datanode.ErrFenced)
	case Failed:
		m.out(n, now)
	default:
		n.follows = true
		for _, o := range m.ops {
			o.done(n.number) // it has what was begun before
		}
	}
}

func (e Committed) apply(m *Machine, now time.Duration) {
	if e.Call == 0 || e.Call != m.row.call {
		return
	}
	m.row.call = 0
	switch e.Outcome {
	case Done:
		m.row.known, m.row.at, m.row.doubts = m.row.sent, e.At, nil
	case Overtaken:
		m.end(datanode.ErrFenced)
	default: // it may be carried out late, as long as the row has this revision
		for _, member := range m.row.sent {
			if !m.row.doubts.Has(member.Node) {
				m.row.doubts = append(m.row.doubts, member)
			}
		}
		m.row.unsure = true
		m.row.due = now + m.opts.Retry
	}
}

func (e Answered) apply(m *Machine, now time.Duration) {
	o, n := m.ops[e.Op], m.node(e.Node)
	if o == nil || n == nil || !slices.Contains(o.waiting, wait{e.Node, true}) {
		return
	}
	switch e.Outcome {
	case Done:
		o.done(e.Node)
	case Overtaken:
		m.end(datanode.ErrFenced)
	default:
		if n.follows {
			m.out(n, now)
		}
	}
}
