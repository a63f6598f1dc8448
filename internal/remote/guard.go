package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
)

// One host at a time uses a pool, until disks have owners (docs/design/hosts.md).
// What is in this file stands for that.

var (
	// ErrServed: another host serves the pool. It must be stopped, or its lease end.
	ErrServed = errors.New("another host serves the pool")
	// ErrLost: another host has served the pool since this process did. Clients must
	// connect anew, to a new process: what they know of their disks may be old.
	ErrLost = errors.New("another host has served the pool meanwhile")
)

const (
	// guardKey is under the holder's lease, and has the holder.
	guardKey = "serving"
	// lastKey has the last holder's process, without a lease.
	lastKey = "served"
	// guardTTL is longer than a wire.Client waits for its node, so that a short
	// outage does not end the lease.
	guardTTL = 30 * time.Second
	// hostTTL is of the lease of a host's own session, which is kept alive at a third.
	hostTTL = 40 * time.Second
	// guardParts of the TTL lie between two keep-alives.
	guardParts = 6
	// guardTries bounds how often the lease is asked for again because the registry
	// changed.
	guardTries = 8
	// revokeTimeMax bounds giving the lease up.
	revokeTimeMax = 5 * time.Second
)

// holder is who serves the pool.
type holder struct {
	Host string `json:"host"`
	// Instance is of the host's directory, which one process has open at a time: who
	// has it knows that an earlier process with it has ended.
	Instance string `json:"instance"`
	// Process is drawn at each start.
	Process string `json:"process"`
}

// guard is the lease under which this process serves the pool.
type guard struct {
	node  datanode.RegistryNode
	log   *slog.Logger
	lease datanode.LeaseID

	until  atomic.Int64 // how long it lasts, by host.BootTime, in nanoseconds
	ending sync.Once
	lost   chan struct{} // closed when it has ended

	stop context.CancelFunc
	work sync.WaitGroup
}

// takeGuard takes the lease. again says that this process has held it before.
// Errors: ErrServed, ErrLost, those of the registry.
func takeGuard(ctx context.Context, node datanode.RegistryNode, me holder, again bool, log *slog.Logger) (*guard, error) {
	g := &guard{node: node, log: log, lost: make(chan struct{})}
	from := host.BootTime()
	reply, err := node.RegistryGrant(ctx, &datanode.RegistryGrantRequest{TTL: guardTTL})
	if err != nil {
		return nil, err
	}
	g.lease = reply.Lease
	g.until.Store(int64(from + guardTTL))
	old, err := g.put(ctx, me, again)
	if err != nil {
		g.revoke(ctx, g.lease)
		return nil, err
	}
	if old != 0 {
		g.revoke(ctx, old)
	}
	life, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.work.Go(func() { g.keep(life) })
	return g, nil
}

// put puts the holder under the lease, in place of an earlier process with the same
// directory, whose lease it returns.
func (g *guard) put(ctx context.Context, me holder, again bool) (old datanode.LeaseID, err error) {
	value, err := json.Marshal(&me)
	if err != nil {
		return 0, err
	}
	for range guardTries {
		serving, err := get(ctx, g.node, guardKey)
		if err != nil {
			return 0, err
		}
		last, err := get(ctx, g.node, lastKey)
		if err != nil {
			return 0, err
		}
		if serving.Revision != 0 {
			var is holder
			if err := json.Unmarshal(serving.Value, &is); err != nil {
				return 0, fmt.Errorf("%s of the registry: %w", guardKey, err)
			}
			if is.Instance != me.Instance {
				return 0, fmt.Errorf("%w: %s; one at a time can: stop that one, or if it is gone wait until its lease has ended, at most %v", ErrServed, is.Host, guardTTL+guardTTL/datanode.LeaseMarginDivisor)
			}
		}
		if again && string(last.Value) != me.Process {
			return 0, ErrLost
		}
		_, err = g.node.RegistryCommit(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: guardKey, Revision: serving.Revision}, {Key: lastKey, Revision: last.Revision}},
			Puts:     []datanode.Put{{Key: guardKey, Value: value, Lease: g.lease}, {Key: lastKey, Value: []byte(me.Process)}},
		})
		if !errors.Is(err, datanode.ErrConflict) {
			return serving.Lease, err
		}
	}
	return 0, fmt.Errorf("%s of the registry: %w", guardKey, datanode.ErrConflict)
}

// get returns an entry, of revision 0 if there is none.
func get(ctx context.Context, node datanode.RegistryNode, key string) (*datanode.RegistryGetReply, error) {
	reply, err := node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: key})
	if errors.Is(err, datanode.ErrNotFound) {
		return &datanode.RegistryGetReply{}, nil
	}
	return reply, err
}

// keep keeps the lease alive until ctx or the lease ends.
func (g *guard) keep(ctx context.Context) {
	tick := time.NewTicker(guardTTL / guardParts)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.lost:
			return
		case <-tick.C:
		}
		from := host.BootTime()
		err := g.node.RegistryKeepAlive(ctx, &datanode.RegistryKeepAliveRequest{Lease: g.lease})
		switch {
		case err == nil:
			g.until.Store(int64(from + guardTTL))
		case errors.Is(err, datanode.ErrLeaseLost):
			g.end("the registry has ended it")
			return
		}
		_ = g.mayReply() // ends it if it is time to
	}
}

// mayReply returns nil while the lease lasts, which is what a reply needs (I6).
func (g *guard) mayReply() error {
	if int64(host.BootTime()) < g.until.Load() {
		return nil
	}
	g.end("it was not kept alive in time")
	return datanode.Errorf(datanode.ErrLeaseLost, "this host may not serve the pool")
}

func (g *guard) end(why string) {
	g.ending.Do(func() {
		g.until.Store(0)
		g.log.Warn("the lease of the pool has ended", "why", why)
		close(g.lost)
	})
}

// close stops keeping the lease alive.
func (g *guard) close() {
	g.stop()
	g.work.Wait()
}

// release gives the lease up, so that another host need not wait for its end.
func (g *guard) release() {
	g.close()
	g.until.Store(0)
	g.revoke(context.Background(), g.lease)
}

// revoke ends a lease; one that cannot be ended now ends by itself.
func (g *guard) revoke(ctx context.Context, lease datanode.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeMax)
	defer cancel()
	if err := g.node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: lease}); err != nil {
		g.log.Warn("a lease stays until its time is over", "err", err)
	}
}
