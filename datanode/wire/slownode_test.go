package wire

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// slowNode is a real node whose Append and Reserve wait until they may go on,
// and that counts.
type slowNode struct {
	datanode.Node
	appends  atomic.Int32
	running  atomic.Int32
	most     atomic.Int32
	reserves atomic.Int32
	began    chan struct{}
	mayGo    chan struct{}
	stubborn bool // does not look at its context
}

func newSlowNode(t testing.TB) *slowNode {
	return &slowNode{Node: newShelf(t), began: make(chan struct{}, 10000), mayGo: make(chan struct{})}
}

func (n *slowNode) wait(ctx context.Context) error {
	now := n.running.Add(1)
	defer n.running.Add(-1)
	for most := n.most.Load(); now > most && !n.most.CompareAndSwap(most, now); most = n.most.Load() {
	}
	n.began <- struct{}{}
	over := ctx.Done()
	if n.stubborn {
		over = nil
	}
	select {
	case <-n.mayGo:
		return nil
	case <-over:
		return ctx.Err()
	}
}

func (n *slowNode) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	n.appends.Add(1)
	if err := n.wait(ctx); err != nil {
		return nil, err
	}
	return n.Node.Append(ctx, r)
}

func (n *slowNode) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	n.reserves.Add(1)
	if err := n.wait(ctx); err != nil {
		return err
	}
	return n.Node.Reserve(ctx, r)
}

// bench is a slow node behind a proxy.
type bench struct {
	*testing.T
	ca    *authority
	node  *slowNode
	v     *served
	proxy *proxy
	c     *Client
}

func newBench(t *testing.T, so ServerOptions, co ClientOptions) *bench {
	noLeaks(t)
	b := &bench{T: t, ca: newAuthority(t), node: newSlowNode(t)}
	so.TLS = b.ca.node(t)
	b.v = serve(t, b.node, so, "127.0.0.1:0")
	b.proxy = newProxy(t, b.v.address, false, 1)
	co.TLS, co.Paths = b.ca.host(t), append([]string{b.proxy.address}, co.Paths...)
	b.c = dial(t, co)
	t.Cleanup(func() {
		close(b.node.mayGo)
		if err := b.c.Close(); err != nil {
			t.Error(err)
		}
		b.proxy.close()
		b.v.stop(t)
	})
	for b.c.links[0].current() == nil || b.c.links[1].current() == nil {
		time.Sleep(time.Millisecond)
	}
	b.fence(1)
	return b
}

func (b *bench) fence(d id.Disk) {
	b.Helper()
	if _, err := b.c.Fence(b.Context(), &datanode.FenceRequest{Disk: d, Epoch: 1}); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) append(ctx context.Context, d id.Disk, pos id.Pos) error {
	_, err := b.c.Append(ctx, &datanode.AppendRequest{Disk: d, Epoch: 1, Records: []datanode.Record{{Pos: pos, Data: []byte("data")}}})
	return err
}

// start runs a call and says what it gave.
func start(call func() error) chan error {
	out := make(chan error, 1)
	go func() { out <- call() }()
	return out
}

// want fails the test unless a call ends with the error soon.
func (b *bench) want(what string, got chan error, want error) {
	b.Helper()
	select {
	case err := <-got:
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			b.Errorf("%s gave %v, want %v", what, err, want)
		}
	case <-time.After(20 * time.Second):
		b.Fatalf("%s does not end", what)
	}
}

func (b *bench) begun() {
	b.Helper()
	select {
	case <-b.node.began:
	case <-time.After(20 * time.Second):
		b.Fatal("the call does not reach the node")
	}
}

// down waits until the client has no connection.
func (b *bench) down() {
	for b.c.links[0].current() != nil || b.c.links[1].current() != nil {
		time.Sleep(time.Millisecond)
	}
}

// release lets n calls that wait go on.
func (b *bench) release(n int) {
	for range n {
		b.node.mayGo <- struct{}{}
	}
}

func (b *bench) ends(d id.Disk) id.Pos {
	b.Helper()
	reply, err := b.node.ReadLog(b.Context(), &datanode.ReadLogRequest{Disk: d, Epoch: 1, From: 1})
	if err != nil {
		b.Fatal(err)
	}
	return id.Pos(len(reply.Records))
}
