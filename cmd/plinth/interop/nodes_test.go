package interop

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"plinth/internal/host"
)

var nodesTime = flag.Duration("nodes-time", 20*time.Second, "how long TestNodes kills data nodes")

// statusOf is the pool as a host sees it.
func statusOf(t *testing.T, h *site) (s host.Status) {
	t.Helper()
	if err := json.Unmarshal([]byte(h.command(t, "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitWhole waits until all data nodes answer and have all logs, and what was written
// while one was away is moved, as hosts see it.
func awaitWhole(t *testing.T, hosts ...*site) {
	t.Helper()
	for deadline := time.Now().Add(2 * waitMax); ; time.Sleep(50 * time.Millisecond) {
		whole, moved := true, false
		var said []string
		for _, h := range hosts {
			s := statusOf(t, h)
			back := time.Time{}
			for _, n := range s.Nodes {
				whole = whole && n.Answers && n.LogsMissingCount == 0
				if n.Since.After(back) {
					back = n.Since
				}
			}
			// A host may write as if the node were still away for a moment.
			moved = moved || s.Spare != nil && s.Spare.Segments == 0 && s.Spare.At.After(back.Add(2*time.Second))
			said = append(said, strings.Join(s.Warnings, "; "))
		}
		if whole && moved {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the data nodes do not become whole: %q\n%s", said, hosts[0].said)
		}
	}
}

// pauses are times, to be told in order.
type pauses []time.Duration

func (p pauses) String() string {
	var all []string
	slices.Sort(p)
	for _, d := range p {
		all = append(all, d.Round(10*time.Millisecond).String())
	}
	return strings.Join(all, " ")
}

// killNodes kills data nodes from that one on, at random, under a load by way of the first
// host, for some time. The disk moves while one is away.
func killNodes(t *testing.T, p *pair, all []*loader, from int, during time.Duration) {
	t.Helper()
	h, owner := p.hosts, 0
	var stood, whole pauses
	for end := time.Now().Add(during); time.Now().Before(end) && !t.Failed(); {
		n := p.nodes[from+rand.IntN(len(p.nodes)-from)]
		noErrors(t, "while a data node was killed", loadAll(t, h[:1], all, func() {
			awaitWrites(t, all, 1+rand.IntN(300))
			n.kill()
			began := time.Now()
			awaitWrites(t, all, loaders+1) // more than were under way
			stood = append(stood, time.Since(began))
			if rand.IntN(3) == 0 {
				p.move(t, h[1-owner], 1-owner)
				owner = 1 - owner
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			n.start(t)
			began = time.Now()
			awaitWhole(t, h...)
			whole = append(whole, time.Since(began))
		}))
	}
	checkAll(t, h[1], all)
	t.Logf("data nodes were killed %d times; writes stood for %v; all was whole after %v", len(stood), stood, whole)
}

// Data nodes are killed in turn, but for the one with the registry, and so are hosts
// while a data node is away: clients see pauses, and what was acknowledged is there.
func TestNodes(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3)
	h := p.hosts
	all := newLoaders()
	h[0].command(t, "snapshot", "create", "vm1", "empty")
	killNodes(t, p, all, 1, *nodesTime)

	// One stands still for a while, and then does what it was sent before.
	noErrors(t, "while a data node stood still", loadAll(t, h[:1], all, func() {
		awaitWrites(t, all, 50)
		n := p.nodes[1].cmd.Process
		if err := n.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		awaitWrites(t, all, loaders+1)
		t.Logf("writes stood for %v after a data node did not answer", time.Since(began).Round(10*time.Millisecond))
		awaitWrites(t, all, 300)
		t.Logf("and 300 took %v", time.Since(began).Round(10*time.Millisecond))
		if err := n.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		awaitWhole(t, h...)
	}))
	checkAll(t, h[1], all)

	// The disk's host is killed while a data node is away.
	p.move(t, h[0], 1)
	noErrors(t, "while a data node and the disk's host were killed", loadAll(t, h[:1], all, func() {
		p.move(t, h[0], 1)
		awaitWrites(t, all, 50)
		p.nodes[2].kill()
		awaitWrites(t, all, loaders+1)
		h[1].kill()
		began := time.Now()
		p.await(t, h[0])
		t.Logf("taken over after %v", time.Since(began).Round(10*time.Millisecond))
		p.nodes[2].start(t)
		awaitWrites(t, all, 50)
	}))
	awaitWhole(t, h[0])
	h[1] = p.begin(t, "h2") // which another data node tells who the others are
	checkAll(t, h[1], all)
	// And the one with the registry: all wait.
	noErrors(t, "while the data node with the registry was killed", loadAll(t, h[:1], all, func() {
		awaitWrites(t, all, 50)
		p.nodes[0].kill()
		p.nodes[0].start(t)
		awaitWrites(t, all, 50)
	}))
	awaitWhole(t, h...)
	checkAll(t, h[1], all)
	h[0].command(t, "verify")
	if out := h[0].command(t, "status"); !strings.Contains(out, "3 of 3 answer") {
		t.Error(out)
	}
	h[1].stop(t)
	h[0].stop(t)
}

// With the registry beside the data nodes any one of them may go.
func TestNodesWithEtcd(t *testing.T) {
	t.Parallel()
	p, _ := newPairEtcd(t, 3, 1)
	s, h, all := p.split, p.hosts, newLoaders()
	killNodes(t, p, all, 0, *nodesTime/2)
	h[0].command(t, "verify")
	h[0].stop(t)
	checkAll(t, h[1], all)
	h[1].stop(t)
	s.more = nil
	if x := s.host(t, "h1"); x.socket != "" || !strings.Contains(x.said.String(), "say where with --registry") {
		t.Fatalf("a host that does not know the registry:\n%s", x.said)
	}
	_, other := serveEtcd(t, 1)
	s.more = []string{"--registry", "etcd://" + other}
	if x := s.host(t, "h1"); x.socket != "" || !strings.Contains(x.said.String(), "name the etcd that has it") {
		t.Fatalf("a host with another etcd:\n%s", x.said)
	}
}

// freeAddresses returns some that nobody listens on.
func freeAddresses(t *testing.T, n int) (free []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		free = append(free, l.Addr().String())
	}
	return free
}

// Hosts and data nodes that contradict what a pool's nodes are say so, in a line.
func TestNodesRefusals(t *testing.T) {
	t.Parallel()
	p := newSplit(t, 3)
	p.join(t, "host", "h1")
	p.join(t, "host", "h2")
	h1 := func(nodes []*dataNode, more ...string) []string {
		args := []string{"host"}
		for _, n := range nodes {
			args = append(args, "--node", "unix:"+n.socket)
		}
		return slices.Concat(args, []string{
			"--dir", filepath.Join(p.dir, "x"), "--identity", filepath.Join(p.dir, "h1"), "--root-key", filepath.Join(p.dir, "root.key"),
			"--nbd", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0",
		}, more)
	}
	refused := func(want string, args []string) {
		t.Helper()
		_, complaint, code := plinth(t, nil, args...)
		oneLine(t, complaint, code, want)
	}
	a, b, c := p.nodes[0], p.nodes[1], p.nodes[2]
	refused("do not fit on 3 nodes", h1(p.nodes, "--ec", "8+2"))
	refused("is given twice", h1([]*dataNode{a, a}))
	h := p.host(t, "h1")
	if h.socket == "" {
		t.Fatalf("plinth host: %v\n%s", h.err, h.said)
	}
	if out := h.command(t, "status"); !strings.Contains(out, "12 of 12 ok, stripes of 4+2") || !strings.Contains(out, "3 of 3 answer") {
		t.Error(out)
	}
	if out := h.command(t, "node", "ls"); !strings.Contains(out, "in, registry") || !strings.Contains(out, "dn3") {
		t.Error(out)
	}
	h.stop(t)
	refused("a pool does not change them", h1(p.nodes, "--ec", "2+1"))
	refused("in this order", h1([]*dataNode{a, c, b}))
	d := p.newNode(t, "dn4")
	refused("not one of the pool's", h1([]*dataNode{a, b, d}))
	refused("the pool has 3 data nodes", h1([]*dataNode{a, b, c, d}))
	// Directories that are swapped, or one that is used twice.
	c.kill()
	swapped := *c
	swapped.dir = b.dir
	refused("another process has", swapped.args(c.identity))
	b.kill()
	refused("the certificate is of dn3", swapped.args(c.identity))
	up := tempDir(t)
	if err := os.Symlink(b.dir, filepath.Join(up, "datanode")); err != nil {
		t.Fatal(err)
	}
	refused("which plinth datanode and plinth host serve", []string{"up", "--data", up, "--nbd", "127.0.0.1:0"})
	// One that is empty is taken only if it was made to rejoin.
	b.start(t)
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	refused("if its drives are lost", h1(p.nodes))
	c.kill()
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	c.more = []string{"--rejoin"}
	c.start(t)
	// One node of the pool is enough to find the others.
	p.nodes = p.nodes[1:2]
	if h = p.host(t, "h2"); h.socket == "" {
		t.Fatalf("a host that knows one node: %v\n%s", h.err, h.said)
	}
	awaitWhole(t, h)
	h.stop(t)
}
