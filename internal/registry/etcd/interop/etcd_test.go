package interop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/registry"
	"plinth/internal/registry/etcd"
	"plinth/internal/registry/registrytest"
)

// pools counts those of a test's cluster.
type pools struct {
	*cluster
	made atomic.Int64
}

// next returns the options of a pool that is not there yet.
func (p *pools) next() etcd.Options { return p.options(fmt.Sprint("pool-", p.made.Add(1))) }

// site is a registry of its own in the cluster.
func (p *pools) site(t *testing.T) *registrytest.Site {
	opts := p.next()
	if _, err := etcd.Open(t.Context(), opts); !errors.Is(err, datanode.ErrNotFound) {
		t.Fatalf("a registry that nobody made: %v", err)
	}
	opts.Create = true
	r := open(t, opts)
	return &registrytest.Site{
		Node: r,
		Reopen: func() datanode.RegistryNode {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			opts.Create = false
			r = open(t, opts)
			return r
		},
		Dump: func() []byte {
			dump, _, err := r.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return dump
		},
		Restore: func(dump []byte) datanode.RegistryNode { return p.restore(t, dump) },
	}
}

// restore makes a new pool from a dump.
func (p *pools) restore(t *testing.T, dump []byte) datanode.RegistryNode {
	opts := p.next()
	if err := etcd.Restore(t.Context(), opts, dump); err != nil {
		t.Fatal(err)
	}
	if err := etcd.Restore(t.Context(), opts, dump); !errors.Is(err, datanode.ErrConflict) {
		t.Fatalf("restored over a registry: %v", err)
	}
	return open(t, opts)
}

func pebbleSite(t *testing.T) *registrytest.Site {
	p, err := registry.Open(vfs.NewMem(), "registry", registry.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &registrytest.Site{Node: p, Dump: func() []byte {
		dump, _, err := p.Dump()
		if err != nil {
			t.Fatal(err)
		}
		return dump
	}}
}

func TestContract(t *testing.T) {
	p := &pools{cluster: newCluster(t, 3)}
	t.Run("rules", func(t *testing.T) { registrytest.Run(t, p.site) })
	t.Run("Pebble's dump into etcd", func(t *testing.T) {
		registrytest.RunRestore(t, pebbleSite, func(dump []byte) datanode.RegistryNode { return p.restore(t, dump) })
	})
	t.Run("etcd's dump into Pebble", func(t *testing.T) {
		registrytest.RunRestore(t, p.site, func(dump []byte) datanode.RegistryNode {
			fs := vfs.NewMem()
			if err := registry.Restore(fs, "registry", dump); err != nil {
				t.Fatal(err)
			}
			q, err := registry.Open(fs, "registry", registry.Options{CheckEpoch: registrytest.FencedBelow(3)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { q.Close() })
			return q
		})
	})
	t.Run("compaction", p.compaction)
	t.Run("an interrupted restore", p.interrupted)
}

// What etcd forgot is said to be forgotten, and what it knows is not.
func (p *pools) compaction(t *testing.T) {
	s := p.site(t)
	first := put(t, s.Node, "a", "1")
	put(t, s.Node, "b", "2")
	last := put(t, s.Node, "a", "3")
	now, err := p.raw.Get(t.Context(), "ready")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.raw.Compact(t.Context(), now.Header.Revision); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Node.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{After: first, Wait: 10 * time.Second}); !errors.Is(err, datanode.ErrCompacted) {
		t.Fatalf("a watch from before: %v", err)
	}
	if _, err := s.Node.RegistryList(t.Context(), &datanode.RegistryListRequest{At: first}); !errors.Is(err, datanode.ErrCompacted) {
		t.Fatalf("a list from before: %v", err)
	}
	list, err := s.Node.RegistryList(t.Context(), &datanode.RegistryListRequest{})
	if err != nil || len(list.Entries) != 2 || list.Revision < last {
		t.Fatalf("%+v, %v", list, err)
	}
	next := put(t, s.Node, "c", "4")
	events, err := s.Node.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{After: list.Revision, Wait: 10 * time.Second})
	if err != nil || len(events.Events) != 1 || events.Revision != next {
		t.Fatalf("%+v, %v", events, err)
	}
}

