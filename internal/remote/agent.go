package remote

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/wire"
	"plinth/internal/disk"
	"plinth/internal/forward"
	"plinth/internal/host"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/rack"
	"plinth/internal/stripe"
	"plinth/internal/vfsx"
)

const (
	// dialTimeMax bounds the first session's wait for the node.
	dialTimeMax = 20 * time.Second
	// retryMin and retryMax bound the pause between two attempts to begin a session.
	retryMin = 20 * time.Millisecond
	retryMax = time.Second
)

// Options say who the agent is and where its data nodes. Name, Dir, Node and Paths are
// needed.
type Options struct {
	// Name is what the host's certificate calls it.
	Name string
	// Dir is for what is this host's and disposable. One process has it open.
	Dir string
	// Node says how data nodes are reached; Paths and Logger are filled in.
	Node wire.ClientOptions
	// Paths are the addresses of data nodes: of all that a new pool shall have, in their
	// order, or of one of a pool that is there, or more.
	Paths [][]string
	// Keys say where the root key is; its file by default is root.key in Dir.
	Keys host.RootSource
	// Geometry is of a pool that is still to be made; default: what the number of nodes
	// and spindles allows.
	Geometry stripe.Geometry
	// OpenRegistry, if not nil, opens a registry that stands beside the data nodes, of which
	// there are several then, or with create makes an empty one where there is none.
	OpenRegistry func(ctx context.Context, create bool) (Registry, error)
	// Peer says where other hosts reach this one.
	Peer PeerOptions
	// Host are the agent's tunables; Name, Dir, Peer, DialFlash, Formers, Logger and Resume
	// are filled in.
	Host   host.Options
	Logger *slog.Logger // slog.Default if nil

	speaks forward.Versions // with other hosts; zero: forward.Speaks
	// lend, if not nil, answers other hosts in the place of host.Lend.
	lend func(fp id.Fingerprint, dst []byte) ([]byte, bool)
}

// Registry is one that stands beside the data nodes. The agent closes it.
type Registry interface {
	datanode.RegistryNode
	io.Closer
}

// Validate returns an error for addresses and connections out of bounds.
func (o Options) Validate() error {
	if len(o.Paths) == 0 || len(o.Paths) > rack.NodesMax {
		return fmt.Errorf("%d data nodes: 1 to %d", len(o.Paths), rack.NodesMax)
	}
	given := make(map[string]bool)
	for _, paths := range o.Paths {
		n := o.Node
		n.Paths = paths
		if err := n.Validate(); err != nil {
			return err
		}
		for _, p := range paths {
			if given[p] {
				return fmt.Errorf("%s is given twice", p)
			}
			given[p] = true
		}
	}
	return nil
}

// Agent serves a pool's disks from data nodes far away. [Open] makes one.
type Agent struct {
	opts Options
	log  *slog.Logger
	root *keyring.Root
	peer *peerServer // nil: none
	// paths are where the next session looks for the data nodes: it knows them all.
	paths [][]string
	// registry is nil where a data node has it, and before it is open.
	registry Registry
	// tls is of connections between hosts; peerTLS makes it, of the first session.
	tls     *tls.Config
	tlsErr  error
	makeTLS sync.Once

	life   context.Context // ends at Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	ended  chan struct{} // closed when no session follows
	failed error         // why, once ended is closed

	now atomic.Pointer[session] // the newest
}

// session is data nodes and the host on them.
type session struct {
	nodes *nodes
	host  *host.Host
	// over is closed when there is a next session, or never will be: next is then nil.
	over chan struct{}
	next *session
}

// broken reports whether the session has ended, or will at once.
func (s *session) broken() bool { return s.nodes.broken() }

