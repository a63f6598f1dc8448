package rack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// ErrRefused is wrapped by errors that say why an operator's change of nodes cannot be.
var ErrRefused = errors.New("refused")

// ErrLate is wrapped by errors for which a host that lives is behind: soon it is not.
var ErrLate = errors.New("does not know yet")

// Met is a data node that is no member yet.
type Met struct {
	Given
	Node     datanode.Node
	Spindles int
	// Segments are in its index.
	Segments int64
	Close    func()
}

// check tells why the node cannot come to the pool.
func (m *Met) check() error {
	switch {
	case m.Member != nil:
		return fmt.Errorf("data node %s is one of a pool's already, with number %d there: make it anew on empty drives, or remove it there first", m.Name, m.Number)
	case m.Pool:
		return fmt.Errorf("data node %s has a pool of its own, of one node: make it anew on empty drives", m.Name)
	case m.Segments > 0:
		return fmt.Errorf("data node %s has %d segments of something else: make it anew on empty drives", m.Name, m.Segments)
	case m.Rejoins:
		return fmt.Errorf("data node %s was made with --rejoin, for a pool that has lost it: make it anew without", m.Name)
	}
	return nil
}

// state reads what a change begins with. Lists that get nothing new and have nothing may be
// free, or used again if they were, if every host and node knows that.
func (r *Rack) state(ctx context.Context, hosts map[string]uint64) (p *roll, empty func(id.Layout) bool, err error) {
	p, err = readRoll(ctx, r.RegistryNode)
	if err != nil {
		return nil, nil, err
	}
	if p.nodes == nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoRows, ErrRefused)
	}
	settled := true
	for _, v := range hosts {
		settled = settled && v >= p.layouts.Version
	}
	for _, m := range r.members() {
		_, told, err := ReadMember(ctx, m.Node)
		settled = settled && err == nil && told != nil && told.Version >= p.layouts.Version
	}
	if !settled {
		return p, func(id.Layout) bool { return false }, nil
	}
	lie, err := used(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	return p, func(l id.Layout) bool { return !lie[l] }, nil
}

// commit makes a new version of nodes and layouts, if nobody else has made one since p was
// read.
func (r *Rack) commit(ctx context.Context, p, next *roll) error {
	txn := &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: layoutsKey, Revision: p.revision}},
		Puts:     []datanode.Put{{Key: layoutsKey, Value: next.layouts.Marshal()}},
	}
	for i := range next.nodes {
		row := next.nodes[i]
		if i < len(p.nodes) {
			if p.nodes[i].State == row.State && len(p.nodes[i].Later) == len(row.Later) {
				continue
			}
			txn.Compares = append(txn.Compares, datanode.Compare{Key: nodeKey(row.Number), Revision: p.revisions[i]})
		} else {
			txn.Compares = append(txn.Compares, datanode.Compare{Key: nodeKey(row.Number)})
		}
		txn.Puts = append(txn.Puts, datanode.Put{Key: nodeKey(row.Number), Value: row.marshal()})
	}
	_, err := r.RegistryCommit(ctx, txn)
	if errors.Is(err, datanode.ErrConflict) {
		return fmt.Errorf("another change of the pool's nodes came first, or this one was made already: look at plinth node ls (%w)", err)
	}
	return err
}

// AddNode has a data node take part that is met at addresses, or one that is being drained
// again. hosts are those that live, with the versions of the layouts that they know. It
// returns when the change is recorded; Advance carries it out. Errors that wrap
// ErrRefused are for an operator.
func (r *Rack) AddNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error {
	p, empty, err := r.state(ctx, hosts)
	if err != nil {
		return err
	}
	n := NodeRow{Name: name}
	if has := (&Membership{Nodes: p.nodes}).Named(name); name == "" || has == nil {
		if n, err = r.meet(ctx, name, addresses); err != nil {
			return err
		}
	}
	next, err := p.add(n, empty)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return r.commit(ctx, p, next)
}