// A restore that was cut off is no registry, and begins again.
func (p *pools) interrupted(t *testing.T) {
	opts := p.next()
	root := "plinth/" + opts.Pool + "/"
	for _, key := range []string{"restoring", "k/left", "l/0000000000000001"} {
		if _, err := p.raw.Put(t.Context(), root+key, "left over"); err != nil {
			t.Fatal(err)
		}
	}
	opts.Create = true
	if _, err := etcd.Open(t.Context(), opts); !errors.Is(err, datanode.ErrNotFound) {
		t.Fatalf("half a registry: %v", err)
	}
	from := pebbleSite(t)
	put(t, from.Node, "a", "1")
	if err := etcd.Restore(t.Context(), opts, from.Dump()); err != nil {
		t.Fatal(err)
	}
	list, err := open(t, opts).RegistryList(t.Context(), &datanode.RegistryListRequest{})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Key != "a" {
		t.Fatalf("%+v, %v", list, err)
	}
}

func put(t *testing.T, node datanode.RegistryNode, key, value string) uint64 {
	t.Helper()
	reply, err := node.RegistryCommit(t.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Revision
}

// TestTLSAndAuth uses a cluster that wants certificates and passwords.
func TestTLSAndAuth(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	files := map[string][]byte{"ca.pem": a.pem}
	files["node.pem"], files["node.key"] = a.issue(t, "node")
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	free := addresses(t, 2)
	m := &member{name: "m0", args: []string{
		"--name", "m0", "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", "https://" + free[0], "--advertise-client-urls", "https://" + free[0],
		"--listen-peer-urls", "http://" + free[1], "--initial-advertise-peer-urls", "http://" + free[1], "--initial-cluster", "m0=http://" + free[1],
		"--cert-file", filepath.Join(dir, "node.pem"), "--key-file", filepath.Join(dir, "node.key"),
		"--trusted-ca-file", filepath.Join(dir, "ca.pem"), "--client-cert-auth", "--logger", "zap", "--log-level", "error",
	}}
	m.start(t)
	t.Cleanup(func() { m.kill(t) })
	a.addUser(t, "https://"+free[0], "host", "secret", "plinth/mine/")
	opts := etcd.Options{Endpoints: []string{"https://" + free[0]}, Pool: "mine", TLS: a.client(t, "machine"), User: "host", Password: "secret", Create: true, Timeout: 2 * time.Second}
	r := open(t, opts)
	put(t, r, "a", "1")
	grant, err := r.RegistryGrant(t.Context(), &datanode.RegistryGrantRequest{TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RegistryKeepAlive(t.Context(), &datanode.RegistryKeepAliveRequest{Lease: grant.Lease}); err != nil {
		t.Fatal(err)
	}
	if w, err := r.RegistryWatch(t.Context(), &datanode.RegistryWatchRequest{Wait: 5 * time.Second}); err != nil || len(w.Events) != 1 {
		t.Fatalf("%+v, %v", w, err)
	}
	for what, change := range map[string]func(*etcd.Options){
		"another's pool":        func(o *etcd.Options) { o.Pool = "yours" },
		"a wrong password":      func(o *etcd.Options) { o.Password = "guess" },
		"no password":           func(o *etcd.Options) { o.User, o.Password = "", "" },
		"a foreign certificate": func(o *etcd.Options) { o.TLS = newAuthority(t).client(t, "machine") },
		"no TLS":                func(o *etcd.Options) { o.TLS, o.Insecure = nil, true; o.Endpoints = []string{"http://" + free[0]} },
		"neither":               func(o *etcd.Options) { o.TLS = nil },
		"a pool out of bounds":  func(o *etcd.Options) { o.Pool = "../yours" },
	} {
		bad := opts
		change(&bad)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if _, err := etcd.Open(ctx, bad); err == nil {
			t.Errorf("%s: opened", what)
		}
		cancel()
	}
}
