package interop

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"plinth/internal/registry/etcd"
)

// member is a process of etcd, or the place of one that was killed.
type member struct {
	name, dir, client, peer string
	args                    []string
	cmd                     *exec.Cmd
	ended                   chan error
	says                    bytes.Buffer // read after it ended
}

// cluster is three members, or one.
type cluster struct {
	t       *testing.T
	members []*member
	raw     *clientv3.Client // for what only etcd knows
}

// addresses returns some that nobody listens on.
func addresses(t *testing.T, n int) []string {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out
}

// newCluster starts members until the test ends.
func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t}
	free := addresses(t, 2*n)
	var all, urls []string
	dir := t.TempDir()
	for i := range n {
		m := &member{name: fmt.Sprint("m", i), client: free[2*i], peer: free[2*i+1]}
		m.dir = filepath.Join(dir, m.name)
		all = append(all, m.name+"=http://"+m.peer)
		urls = append(urls, "http://"+m.client)
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		m.args = []string{
			"--name", m.name, "--data-dir", m.dir, "--listen-client-urls", "http://" + m.client, "--advertise-client-urls", "http://" + m.client,
			"--listen-peer-urls", "http://" + m.peer, "--initial-advertise-peer-urls", "http://" + m.peer,
			"--initial-cluster", strings.Join(all, ","), "--initial-cluster-state", "new",
			"--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "error",
		}
		m.start(t)
		t.Cleanup(func() { m.kill(t) })
	}
	var err error
	c.raw, err = clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.raw.Close() })
	c.ready()
	return c
}

func (m *member) start(t *testing.T) {
	m.says.Reset()
	m.cmd = exec.Command("etcd", m.args...)
	m.cmd.Stderr = &m.says
	// It must not outlive a test that is killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, ended := m.cmd, make(chan error, 1)
	m.ended = ended
	go func() { ended <- cmd.Wait() }()
}

// kill ends a member as a loss of power does to its process.
func (m *member) kill(t *testing.T) {
	if m.cmd == nil {
		return
	}
	m.cmd.Process.Kill()
	<-m.ended
	m.cmd = nil
	if t.Failed() {
		t.Logf("%s says:\n%s", m.name, m.says.Bytes()[max(0, m.says.Len()-4000):])
	}
}

// ready waits until the cluster answers.
func (c *cluster) ready() {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		_, err := c.raw.Get(ctx, "ready")
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the cluster does not answer: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leader returns the member that leads.
func (c *cluster) leader() *member {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		for _, m := range c.members {
			ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
			s, err := c.raw.Status(ctx, "http://"+m.client)
			cancel()
			if err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId {
				return m
			}
		}
	}
	c.t.Fatal("nobody leads")
	return nil
}

func (c *cluster) options(pool string) etcd.Options {
	opts := etcd.Options{Pool: pool, Insecure: true, Poll: 100 * time.Millisecond}
	for _, m := range c.members {
		opts.Endpoints = append(opts.Endpoints, "http://"+m.client)
	}
	return opts
}

// open opens a registry until the test ends.
func open(t *testing.T, opts etcd.Options) *etcd.Registry {
	t.Helper()
	r, err := etcd.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
