package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hostLease is short, so that the tests need not wait long for a host that died.
var hostLease = []string{"--lease-ttl", "4s"}

// pair is data nodes and two hosts.
type pair struct {
	*split
	hosts []*site
}

func newPair(t *testing.T, nodes int) *pair {
	t.Helper()
	return newPairOn(t, newSplit(t, nodes))
}

// newPairEtcd has its registry in an etcd of so many members.
func newPairEtcd(t *testing.T, nodes, members int) (*pair, []*etcdMember) {
	t.Helper()
	s := newSplit(t, nodes)
	etcd, addresses := serveEtcd(t, members)
	s.more = []string{"--registry", "etcd://" + addresses}
	return newPairOn(t, s), etcd
}

// newPairOn starts two hosts.
func newPairOn(t *testing.T, s *split) *pair {
	t.Helper()
	p := &pair{split: s}
	for _, name := range []string{"h1", "h2"} {
		p.join(t, "host", name)
		p.hosts = append(p.hosts, p.begin(t, name))
	}
	return p
}

// begin starts a host.
func (p *pair) begin(t *testing.T, name string, more ...string) *site {
	t.Helper()
	h := p.host(t, name, slices.Concat(hostLease, more)...)
	if h.socket == "" {
		t.Fatalf("plinth host: %v\n%s", h.err, h.said)
	}
	return h
}

// serves reports whether a host serves vm1.
func serves(t *testing.T, h *site) bool {
	t.Helper()
	var d struct{ State string }
	if err := json.Unmarshal([]byte(h.command(t, "disk", "show", "vm1", "--json")), &d); err != nil {
		t.Fatal(err)
	}
	return d.State == "ok"
}

// await waits until a host serves vm1.
func (p *pair) await(t *testing.T, h *site) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); !serves(t, h); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the disk does not come\n%s", h.said)
		}
	}
}

// move has vm1 served by a host. Clients elsewhere may ask for it meanwhile.
func (p *pair) move(t *testing.T, by *site, to int) {
	t.Helper()
	name := []string{"h1", "h2"}[to]
	for deadline := time.Now().Add(waitMax); ; {
		_, complaint, code := plinth(t, []string{"PLINTH_API=" + by.api}, "disk", "move", "vm1", name)
		if code == 0 {
			return
		}
		if !strings.Contains(complaint, "busy") || time.Now().After(deadline) {
			t.Fatalf("move to %s: status %d\n%s", name, code, complaint)
		}
	}
}

func noErrors(t *testing.T, what string, errs []error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%s: loader %d: %v", what, i, err)
		}
	}
}

// readFresh reads what loaders write, by one connection to each host, until it is
// ended: nothing older than what was acknowledged when the read began.
func readFresh(t *testing.T, hosts []*site, all []*loader) (end func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for _, h := range hosts {
		c := dialDisk(t, h)
		reading.Go(func() {
			defer c.Close()
			got, want := make([]byte, loadBlock), make([]byte, loadBlock)
			for ctx.Err() == nil {
				l, i := all[rand.IntN(len(all))], rand.IntN(loaderBlocks)
				least := l.versions[i].Load()
				if err := c.ReadAt(t.Context(), got, int64(l.first+i)*loadBlock); err != nil {
					t.Errorf("read: %v", err)
					return
				}
				version := binary.LittleEndian.Uint64(got[8:])
				if fillBlock(want, l.first+i, version); version < least || !bytes.Equal(got, want) {
					t.Errorf("block %d has version %d after %d was acknowledged, or wrong bytes", l.first+i, version, least)
				}
			}
		})
	}
	return func() { stop(); reading.Wait() }
}

// Two hosts, and clients of a disk at both of them: it moves, its host is killed,
// its host is stopped for longer than its lease and comes back. Clients see pauses, and
// what was acknowledged.
func TestHosts(t *testing.T) {
	t.Parallel()
	p := newPair(t, 1)
	h := p.hosts
	all := newLoaders()
	noErrors(t, "while the disk moved", loadAll(t, h[:1], all, func() {
		defer readFresh(t, h, all)()
		for i := range 8 {
			awaitWrites(t, all, 1+rand.IntN(100))
			longestWrite(all)
			began := time.Now()
			p.move(t, h[i%2], 1-i%2)
			took := time.Since(began)
			awaitWrites(t, all, 4*len(all))
			t.Logf("a move took %.0f ms, the longest write %.0f ms", 1000*took.Seconds(), 1000*longestWrite(all).Seconds())
		}
	}))
	checkAll(t, h[1], all)

	p.move(t, h[0], 1)
	noErrors(t, "while the disk's host was killed", loadAll(t, h[:1], all, func() {
		p.move(t, h[0], 1)
		h[1].kill()
		p.await(t, h[0])
		awaitWrites(t, all, 50)
	}))
	h[1] = p.begin(t, "h2")
	checkAll(t, h[1], all)

	noErrors(t, "while the disk's host stood still", loadAll(t, h, all, func() {
		defer readFresh(t, h, all)()
		p.move(t, h[0], 1)
		awaitWrites(t, all, 50)
		if err := h[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		p.await(t, h[0])
		awaitWrites(t, all, 1)
		if err := h[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		awaitWrites(t, all, 200)
	}))
	checkAll(t, h[0], all)
	checkAll(t, h[1], all)
	p.move(t, h[0], 0)
	h[0].command(t, "verify")
	h[0].stop(t)
	checkAll(t, h[1], all) // which claims the disk
}
