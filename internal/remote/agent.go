package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"path/filepath"
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

// Options say who the agent is and where its data node. Name, Dir and Node are
// needed.
type Options struct {
	// Name is what the host's certificate calls it.
	Name string
	// Dir is for what is this host's and disposable. One process has it open.
	Dir string
	// Node says how the data node is reached; Logger is filled in.
	Node wire.ClientOptions
	// Keys say where the root key is; its file by default is root.key in Dir.
	Keys host.RootSource
	// Geometry is of a pool that is still to be made, as for standalone.
	Geometry stripe.Geometry
	// Peer says where other hosts reach this one.
	Peer PeerOptions
	// Host are the agent's tunables; Name, Dir, Peer, Logger and Resume are filled in.
	Host   host.Options
	Logger *slog.Logger // slog.Default if nil
}

// Agent serves a pool's disks from a data node far away. [Open] makes one.
type Agent struct {
	opts Options
	log  *slog.Logger
	root *keyring.Root
	peer *peerServer // nil: none
	// tls is of connections between hosts; set once, by the first session.
	tls *tls.Config

	life   context.Context // ends at Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	ended  chan struct{} // closed when no session follows
	failed error         // why, once ended is closed

	now atomic.Pointer[session] // the newest
}

// session is one client and the host on it.
type session struct {
	client *wire.Client
	host   *host.Host
	// over is closed when there is a next session, or never will be: next is then nil.
	over chan struct{}
	next *session
}

// broken reports whether the session has ended, or will at once.
func (s *session) broken() bool {
	select {
	case <-s.client.Broken():
		return true
	default:
		return false
	}
}

// Open begins the first session. Errors are for an operator.
func Open(ctx context.Context, opts Options) (*Agent, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	opts.Node.Logger = opts.Logger
	if opts.Keys.File == "" {
		opts.Keys.File = filepath.Join(opts.Dir, "root.key")
	}
	opts.Host.Dir = filepath.Join(opts.Dir, "host")
	a := &Agent{opts: opts, log: opts.Logger, ended: make(chan struct{})}
	a.life, a.cancel = context.WithCancel(context.Background())
	if err := vfsx.MakeDir(vfs.Default, a.opts.Host.Dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if a.peer, err = listenPeers(opts.Peer, opts.Node.Paths); err != nil {
		return nil, err
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeMax)
	defer cancel()
	s, err := a.begin(ctx, dial, nil)
	if err == nil {
		if a.tls, err = forward.TLS(s.host.Keys(), opts.Name); err != nil {
			err = errors.Join(err, s.close())
		}
	}
	if err != nil {
		a.cancel()
		a.peer.close()
		return nil, err
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
	if s.client, err = wire.Dial(dial, a.opts.Node); err != nil {
		return nil, err
	}
	if a.root == nil { // its file need not be there later
		if a.root, err = host.FindPool(ctx, s.client, &a.opts.Keys, a.opts.Geometry); err != nil {
			return nil, err
		}
	}
	opts := a.opts.Host
	opts.Name, opts.Peer = a.opts.Name, a.peer.address()
	opts.Resume, opts.Logger = tails, slog.New(quiet{a.log.Handler(), s})
	if s.host, err = host.Open(ctx, s.client, a.root, opts); err != nil {
		return nil, err
	}
	if err := s.host.CheckGeometry(a.opts.Geometry); err != nil {
		return nil, err
	}
	if s.broken() { // and so disks may not have opened that will
		return nil, datanode.Errorf(datanode.ErrUnreachable, "the data node went away while disks were opened")
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
	if s.client != nil {
		_ = s.client.Close() // it has no errors of its own
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
		select {
		case <-s.client.Broken():
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
	a.log.Warn("the session with the data node has ended: requests wait for the next one")
	began := time.Now()
	a.opts.Host.CPU = s.host.CPUWanted() // which may have been changed
	tails := s.end()
	said := ""
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		next, err := a.begin(a.life, a.life, tails)
		if err == nil {
			s.next = next
			a.now.Store(next)
			close(s.over)
			a.log.Info("a new session with the data node serves", "after", time.Since(began).Round(time.Millisecond))
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
	return a.now.Load().close()
}
