package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/datanode/wire"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

const (
	// linkUnreachableAfter is how long calls to one node of several wait for a
	// connection: there are others.
	linkUnreachableAfter = time.Second
	// linkDialTime bounds an attempt to reach a node.
	linkDialTime = 3 * time.Second
)

// nodeLink is one node of several, for a session. When its process ends it looks for the
// next one. Calls fail meanwhile.
type nodeLink struct {
	*datanode.Switch
	number id.Node
	name   string
	pool   *pool
	// paths are the addresses to look for the node at, in turn.
	paths [][]string
	opts  wire.ClientOptions
	log   *slog.Logger

	boot atomic.Pointer[logset.Boot] // of the machine's run that calls reach
	at   atomic.Pointer[[]string]    // of the paths, where the node was found last
	// There is no more than one Reserve at a time of a host's name: the rack's.
	mu       sync.Mutex
	reserved map[string]int64 // by host: what the node was told, or would have been

	life    context.Context
	cancel  context.CancelFunc
	keeping sync.WaitGroup
	first   chan struct{} // closed when the node was reached
}

// pool is what is known of the pool's nodes. Sessions learn of changes.
type pool struct {
	mu      sync.Mutex
	nodes   *rack.Membership
	layouts *stripe.Layouts
}

func (p *pool) set(m *rack.Membership, l *stripe.Layouts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes, p.layouts = m, l
}

func (p *pool) get() (*rack.Membership, *stripe.Layouts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes, p.layouts
}

// newLink begins to keep a node.
func newLink(n *rack.NodeRow, p *pool, paths [][]string, opts wire.ClientOptions) *nodeLink {
	l := &nodeLink{
		Switch: datanode.NewSwitch(nil), number: n.Number, name: n.Name, pool: p, paths: paths, opts: opts, log: opts.Logger,
		reserved: make(map[string]int64), first: make(chan struct{}),
	}
	l.boot.Store(&logset.Boot{})
	l.at.Store(&paths[0])
	l.life, l.cancel = context.WithCancel(context.Background())
	l.keeping.Go(l.keep)
	return l
}

func (l *nodeLink) close() {
	l.cancel()
	l.keeping.Wait()
}

// run is rack.Member.Run.
func (l *nodeLink) run() logset.Boot { return *l.boot.Load() }

// Reserve implements datanode.FragmentNode. A process that follows is told what this
// one was: the figure is lost with it.
func (l *nodeLink) Reserve(ctx context.Context, q *datanode.ReserveRequest) error {
	l.mu.Lock()
	before, had := l.reserved[q.Host]
	l.reserved[q.Host] = q.Bytes
	l.mu.Unlock()
	err := l.Switch.Reserve(ctx, q)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, datanode.ErrNoSpace) && had:
		l.reserved[q.Host] = before
	case errors.Is(err, datanode.ErrNoSpace) || err == nil && q.Bytes == 0:
		delete(l.reserved, q.Host)
	}
	return err
}

// keep lets one client follow the other.
func (l *nodeLink) keep() {
	said := ""
	say := func(err error) {
		if text := oneLine(err); text != said && l.life.Err() == nil {
			said = text
			l.log.Warn("a data node is not reached, will retry", "node", l.name, "err", text)
		}
	}
	for first := true; l.life.Err() == nil; {
		c, err := l.dial(say)
		if err != nil {
			return
		}
		if err := l.install(c); err != nil {
			say(err)
			_ = c.Close()
			select {
			case <-l.life.Done():
			case <-time.After(retryMax):
			}
			continue
		}
		if !first || said != "" {
			l.log.Info("a data node is reached again", "node", l.name)
		}
		first, said = false, ""
		select {
		case <-c.Ended():
			l.log.Warn("a data node's process has ended: the others go on", "node", l.name, "err", c.Err())
		case <-l.life.Done():
		}
		_ = c.Close() // so no call is under way
		l.Set(nil)
	}
}

// dial looks for the node until it is found or the link's life ends.
func (l *nodeLink) dial(say func(error)) (*wire.Client, error) {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		for _, p := range l.paths {
			c, err := dialNode(l.life, l.opts, l.name, p)
			if err == nil {
				l.at.Store(&p)
				return c, nil
			}
			say(err)
		}
		select {
		case <-l.life.Done():
			return nil, l.life.Err()
		case <-time.After(pause):
		}
	}
}

// dialNode dials the node of a name at its addresses, for linkDialTime at most.
func dialNode(ctx context.Context, opts wire.ClientOptions, name string, paths []string) (*wire.Client, error) {
	opts.Node, opts.Paths = name, paths
	ctx, cancel := context.WithTimeout(ctx, linkDialTime)
	defer cancel()
	return wire.Dial(ctx, opts)
}

// install has calls reach a client's process, if that is the node.
func (l *nodeLink) install(c *wire.Client) error {
	ctx, cancel := context.WithTimeout(l.life, linkDialTime)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	pool, layouts := l.pool.get()
	number, m, err := rack.ReadMember(ctx, c)
	if err == nil && m == nil && !st.Index.Complete { // it was made to rejoin
		l.log.Info("a data node that was made anew rejoins the pool", "node", l.name)
		if err = pool.Tell(ctx, l.number, c, layouts); err == nil {
			number, m, err = rack.ReadMember(ctx, c)
		}
	}
	if err != nil {
		return err
	}
	joins := m == nil && pool.Nodes[l.number].State == rack.NodeJoining // and is told soon
	if !joins && (m == nil || number != l.number || !m.Same(pool)) {
		return fmt.Errorf("data node %s has not what it had of the pool: its directory is another one; make one with plinth datanode --rejoin if its drives are lost", l.name)
	}
	l.mu.Lock()
	reserved := maps.Clone(l.reserved)
	l.mu.Unlock()
	for host, bytes := range reserved {
		if err := c.Reserve(ctx, &datanode.ReserveRequest{Host: host, Bytes: bytes, Force: true}); err != nil {
			return err
		}
	}
	boot := logset.Boot(st.BootID)
	l.boot.Store(&boot)
	l.Set(c)
	select {
	case <-l.first:
	default:
		close(l.first)
	}
	return nil
}
