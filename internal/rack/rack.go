package rack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/longlock"
	"plinth/internal/stripe"
)

const (
	patienceDefault     = 30 * time.Second
	callTimeDefault     = 2 * time.Second
	fragmentTimeDefault = 20 * time.Second
	// awayTime is how long a member that did not answer is not asked again.
	awayTime = time.Second
	// owedMax bounds the segments of which a member is still to be told that they go;
	// beyond it what it has of them is a leak.
	owedMax = 1 << 16
	// replicasDefault is logset's.
	replicasDefault = 3
)

// Member is a data node of a rack.
type Member struct {
	Number id.Node
	Node   datanode.Replica
	// Run names the run of the node's machine that calls reach which begin now: before a
	// call reaches another one, it says so. nil: the node is one process.
	Run      func() logset.Boot
	Spindles datanode.SpindleRanges // the pool's numbers of its spindles, as the rack begins
	State    NodeState              // "": NodeIn
	Name     string                 // of its certificate; may be empty
}

// Options of a rack. The zero value is right but for Layouts.
type Options struct {
	// Layouts are the pool's. They say who keeps a segment.
	Layouts *stripe.Layouts
	// Registry is the pool's; nil: the first member's.
	Registry datanode.RegistryNode
	// Replicas and MinInSync are those of logs (logset.Options).
	Replicas, MinInSync int
	// Patience is how long what must be in the log waits where too few members have it;
	// 0: 30 s. Its outcome is unknown then, and the log wants another epoch.
	Patience time.Duration
	// CallTime is how long a member may take for a call of the log or the index,
	// FragmentTime for fragments; 0: 2 s and 20 s.
	CallTime, FragmentTime time.Duration
	// Logger gets what an operator should know; slog.Default if nil.
	Logger *slog.Logger
	// Join, if not nil, begins to keep a node that has become a member, and Leave ends
	// that when it is none any more. See Learn.
	Join  func(*Membership, *stripe.Layouts, NodeRow) Member
	Leave func(id.Node)
	// Meet dials a node that is no member, by its name if that is not empty.
	Meet func(ctx context.Context, name string, addresses []string) (*Met, error)
}

// Rack is several data nodes as one.
type Rack struct {
	datanode.RegistryNode
	opts  Options
	log   *slog.Logger
	began time.Time

	// now has the members and layouts, which Learn changes.
	now      atomic.Pointer[current]
	learning longlock.Mutex

	ended atomic.Bool // Close was called

	mu     sync.Mutex
	closed bool
	logs   map[id.Disk]*diskLog

	breaking sync.Once
	broken   chan struct{} // see Broken

	reserving longlock.Mutex
	reserved  map[string]int64 // by host, what every member was told last

	// unpublished are segments of which fragments were written, until they are published or
	// discarded.
	unpublishedMu sync.Mutex
	unpublished   map[id.Segment]chan struct{}

	drainMu longlock.Mutex
	drainAt time.Time // of drained
	drained map[id.Node]datanode.NodeLeaving
}

// current is what a rack is made of. It does not change.
type current struct {
	members []*member
	layouts *stripe.Layouts
}

// members are all that may have anything of the pool.
func (r *Rack) members() []*member { return r.now.Load().members }

// member is a Member and what is known of it.
type member struct {
	Member

	ranges atomic.Pointer[datanode.SpindleRanges] // of its spindles, as they are now

	silent atomic.Int64 // since when it does not answer, Unix ns; 0: it does
	heard  atomic.Int64 // since when it does

	mu     sync.Mutex
	away   time.Time // not asked before
	state  NodeState
	told   uint64               // the version of the layouts that it was told, as far as is known
	tried  map[id.Disk]id.Epoch // that this rack has begun to fence it with
	fenced map[id.Disk]id.Epoch // that it has fenced it with
	owed   map[id.Segment]bool  // to be discarded
	status *datanode.Status     // the last one, nil before
}

var _ datanode.Node = (*Rack)(nil)