// meet looks at a node that is to come.
func (r *Rack) meet(ctx context.Context, name string, addresses []string) (NodeRow, error) {
	if r.opts.Meet == nil || len(addresses) == 0 {
		return NodeRow{}, fmt.Errorf("%w: say at which addresses data node %s is", ErrRefused, name)
	}
	met, err := r.opts.Meet(ctx, name, addresses)
	if err != nil {
		return NodeRow{}, fmt.Errorf("%w: the data node at %v: %w", ErrRefused, addresses, err)
	}
	defer met.Close()
	if err := met.check(); err != nil {
		return NodeRow{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	n := NodeRow{Name: met.Name, Addresses: addresses, Spindles: met.Spindles, State: NodeJoining}
	if err := n.validate(); err != nil {
		return n, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return n, nil
}

// DrainNode has what a node has moved to the others.
func (r *Rack) DrainNode(ctx context.Context, name string, hosts map[string]uint64) error {
	p, empty, err := r.state(ctx, hosts)
	if err != nil {
		return err
	}
	next, err := p.drain(name, r.registryNumber(), empty)
	if err == nil {
		err = r.roomWithout(name)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return r.commit(ctx, p, next)
}

// roomShare of the other nodes' capacity, 1/roomShare, is to be free after a drain.
const roomShare = 20

// roomWithout tells whether the others have room for what a node has.
func (r *Rack) roomWithout(name string) error {
	var has, free, capacity int64
	for _, m := range r.members() {
		st := m.last()
		if st == nil || m.is() == NodeDraining && m.Name != name {
			continue
		}
		for _, sp := range st.Spindles {
			if m.Name == name {
				has += sp.AllocatedBytes
			} else if sp.State == datanode.SpindleOK && m.is() == NodeIn {
				free += sp.CapacityBytes - sp.AllocatedBytes
				capacity += sp.CapacityBytes
			}
		}
	}
	if room := free - capacity/roomShare; has > room {
		return fmt.Errorf("data node %s cannot be drained: it has %d bytes, and the others have room for %d: add a node first, or remove disks or snapshots", name, has, max(room, 0))
	}
	return nil
}

// RemoveNode takes a node out that was drained, and has it know nothing of the pool any
// more. One that is out already is only told so again, if it is met at addresses.
func (r *Rack) RemoveNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error {
	p, _, err := r.state(ctx, hosts)
	if err != nil {
		return err
	}
	number := id.Node(0)
	if n := (&Membership{Nodes: p.nodes}).Named(name); n != nil {
		number = n.Number
	} else if len(addresses) > 0 {
		return r.forget(ctx, p, name, addresses)
	}
	left := Leaving{}
	if n := (&Membership{Nodes: p.nodes}).Named(name); n != nil && n.State == NodeDraining {
		for h, v := range hosts {
			if v < p.layouts.Version {
				return fmt.Errorf("%w: host %s %w that data node %s is being drained", ErrRefused, h, ErrLate, name)
			}
		}
		all, err := r.leaving(ctx, 0)
		if err != nil {
			return err
		}
		var known bool
		if left, known = all[n.Number]; !known || r.now.Load().layouts.Version != p.layouts.Version {
			return fmt.Errorf("%w: this host does not know yet that data node %s is being drained", ErrRefused, name)
		}
	}
	next, err := p.remove(name, &left)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	r.learning.Lock() // or else the node would be left before it is told
	defer r.learning.Unlock()
	m := r.numbered(number)
	if err := r.commit(ctx, p, next); err != nil {
		return err
	}
	err = datanode.Errorf(datanode.ErrUnreachable, "node %d", number)
	if m != nil {
		err = m.call(ctx, r.opts.CallTime, func(ctx context.Context) error { return forget(ctx, m.Node) })
	}
	if err != nil {
		return fmt.Errorf("data node %s is out of the pool, but does not know it: run plinth node rm with its address when it answers, or make it anew (%w)", name, err)
	}
	return nil
}

// forget has a node that is out know nothing of the pool any more.
func (r *Rack) forget(ctx context.Context, p *roll, name string, addresses []string) error {
	if r.opts.Meet == nil || !slices.ContainsFunc(p.nodes, func(n NodeRow) bool { return n.Name == name && n.State == NodeOut }) {
		return fmt.Errorf("%w: the pool had no data node %s", ErrRefused, name)
	}
	met, err := r.opts.Meet(ctx, name, addresses)
	if err != nil {
		return fmt.Errorf("%w: the data node at %v: %w", ErrRefused, addresses, err)
	}
	defer met.Close()
	if met.Member == nil {
		return nil
	}
	if n := int(met.Number); n >= len(p.nodes) || p.nodes[n].Name != name || p.nodes[n].State != NodeOut {
		return fmt.Errorf("%w: data node %s has number %d, which is not out", ErrRefused, name, met.Number)
	}
	return forget(ctx, met.Node)
}

func forget(ctx context.Context, own datanode.RegistryNode) error {
	_, err := own.RegistryCommit(ctx, &datanode.RegistryTxn{Deletes: []string{datanode.MemberKey, layoutsKey}})
	return err
}

// Advance carries the next step of a change of the nodes out, in the host that does so for
// the pool: more than one would do no harm. hosts are those that live, with the
// versions of the layouts that they know. It reports whether something was done, and for
// whom the change waits.
func (r *Rack) Advance(ctx context.Context, hosts map[string]uint64) (did bool, waits string, err error) {
	p, err := readRoll(ctx, r.RegistryNode)
	if err != nil || p.nodes == nil {
		return false, "", err
	}
	c := &change{roll: p, hosts: hosts, told: r.toldOf(p), spindles: r.spindlesOf()}
	s, err := c.next()
	switch {
	case err != nil:
		return false, "", err
	case s.commit != nil:
		r.log.Info("the pool's layouts change", "version", s.commit.layouts.Version, "nodes", p.membership(nil).names())
		return true, "", r.commit(ctx, p, s.commit)
	case s.grow:
		return true, "", r.grow(ctx, hosts)
	case s.rests():
		did, err = r.endRebalance(ctx, p)
		return did, "", err
	}
	waits = s.waits
	for _, n := range s.tell {
		m := r.numbered(n)
		if m == nil {
			return false, "this host has not learnt of it yet", nil
		}
		err := m.call(ctx, r.opts.CallTime, func(ctx context.Context) error { return r.tell(ctx, p, m) })
		if err != nil {
			waits = fmt.Sprintf("data node %s, which has not been told of it: %v", p.nodes[n].Name, err)
		}
	}
	return len(s.tell) > 0 && waits == "", waits, nil
}

// toldOf returns the version that each member was told, as far as this host knows.
func (r *Rack) toldOf(p *roll) map[id.Node]uint64 {
	told := make(map[id.Node]uint64)
	for _, m := range r.members() {
		m.mu.Lock()
		told[m.Number] = m.told
		m.mu.Unlock()
	}
	return told
}

// grow gives the spindles numbers that members have got, and new segments lists with them.
func (r *Rack) grow(ctx context.Context, hosts map[string]uint64) error {
	p, empty, err := r.state(ctx, hosts)
	if err != nil {
		return err
	}
	next, err := (&change{roll: p, spindles: r.spindlesOf()}).grow(empty)
	if err != nil {
		return err
	}
	r.log.Info("data nodes have got spindles", "version", next.layouts.Version)
	return r.commit(ctx, p, next)
}

// spindlesOf returns how many spindles each member had when it answered last.
func (r *Rack) spindlesOf() map[id.Node]int {
	has := make(map[id.Node]int)
	for _, m := range r.members() {
		if st := m.last(); st != nil {
			has[m.Number] = len(st.Spindles)
		}
	}
	return has
}

// tell has a member know the pool's nodes and layouts.
func (r *Rack) tell(ctx context.Context, p *roll, m *member) error {
	var number id.Node
	var has *Membership
	at := uint64(0)
	switch reply, err := m.Node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: datanode.MemberKey}); {
	case errors.Is(err, datanode.ErrNotFound):
	case err != nil:
		return err
	default:
		if number, has, err = ParseMember(reply.Value); err != nil {
			return err
		}
		at = reply.Revision
	}
	row := &p.nodes[m.Number]
	switch {
	case has == nil && row.State != NodeJoining:
		return datanode.Errorf(datanode.ErrInvalid, "it has lost what it knew of the pool")
	case has != nil && (number != m.Number || !has.Same(p.membership(r.registryNumber()))):
		return datanode.Errorf(datanode.ErrConflict, "it is another pool's")
	}
	if has == nil || has.Version < p.layouts.Version {
		if err := r.tellNow(ctx, p, m, at); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = max(m.told, p.layouts.Version)
	return nil
}

// tellNow does so unless somebody has told it something since revision at.
func (r *Rack) tellNow(ctx context.Context, p *roll, m *member, at uint64) error {
	registry := r.registryNumber()
	txn := &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: datanode.MemberKey, Revision: at}},
		Puts:     []datanode.Put{{Key: datanode.MemberKey, Value: p.membership(registry).Marshal(m.Number)}},
	}
	if registry == nil || *registry != m.Number { // or else it has the layouts, which are the pool's
		txn.Puts = append(txn.Puts, datanode.Put{Key: layoutsKey, Value: p.layouts.Marshal()})
	}
	_, err := m.Node.RegistryCommit(ctx, txn)
	return err
}
