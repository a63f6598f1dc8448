package host

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/keyring"
	"plinth/internal/rack"
	"plinth/internal/vfsx/crashfs"
)

// wholeHost is one host after the other of one name.
type wholeHost struct {
	run  *whole
	name string
	ways [wholeNodes]*wholeWay
	jump atomic.Int64 // of its clock, ns

	mu   sync.Mutex
	rng  *rand.Rand // of its messages
	now  *Host      // nil: it is away
	rack *rack.Rack
}

func (h *wholeHost) host() *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *wholeHost) draw(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(n)
}

// open opens the host, for as long as it takes.
func (h *wholeHost) open() {
	w := h.run
	root, err := keyring.LoadRootFile(w.key)
	w.ok(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		host, r, err := h.try(root)
		if err == nil {
			h.mu.Lock()
			h.now, h.rack = host, r
			h.mu.Unlock()
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s does not open: %v", h.name, err)
		}
	}
}

func (h *wholeHost) try(root *keyring.Root) (*Host, *rack.Rack, error) {
	w := h.run
	r, err := w.nodes.TryRackBy(rack.Options{Logger: w.logger(h.name)}, func(n int) datanode.Replica { return h.ways[n] })
	if err != nil {
		return nil, nil, err
	}
	host, err := Open(w.Context(), r, root, Options{
		Name: h.name, Peer: h.name + ":1", FS: crashfs.New(), Dir: "host", CacheBytes: 1 << 20, RAMCacheBytes: RAMCacheBytesMin,
		LeaseTTL: wholeTTL, DestageInterval: 300 * time.Millisecond, IdleTime: time.Second, CheckpointUpdates: 100, Logger: w.logger(h.name),
		clock: func() time.Duration { return time.Since(w.began) + time.Duration(h.jump.Load()) },
	})
	if err != nil {
		_ = r.Close()
	}
	return host, r, err
}

// kill ends the host, as a death does: nothing of it reaches anybody any more.
func (h *wholeHost) kill() {
	h.cut(true)
	h.close()
	h.cut(false)
}

func (h *wholeHost) close() {
	h.mu.Lock()
	host, r := h.now, h.rack
	h.now, h.rack = nil, nil
	h.mu.Unlock()
	if host != nil {
		_ = host.Close()
		_ = r.Close()
	}
}

func (h *wholeHost) cut(cut bool) {
	for n := range h.ways {
		h.ways[n].sever(cut)
	}
}

// broken says that the host wants another session, as its agent would see.
func (h *wholeHost) broken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rack == nil {
		return true
	}
	select {
	case <-h.rack.Broken():
		return true
	default:
		return false
	}
}

// wholeWay is a host's way to a node. Calls take a while, and while it is bad some or
// their answers are lost.
type wholeWay struct {
	*datanode.Switch
	node *datanode.Switch
	host *wholeHost
	bad  atomic.Bool
}

func (k *wholeWay) sever(cut bool) {
	if cut {
		k.Set(nil)
	} else {
		k.Set(k.node)
	}
}

// late makes a call after a while, or loses it or its answer.
func late[Q, R any](ctx context.Context, k *wholeWay, q *Q, call func(context.Context, *Q) (*R, error)) (*R, error) {
	time.Sleep(time.Duration(k.host.draw(2000)) * time.Microsecond)
	fate := 0
	if k.bad.Load() {
		fate = k.host.draw(6)
	}
	if fate == 1 {
		return nil, errNoAnswer
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := call(ctx, q)
	if fate == 2 {
		return nil, errNoAnswer
	}
	return r, err
}

func lateEmpty[Q any](ctx context.Context, k *wholeWay, q *Q, call func(context.Context, *Q) error) error {
	_, err := late(ctx, k, q, func(ctx context.Context, q *Q) (*struct{}, error) { return nil, call(ctx, q) })
	return err
}

func (k *wholeWay) Append(ctx context.Context, q *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if !k.bad.Load() || k.host.draw(4) > 0 {
		return late(ctx, k, q, k.Switch.Append)
	}
	// It comes when nobody waits for it any more.
	later := keptAppend(q)
	after := time.Duration(k.host.draw(int(2 * wholeTTL)))
	go func() {
		time.Sleep(after)
		_, _ = k.node.Append(context.Background(), later)
	}()
	return nil, errNoAnswer
}

func (k *wholeWay) JoinLog(ctx context.Context, q *datanode.JoinLogRequest) (*datanode.JoinLogReply, error) {
	return late(ctx, k, q, k.Switch.JoinLog)
}

func (k *wholeWay) CopyLog(ctx context.Context, q *datanode.CopyLogRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.CopyLog)
}

func (k *wholeWay) ResetLog(ctx context.Context, q *datanode.ResetLogRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.ResetLog)
}

func (k *wholeWay) Sync(ctx context.Context, q *datanode.SyncRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.Sync)
}

func (k *wholeWay) TrimLog(ctx context.Context, q *datanode.TrimLogRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.TrimLog)
}

func (k *wholeWay) WriteFragments(ctx context.Context, q *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return late(ctx, k, q, k.Switch.WriteFragments)
}

func (k *wholeWay) ReadFragments(ctx context.Context, q *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	return late(ctx, k, q, k.Switch.ReadFragments)
}

func (k *wholeWay) Lookup(ctx context.Context, q *datanode.LookupRequest) (*datanode.LookupReply, error) {
	return late(ctx, k, q, k.Switch.Lookup)
}

func (k *wholeWay) Publish(ctx context.Context, q *datanode.PublishRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.Publish)
}

func (k *wholeWay) SetLists(ctx context.Context, q *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	return late(ctx, k, q, k.Switch.SetLists)
}

func (k *wholeWay) Condemn(ctx context.Context, q *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	return late(ctx, k, q, k.Switch.Condemn)
}

func (k *wholeWay) Forward(ctx context.Context, q *datanode.ForwardRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.Forward)
}

func (k *wholeWay) Reclaim(ctx context.Context, q *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	return late(ctx, k, q, k.Switch.Reclaim)
}

func (k *wholeWay) RegistryCommit(ctx context.Context, q *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	return late(ctx, k, q, k.Switch.RegistryCommit)
}

func (k *wholeWay) RegistryKeepAlive(ctx context.Context, q *datanode.RegistryKeepAliveRequest) error {
	return lateEmpty(ctx, k, q, k.Switch.RegistryKeepAlive)
}