// Open begins the first session. Errors are for an operator.
func Open(ctx context.Context, opts Options) (*Agent, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	opts.Node.Logger = opts.Logger
	opts.speaks = cmp.Or(opts.speaks, forward.Speaks)
	if opts.Keys.File == "" {
		opts.Keys.File = filepath.Join(opts.Dir, "root.key")
	}
	opts.Host.Dir = filepath.Join(opts.Dir, "host")
	a := &Agent{opts: opts, log: opts.Logger, paths: opts.Paths, ended: make(chan struct{})}
	a.life, a.cancel = context.WithCancel(context.Background())
	if err := vfsx.MakeDir(vfs.Default, a.opts.Host.Dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if a.peer, err = listenPeers(opts.Peer, slices.Concat(opts.Paths...)); err != nil {
		return nil, err
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeMax)
	defer cancel()
	s, err := a.begin(ctx, dial, nil)
	if err == nil {
		if _, err = a.peerTLS(s.host.Keys()); err != nil {
			err = errors.Join(err, s.close())
		}
	}
	if err != nil {
		a.cancel()
		a.peer.close()
		return nil, errors.Join(err, a.closeRegistry())
	}
	a.now.Store(s)
	a.peer.serve(a)
	a.work.Go(a.supervise)
	return a, nil
}

// begin begins a session, the first if tails is nil. dial bounds the wait for the
// node.
func (a *Agent) begin(ctx, dial context.Context, tails map[id.Disk]*disk.Tail) (_ *session, err error) {
	s := &session{over: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.nodes, err = a.reach(dial, a.root == nil); err != nil {
		return nil, err
	}
	if a.root == nil { // its file need not be there later
		if a.root, err = host.FindPool(ctx, s.nodes, &a.opts.Keys, s.nodes.make); err != nil {
			return nil, err
		}
	}
	opts := a.opts.Host
	opts.Name, opts.Peer, opts.Geometry = a.opts.Name, a.peer.address(), a.opts.Geometry
	opts.Resume, opts.Logger = tails, slog.New(quiet{a.log.Handler(), s})
	if a.peer != nil {
		opts.DialFlash = a.dialFlash
	}
	if s.host, err = host.Open(ctx, s.nodes, a.root, opts); err != nil {
		return nil, err
	}
	if s.broken() { // and so disks may not have opened that will
		return nil, datanode.Errorf(datanode.ErrUnreachable, "a data node went away while disks were opened")
	}
	return s, nil
}

// close ends a session, or what there is of one, and gives its lease up where the
// node answers.
func (s *session) close() (err error) {
	if s.host != nil && !s.broken() {
		err = s.host.Close()
	}
	s.end()
	return err
}

// end ends a session, or what there is of one, whose node may not answer any more.
// What it knew of the logs' ends comes back.
func (s *session) end() map[id.Disk]*disk.Tail {
	if s.nodes != nil {
		s.nodes.close()
	}
	if s.host == nil {
		return nil
	}
	_ = s.host.Close() // a map that cannot be closed well is made anew
	return s.host.Tails()
}

// supervise lets one session follow the other.
func (a *Agent) supervise() {
	for s := a.now.Load(); ; {
		ends := s.nodes.ends()
		select {
		case <-ends[0]:
		case <-ends[1]:
		case <-a.life.Done():
			return
		}
		next, err := a.follow(s)
		if err != nil {
			a.failed = err
			close(a.ended)
			close(s.over)
			return
		}
		s = next
	}
}

// follow ends a session and begins the next, for as long as that takes.
func (a *Agent) follow(s *session) (*session, error) {
	a.log.Warn("the session with the pool has ended: requests wait for the next one")
	began := time.Now()
	a.opts.Host.CPU = s.host.CPUWanted() // which may have been changed
	a.opts.Host.Formers = s.host.Formers()
	tails := s.end()
	if where := s.nodes.where(); where != nil {
		a.paths = where
	}
	said := ""
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		next, err := a.begin(a.life, a.life, tails)
		if err == nil {
			s.next = next
			a.now.Store(next)
			close(s.over)
			a.log.Info("a new session with the pool serves", "after", time.Since(began).Round(time.Millisecond))
			return next, nil
		}
		switch {
		case a.life.Err() != nil:
			return nil, host.ErrClosed
		case errors.Is(err, host.ErrInUse): // another process is this host now
			return nil, err
		}
		if text := oneLine(err); text != said {
			said = text
			a.log.Warn("no new session yet, will retry", "err", text)
		}
		select {
		case <-a.life.Done():
		case <-time.After(pause):
		}
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Host returns the newest session's host, which may be closed already.
func (a *Agent) Host() *host.Host { return a.now.Load().host }

// NewRootKey returns the root key's file if this agent has made it, or "".
func (a *Agent) NewRootKey() string { return a.opts.Keys.Made }

// Wait returns when ctx ends, or why no session can follow the last one.
func (a *Agent) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.ended:
		return a.failed
	}
}

// Close ends the last session and gives its lease up. Clients must have gone. It
// neither destages nor makes checkpoints.
func (a *Agent) Close() error {
	a.peer.close()
	a.cancel()
	a.work.Wait()
	return errors.Join(a.now.Load().close(), a.closeRegistry())
}

func (a *Agent) closeRegistry() error {
	if a.registry == nil {
		return nil
	}
	return a.registry.Close()
}
