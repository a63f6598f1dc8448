package host_test

import (
	"context"
	"sync/atomic"
	"testing"

	"plinth/datanode"
	"plinth/internal/host"
)

// relisting is a node whose watch of disks is lost once: the host lists them again, and
// gets the list late. The log of a new disk waits too.
type relisting struct {
	datanode.Node
	lose   context.Context // the watch, when it ends
	lost   atomic.Bool
	listed chan struct{} // closed when the list is made
	told   chan struct{} // the host gets it when that is closed
	seen   chan struct{} // closed when the host has taken it
	open   chan struct{} // a log is taken over, and disks are watched again, when that is closed
	begun  chan struct{} // closed when a log's takeover waits for that
}

const disksPrefix = "disk/"

func (n *relisting) RegistryWatch(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	if q.Prefix != disksPrefix {
		return n.Node.RegistryWatch(ctx, q)
	}
	if n.lost.Load() {
		select {
		case <-n.seen:
		default:
			close(n.seen)
		}
		<-n.open
		return n.Node.RegistryWatch(ctx, q)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.lose, cancel)()
	reply, err := n.Node.RegistryWatch(ctx, q)
	if n.lose.Err() != nil {
		n.lost.Store(true)
		return nil, datanode.ErrCompacted
	}
	return reply, err
}

func (n *relisting) RegistryList(ctx context.Context, q *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	reply, err := n.Node.RegistryList(ctx, q)
	if q.Prefix == disksPrefix && n.lost.CompareAndSwap(true, true) {
		select {
		case <-n.listed: // this one is not the watch's
		default:
			close(n.listed)
			<-n.told
		}
	}
	return reply, err
}

func (n *relisting) Fence(ctx context.Context, q *datanode.FenceRequest) (*datanode.FenceReply, error) {
	if n.lost.Load() {
		select {
		case <-n.begun:
		default:
			close(n.begun)
		}
		<-n.open
	}
	return n.Node.Fence(ctx, q)
}

// TestCloneBesideAnOlderList: what a host is told of all disks may be older than a clone
// that it has made since. The clone's parent holds what it needs all the same: found by
// the simulation of pools (internal/sim, seed 742), whose hosts did as this one did.
func TestCloneBesideAnOlderList(t *testing.T) {
	r := openRack(t)
	lose, end := context.WithCancel(t.Context())
	n := &relisting{
		Node: r.node, lose: lose, listed: make(chan struct{}), told: make(chan struct{}), seen: make(chan struct{}),
		open: make(chan struct{}), begun: make(chan struct{}),
	}
	a := r.openOn(n, "a", host.Options{LeaseTTL: longTTL})
	one, two := noise(1, 1<<20), noise(2, 1<<20)
	a.create("vm", one)
	_, err := a.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"vm"}, Name: "s"})
	r.ok(err)
	r.ok(a.Quiesce(t.Context())) // the clone begins with this checkpoint

	end()
	<-n.listed
	cloned := make(chan error, 1)
	go func() {
		_, err := a.Clone(context.WithoutCancel(t.Context()), "vm", "s", "new")
		cloned <- err
	}()
	<-n.begun
	close(n.told)
	<-n.seen
	r.ok(a.write("vm", two))
	r.ok(a.Quiesce(t.Context()))
	for range 2 {
		r.ok(a.Sweep(t.Context()))
	}
	close(n.open)
	r.ok(<-cloned)
	a.has("new", one)
	a.has("vm", two)
	r.quiet(a)
}
