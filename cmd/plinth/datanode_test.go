package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/datanode/wire/wiretest"
	"plinth/internal/pki"
)

// A data node as its command makes and serves it, reached by a host's client; it stops when
// it is told to.
func TestDataNodeCommand(t *testing.T) {
	dir, pool := t.TempDir(), [16]byte{1, 2, 3}
	data := filepath.Join(dir, "datanode")
	cluster := hex.EncodeToString(pool[:])
	ca := wiretest.NewAuthority(t)
	writePEM(t, dir, "ca", "CERTIFICATE", ca.DER)
	run := func(ctx context.Context, uri string, more ...string) error {
		settings := ca.Config(t, uri)
		writePEM(t, dir, "cert", "CERTIFICATE", settings.Certificates[0].Certificate[0])
		key, err := x509.MarshalPKCS8PrivateKey(settings.Certificates[0].PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, dir, "key", "PRIVATE KEY", key)
		return newApp().RunContext(ctx, append([]string{
			"plinth", "datanode", "--dir", data, "--listen", "unix:" + filepath.Join(dir, "s"),
			"--cert", filepath.Join(dir, "cert"), "--key", filepath.Join(dir, "key"), "--ca", filepath.Join(dir, "ca"),
			"--spindles", "4", "--log-size", "12M", "--spindle-size", "16M",
		}, more...))
	}
	settings := ca.Config(t, "plinth://"+cluster+"/host/h1")
	serves(t, dir, pool, wire.ClientOptions{TLS: settings, Cluster: cluster}, func(ctx context.Context) error {
		return run(ctx, "plinth://"+cluster+"/datanode/n1")
	})
	for uri, want := range map[string]string{
		"plinth://" + cluster + "/host/n1":                     "is a host's",
		"plinth://" + strings.Repeat("0", 32) + "/datanode/n1": "the certificate is of pool 0000",
		"plinth://" + cluster[:30] + "/datanode/n1":            "not the id of a pool",
		"https://" + cluster + "/datanode/n1":                  "plinth URIs",
	} {
		if err := run(t.Context(), uri); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", uri, err)
		}
	}
	if err := run(t.Context(), "plinth://"+cluster+"/datanode/n1", "--rejoin"); err == nil || !strings.Contains(err.Error(), "leave --rejoin out") {
		t.Errorf("rejoin with a node: %v", err)
	}
	// Once more: the data node that was made is found again.
	serves(t, dir, pool, wire.ClientOptions{TLS: settings, Cluster: cluster}, func(ctx context.Context) error {
		return run(ctx, "plinth://"+cluster+"/datanode/n1")
	})
	// Made anew, as one that was lost, its index is not complete.
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	serves(t, dir, pool, wire.ClientOptions{TLS: settings, Cluster: cluster}, func(ctx context.Context) error {
		return run(ctx, "plinth://"+cluster+"/datanode/n1", "--rejoin")
	})
	s, err := shelf.Open(t.Context(), data, shelf.Options{PoolID: pool, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if st, err := s.Status(t.Context()); err != nil || st.Index.Complete {
		t.Errorf("its index: %+v, %v", st, err)
	}
}

// The same with identities of plinth's own authority.
func TestDataNodeIdentity(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	authority, admin, err := pki.Init(filepath.Join(dir, "authority"), pki.InitOptions{}, log)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- pki.NewServer(authority, admin, log).Serve(ctx, l) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	join := func(role pki.Role, name string) *pki.Identity {
		token, _, err := authority.CreateToken(pki.TokenOptions{Role: role, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		i, err := pki.Join(ctx, filepath.Join(dir, name), pki.JoinOptions{Token: token, Server: l.Addr().String()}, log)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	node, host := join(pki.RoleDataNode, "n1"), join(pki.RoleHost, "h1")
	pool := [16]byte(node.Self().Cluster)
	makeDataNode(t, dir, pool)
	opts := wire.ClientOptions{TLS: host.ClientConfig(pki.RoleDataNode, "n1"), Guard: host.Guard, Cluster: host.Self().Cluster.String()}
	serves(t, dir, pool, opts, func(ctx context.Context) error {
		return newApp().RunContext(ctx, []string{
			"plinth", "datanode", "--dir", filepath.Join(dir, "datanode"), "--listen", "unix:" + filepath.Join(dir, "s"), "--identity", filepath.Join(dir, "n1"),
		})
	})
}

func makeDataNode(t *testing.T, dir string, pool [16]byte) {
	t.Helper()
	data := filepath.Join(dir, "datanode")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := shelf.Create(data, shelf.Options{PoolID: pool, Spindles: 4, LogBytes: 12 << 20, SpindleBytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
}

// serves runs the command, asks the node for its status, and stops the command.
func serves(t *testing.T, dir string, pool [16]byte, opts wire.ClientOptions, run func(context.Context) error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	dial, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	opts.Node, opts.Pool, opts.Paths = "n1", pool, []string{"unix:" + filepath.Join(dir, "s")}
	c, err := wire.Dial(dial, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	st, err := c.Status(t.Context())
	if err != nil || len(st.Spindles) != 4 || st.PoolID != pool {
		t.Errorf("status %+v, %v", st, err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the data node does not stop")
	}
}

func writePEM(t *testing.T, dir, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
