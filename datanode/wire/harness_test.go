package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/datanode/wire/wiretest"
)

const (
	testCluster = "c1"
	testNode    = "n1"
)

// authority is a test's certificate authority.
type authority struct{ *wiretest.Authority }

func newAuthority(t testing.TB) *authority {
	t.Helper()
	return &authority{wiretest.NewAuthority(t)}
}

// config is TLS settings for both sides with a certificate of that identity.
func (a *authority) config(t testing.TB, who Identity, changes ...func(*x509.Certificate)) *tls.Config {
	t.Helper()
	return a.Config(t, who.String(), changes...)
}

func (a *authority) node(t testing.TB) *tls.Config {
	t.Helper()
	return a.config(t, Identity{testCluster, RoleDataNode, testNode})
}

func (a *authority) host(t testing.TB) *tls.Config {
	t.Helper()
	return a.config(t, Identity{testCluster, RoleHost, "h1"})
}

// quiet is a logger that says nothing: lost connections are what tests do.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// served is a node behind a server on a loopback port or unix socket.
type served struct {
	*Server
	address string
	ended   chan error
}

func serve(t testing.TB, node datanode.Node, opts ServerOptions, address string) *served {
	t.Helper()
	opts.Cluster, opts.Name = testCluster, testNode
	if opts.Logger == nil {
		opts.Logger = quiet
	}
	s, err := NewServer(context.Background(), node, opts)
	if err != nil {
		t.Fatal(err)
	}
	network, address := SplitPath(address)
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, address: l.Addr().String(), ended: make(chan error, 1)}
	if network == "unix" {
		v.address = "unix:" + v.address
	}
	go func() { v.ended <- s.Serve(l) }()
	return v
}

// stop closes the server, which must be willing.
func (v *served) stop(t testing.TB) {
	t.Helper()
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if err := <-v.ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

func dial(t testing.TB, opts ClientOptions) *Client {
	t.Helper()
	c, err := tryDial(opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tryDial(opts ClientOptions) (*Client, error) {
	if opts.Cluster == "" {
		opts.Cluster = testCluster
	}
	if opts.Logger == nil {
		opts.Logger = quiet
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return Dial(ctx, opts)
}

// noLeaks fails the test if it leaves goroutines behind. It is called first, so
// that its check comes after every other cleanup.
func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		t.Errorf("%d goroutines, %d before the test:\n%s", runtime.NumGoroutine(), before, stacks)
	})
}

// newShelf is a real node.
func newShelf(t testing.TB) *shelf.Shelf {
	t.Helper()
	opts, dir := shelfOptions(vfs.Default), t.TempDir()
	if err := shelf.Create(dir, opts); err != nil {
		t.Fatal(err)
	}
	s, err := shelf.Open(context.Background(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func shelfOptions(fs vfs.FS) shelf.Options {
	return shelf.Options{
		PoolID: [16]byte{7}, Spindles: 4, LogBytes: 12 << 20, SpindleBytes: 16 << 20, IndexCacheBytes: 1 << 20,
		FS: fs, Logger: quiet,
	}
}