// New returns a rack of members. It does no I/O and starts nothing.
func New(members []Member, opts Options) (*Rack, error) {
	if len(members) == 0 || opts.Layouts == nil {
		return nil, errors.New("a rack needs members and layouts")
	}
	r := &Rack{
		RegistryNode: opts.Registry, opts: opts, log: opts.Logger, began: time.Now(),
		logs: make(map[id.Disk]*diskLog), reserved: make(map[string]int64), unpublished: make(map[id.Segment]chan struct{}), broken: make(chan struct{}),
	}
	if r.RegistryNode == nil {
		r.RegistryNode = members[0].Node
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	if r.opts.Patience == 0 {
		r.opts.Patience = patienceDefault
	}
	if r.opts.CallTime == 0 {
		r.opts.CallTime = callTimeDefault
	}
	if r.opts.FragmentTime == 0 {
		r.opts.FragmentTime = fragmentTimeDefault
	}
	c := &current{layouts: opts.Layouts}
	for _, m := range members {
		for _, o := range c.members {
			if m.Number == o.Number || slices.ContainsFunc(m.Spindles.All(), o.Spindles.Has) {
				return nil, fmt.Errorf("nodes %d and %d have the same number or spindles", m.Number, o.Number)
			}
		}
		c.members = append(c.members, r.newMember(m))
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	r.now.Store(c)
	return r, nil
}

func (r *Rack) newMember(m Member) *member {
	n := &member{
		Member: m, state: cmp.Or(m.State, NodeIn), tried: make(map[id.Disk]id.Epoch), fenced: make(map[id.Disk]id.Epoch), owed: make(map[id.Segment]bool),
	}
	n.heard.Store(time.Now().UnixNano())
	n.ranges.Store(&m.Spindles)
	return n
}

// check wants every spindle of the layouts to be some member's.
func (c *current) check() error {
	for _, s := range c.layouts.Spindles() {
		if c.of(s) == nil {
			return fmt.Errorf("spindle %d of the layouts is no node's", s)
		}
	}
	return nil
}

// indexed are the members that may have segments in their indexes: those that are joining
// have none.
func (r *Rack) indexed() []*member {
	return slices.DeleteFunc(slices.Clone(r.members()), func(m *member) bool { return m.is() == NodeJoining })
}

// Close ends what runs in the background. Calls of disks' logs and for fragments fail
// then, with ErrClosed: nobody shall wait for members. These are left open.
func (r *Rack) Close() error {
	r.ended.Store(true)
	r.mu.Lock()
	r.closed = true
	logs := r.logs
	r.logs = nil
	r.mu.Unlock()
	for _, l := range logs {
		l.close()
	}
	return nil
}

// Broken is closed before a call returns for want of replicas of a log that was taken
// over: what was under way may be in the log, so who serves the disk begins anew.
func (r *Rack) Broken() <-chan struct{} { return r.broken }

// of returns the member that has a spindle, nil if none has.
func (c *current) of(s id.Spindle) *member {
	for _, m := range c.members {
		if m.own().Has(s) {
			return m
		}
	}
	return nil
}

func (r *Rack) of(s id.Spindle) *member { return r.now.Load().of(s) }

func (r *Rack) numbered(n id.Node) *member {
	for _, m := range r.members() {
		if m.Number == n {
			return m
		}
	}
	return nil
}

// keeper returns the member that has a segment in its index.
func (r *Rack) keeper(s id.Segment) (*member, error) {
	c := r.now.Load()
	if c.layouts.Has(s.Layout()) {
		if m := c.of(c.layouts.Lists[s.Layout()][0]); m != nil {
			return m, nil
		}
	}
	return nil, datanode.Errorf(datanode.ErrStaleLayout, "segment %s: there are %d layouts", s, len(c.layouts.Lists))
}

// own are the pool's numbers of a member's spindles.
func (m *member) own() datanode.SpindleRanges { return *m.ranges.Load() }

// local returns the member's own number of a spindle of its.
func (m *member) local(s id.Spindle) id.Spindle {
	n, _ := m.own().Local(s) // it was found by that, and numbers stay
	return n
}

// is returns what a member is there for.
func (m *member) is() NodeState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// call makes a call to a member, unless that did not answer a moment ago.
func (m *member) call(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	m.mu.Lock()
	away := time.Now().Before(m.away)
	m.mu.Unlock()
	if away {
		return m.unreachable(nil)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := do(limited)
	if !isAway(err) && m.silent.Load() != 0 {
		m.silent.Store(0)
		m.heard.Store(time.Now().UnixNano())
	}
	if ctx.Err() != nil || !isAway(err) {
		return err
	}
	m.silent.CompareAndSwap(0, time.Now().UnixNano())
	m.mu.Lock()
	m.away = time.Now().Add(awayTime)
	m.mu.Unlock()
	if errors.Is(err, context.DeadlineExceeded) {
		return datanode.Errorf(datanode.ErrOutcome, "node %d did not answer in %v", m.Number, limit)
	}
	return err
}

func (m *member) unreachable(err error) *datanode.Error {
	if err == nil {
		return datanode.Errorf(datanode.ErrUnreachable, "node %d did not answer a moment ago", m.Number)
	}
	return datanode.Errorf(datanode.ErrUnreachable, "node %d: %v", m.Number, err)
}

// isAway reports whether an error says that nobody answered who could know better.
func isAway(err error) bool {
	for _, e := range []error{
		datanode.ErrUnreachable, datanode.ErrOutcome, datanode.ErrTimeout, datanode.ErrRestarted, datanode.ErrClosed,
		datanode.ErrForbidden, datanode.ErrWrongCluster, datanode.ErrVersion, datanode.ErrBusy, context.DeadlineExceeded,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// each makes a call to all of the members at once and returns their errors.
func each(members []*member, do func(i int, m *member) error) []error {
	errs := make([]error, len(members))
	if len(members) == 0 {
		return errs
	}
	var running sync.WaitGroup
	for i, m := range members[1:] {
		running.Go(func() { errs[i+1] = do(i+1, m) })
	}
	errs[0] = do(0, members[0])
	running.Wait()
	return errs
}

// first returns the first error that counts most: a fence before all others.
func first(errs []error) error {
	var one error
	for _, err := range errs {
		if errors.Is(err, datanode.ErrFenced) {
			return err
		}
		if one == nil {
			one = err
		}
	}
	return one
}
