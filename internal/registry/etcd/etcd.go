package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"plinth/datanode"
)

// Options of Open. Endpoints and Pool are needed, and TLS or Insecure.
type Options struct {
	// Endpoints are the members' client URLs or addresses.
	Endpoints []string
	// Pool names the pool: letters, digits and - up to 64.
	Pool string
	// TLS is what connections use. Insecure does without: for tests on one machine.
	TLS      *tls.Config
	Insecure bool
	// User and Password are for a cluster with authentication; the user needs to
	// read and write plinth/POOL/.
	User, Password string
	// Create makes an empty registry where there is none: right for a new pool only.
	Create bool
	// Timeout bounds each call to etcd; 0: 5 s. RegistryCommit may take three times
	// as long where answers are lost.
	Timeout time.Duration
	// Poll is how often leases are looked at; 0: 1 s. A lease ends up to that much
	// later.
	Poll time.Duration
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

const (
	timeoutDefault = 5 * time.Second
	pollDefault    = time.Second
	// The connection is given up when the other end is silent for these together.
	pingAfter   = 2 * time.Second
	pingTimeout = 3 * time.Second
	sendMax     = 1536 << 10 // as etcd's --max-request-bytes
	endpointMax = 64
	metaVersion = 1
)

var poolName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// withDefaults checks the options and fills in what is 0.
func (o Options) withDefaults() (Options, error) {
	if len(o.Endpoints) == 0 || len(o.Endpoints) > endpointMax {
		return o, datanode.Errorf(datanode.ErrInvalid, "%d endpoints of etcd", len(o.Endpoints))
	}
	if !poolName.MatchString(o.Pool) {
		return o, datanode.Errorf(datanode.ErrInvalid, "pool %q", o.Pool)
	}
	if (o.TLS == nil) != o.Insecure {
		return o, datanode.Errorf(datanode.ErrInvalid, "etcd needs TLS, or to be said insecure")
	}
	if o.Timeout < 0 || o.Poll < 0 {
		return o, datanode.Errorf(datanode.ErrInvalid, "timeout %v, poll %v", o.Timeout, o.Poll)
	}
	if o.Timeout == 0 {
		o.Timeout = timeoutDefault
	}
	if o.Poll == 0 {
		o.Poll = pollDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// meta is what the registry says of itself.
type meta struct {
	Version int    `json:"version"` // 1
	Offset  uint64 `json:"offset"`  // of revisions above etcd's
}

// Registry implements datanode.RegistryNode.
type Registry struct {
	client *clientv3.Client
	opts   Options
	root   string
	offset uint64
	log    *slog.Logger
	start  time.Time

	// newest is the highest revision of etcd that this Registry saw: a later answer
	// below it comes from a cluster that was set back.
	newest atomic.Int64

	// life ends at Close; calls are held shared until they return.
	life    context.Context
	end     context.CancelFunc
	calls   sync.RWMutex
	isEnded bool // calls
	keeper  sync.WaitGroup

	slots     chan struct{} // as many commits at once
	beginning sync.Mutex    // held, before mu, by who looks for a session or begins one
	mu        sync.Mutex
	session   *session // nil: none yet
}

var _ datanode.RegistryNode = (*Registry)(nil)

// Open connects to a registry. Errors: ErrInvalid, ErrNotFound (there is none),
// ErrUnreachable.
func Open(ctx context.Context, opts Options) (*Registry, error) {
	r, err := connect(opts)
	if err != nil {
		return nil, err
	}
	if err := r.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open registry %s of etcd: %w", r.root, err), r.client.Close())
	}
	r.keeper.Go(r.keep)
	return r, nil
}

// connect makes a Registry that has not looked at etcd yet.
func connect(opts Options) (*Registry, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: opts.Endpoints, TLS: opts.TLS, Username: opts.User, Password: opts.Password,
		DialTimeout: opts.Timeout, DialKeepAliveTime: pingAfter, DialKeepAliveTimeout: pingTimeout,
		MaxCallSendMsgSize: sendMax, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", failed(err))
	}
	r := &Registry{
		client: client, opts: opts, root: "plinth/" + opts.Pool + "/", log: opts.Logger, start: time.Now(),
		slots: make(chan struct{}, slotsMax),
	}
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// load finds the registry, or makes it.
func (r *Registry) load(ctx context.Context) error {
	key := r.root + "meta"
	if r.opts.Create {
		first, err := json.Marshal(meta{Version: metaVersion})
		if err != nil {
			return err
		}
		_, err = r.txn(ctx,
			[]clientv3.Cmp{absent(key), absent(r.root + "restoring")},
			[]clientv3.Op{clientv3.OpPut(key, string(first))}, nil)
		if err != nil {
			return failed(err)
		}
	}
	reply, err := r.fetch(ctx, key)
	if err != nil {
		return err
	}
	if len(reply.Kvs) == 0 {
		return datanode.Errorf(datanode.ErrNotFound, "no registry, or one that is being restored")
	}
	var m meta
	if err := json.Unmarshal(reply.Kvs[0].Value, &m); err != nil {
		return datanode.Errorf(datanode.ErrCorrupt, "%s: %v", key, err)
	}
	if m.Version != metaVersion {
		return datanode.Errorf(datanode.ErrCorrupt, "%s of version %d: a newer plinth made it", key, m.Version)
	}
	r.offset = m.Offset
	return nil
}

// Close ends watches, waits for calls, gives up the session and disconnects. It
// may be repeated. Leases that callers hold stay.
func (r *Registry) Close() error {
	r.end()
	r.calls.Lock()
	ended := r.isEnded
	r.isEnded = true
	r.calls.Unlock()
	if ended {
		return nil
	}
	r.keeper.Wait()
	if s := r.session; s != nil {
		if err := r.endLease(context.Background(), s.lease, 0); err != nil {
			r.log.Warn("the registry's session is left to end by itself", "error", err)
		}
	}
	return r.client.Close()
}

// enter begins a call.
func (r *Registry) enter() error {
	r.calls.RLock()
	if r.isEnded {
		r.calls.RUnlock()
		return datanode.ErrClosed
	}
	return nil
}

// now is a monotonic clock.
func (r *Registry) now() time.Duration { return time.Since(r.start) }

// txn runs a transaction within Timeout.
func (r *Registry) txn(ctx context.Context, cmps []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	before := r.newest.Load()
	reply, err := r.client.Txn(ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return nil, err
	}
	return reply, r.saw(before, reply.Header.Revision)
}

// fetch reads a range, linearizably, within Timeout. Its error is a node's.
func (r *Registry) fetch(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	within, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	before := r.newest.Load()
	reply, err := r.client.Get(within, key, opts...)
	if err == nil {
		err = r.saw(before, reply.Header.Revision)
	}
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return reply, failed(err)
}

// saw notes a revision of etcd, which cannot be below one that was seen before the
// call began, unless the cluster was restored from a backup: then what this
// Registry and its callers compare may hold by chance.
func (r *Registry) saw(before, revision int64) error {
	if revision < before {
		return datanode.Errorf(datanode.ErrConflict, "etcd was set back from revision %d to %d", before, revision)
	}
	for {
		now := r.newest.Load()
		if now >= revision || r.newest.CompareAndSwap(now, revision) {
			return nil
		}
	}
}
