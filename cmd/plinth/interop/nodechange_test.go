package interop

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/api"
)

var (
	changeRounds = flag.Int("change-rounds", 0, "how often TestNodeChangeKills adds, drains and removes data nodes; 0: it is left out")
	changeEtcd   = flag.Bool("change-etcd", false, "TestNodeChangeKills has its registry in an etcd of three, of which members are killed, too")
	changeFill   = flag.Int("change-fill", 8, "MiB that TestNodeChange writes before a node is drained")
)

// nodeOf is a data node as a host sees it, nil if there is none of that name. It waits
// until the host knows, which the death of the node with the registry may hinder.
func nodeOf(t *testing.T, h *site, name string) *datanode.NodeInfo {
	t.Helper()
	for deadline := time.Now().Add(waitMax); ; time.Sleep(20 * time.Millisecond) {
		var list api.NodeList
		out, complaint, code := plinth(t, []string{"PLINTH_API=" + h.api}, "node", "ls", "--json")
		if code == 0 {
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatal(err)
			}
			if i := slices.IndexFunc(list.Nodes, func(n datanode.NodeInfo) bool { return n.Name == name }); i >= 0 {
				return &list.Nodes[i]
			}
			return nil
		}
		if time.Now().After(deadline) {
			t.Fatalf("no answer of %s: %s\n%s", h.api, complaint, h.said)
		}
	}
}

// awaitNode waits until a host sees a data node so.
func awaitNode(t *testing.T, h *site, name string, what string, is func(*datanode.NodeInfo) bool) {
	t.Helper()
	var n *datanode.NodeInfo
	for deadline := time.Now().Add(waitMax); ; time.Sleep(20 * time.Millisecond) {
		if n = nodeOf(t, h, name); is(n) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("data node %s is not %s: %+v\n%s", name, what, n, h.said)
		}
	}
}

func drained(n *datanode.NodeInfo) bool {
	return n != nil && n.State == "draining" && n.Waits == "" && n.Leaving != nil && n.Leaving.Empty()
}

// takeOut takes a data node out that is drained. What a host writes, which began before it
// knew that the node leaves, may come to lie there still: that is refused, and moved.
func takeOut(t *testing.T, h *site, name string) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); ; {
		awaitNode(t, h, name, "drained", drained)
		out, complaint, code := plinth(t, []string{"PLINTH_API=" + h.api}, "node", "rm", name)
		if code == 0 {
			return
		}
		if !strings.Contains(complaint, "is not empty") || time.Now().After(deadline) {
			t.Fatalf("plinth node rm %s: %s%s", name, out, complaint)
		}
	}
}

// A fourth data node comes while hosts write, one of the first is drained and goes, and
// hosts that name that one still begin.
func TestNodeChange(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3)
	h, all := p.hosts, newLoaders()
	h[0].command(t, "snapshot", "create", "vm1", "empty")
	fillBehind(t, h[0], *changeFill)
	d := p.newNode(t, "dn4") // no host's command line names it
	noErrors(t, "while a data node came", loadAll(t, h[:1], all, func() {
		awaitWrites(t, all, 200)
		longestWrite(all)
		began := time.Now()
		out := h[1].command(t, "node", "add", "dn4", "unix:"+d.socket)
		took := time.Since(began)
		if !strings.Contains(out, "as number 3") {
			t.Error(out)
		}
		awaitNode(t, h[0], "dn4", "used", func(n *datanode.NodeInfo) bool { return n != nil && n.State == "in" && n.AllocatedBytes > 0 })
		used := time.Since(began)
		awaitWrites(t, all, 100)
		t.Logf("a data node took part after %v and had a segment after %v; the longest write took %v", took, used, longestWrite(all))
		p.move(t, h[0], 1)
		awaitWrites(t, all, 100)
	}))
	checkAll(t, h[1], all)
	awaitWhole(t, h...)

	refusedBy := func(want string, args ...string) {
		t.Helper()
		_, complaint, code := plinth(t, []string{"PLINTH_API=" + h[0].api}, args...)
		oneLine(t, complaint, code, want)
	}
	refusedBy("has the pool's registry", "node", "drain", "dn1")
	refusedBy("drain it first", "node", "rm", "dn2")
	refusedBy("one of the pool's already", "node", "add", "dn3", "unix:"+p.nodes[2].socket)
	noErrors(t, "while a data node was drained", loadAll(t, h[:1], all, func() {
		before := nodeOf(t, h[0], "dn2").AllocatedBytes
		awaitWrites(t, all, 100)
		longestWrite(all)
		began := time.Now()
		h[0].command(t, "node", "drain", "dn2")
		awaitNode(t, h[0], "dn2", "drained", drained)
		t.Logf("a data node with %d MiB was drained after %v; the longest write took %v", before>>20, time.Since(began), longestWrite(all))
		takeOut(t, h[0], "dn2")
		awaitNode(t, h[1], "dn2", "out", func(n *datanode.NodeInfo) bool { return n == nil })
		awaitWrites(t, all, 100)
	}))
	p.nodes[1].kill()
	checkAll(t, h[1], all)
	h[0].command(t, "verify")
	if out := h[0].command(t, "status"); !strings.Contains(out, "3 of 3 answer") {
		t.Error(out)
	}
	// A host begins that still names the node which has gone, dead or alive.
	for _, alive := range []bool{false, true} {
		h[1].stop(t)
		if alive {
			p.nodes[1].start(t)
		}
		h[1] = p.begin(t, "h2")
		checkAll(t, h[1], all)
	}
	h[1].stop(t)
	h[0].stop(t)
}

// With the registry in etcd the pool's first node can be drained and go as any other.
func TestDrainFirstNode(t *testing.T) {
	t.Parallel()
	p, _ := newPairEtcd(t, 4, 1)
	h, all := p.hosts, newLoaders()
	fillBehind(t, h[0], *changeFill)
	noErrors(t, "while the first data node was drained", loadAll(t, h[:1], all, func() {
		awaitWrites(t, all, 50)
		h[0].command(t, "node", "drain", "dn1")
		awaitNode(t, h[0], "dn1", "drained", drained)
		takeOut(t, h[0], "dn1")
		awaitNode(t, h[1], "dn1", "out", func(n *datanode.NodeInfo) bool { return n == nil })
		p.nodes[0].kill()
		awaitWrites(t, all, 50)
		p.move(t, h[0], 1)
		awaitWrites(t, all, 50)
	}))
	h[0].stop(t)
	p.nodes = p.nodes[1:]
	h[0] = p.begin(t, "h1") // which names those that are left
	checkAll(t, h[0], all)
	h[0].command(t, "verify")
	for _, x := range h {
		x.stop(t)
	}
}

// fillBehind writes so much behind what loaders write.
func fillBehind(t *testing.T, h *site, mib int) {
	t.Helper()
	c := dialDisk(t, h)
	defer c.Close()
	p := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	for i := range mib {
		_, _ = rng.Read(p)
		if err := c.WriteAt(t.Context(), p, int64(loaders*loaderBlocks*loadBlock)+int64(i)<<20, false); err != nil {
			t.Fatal(err)
		}
	}
}

// Data nodes come, get spindles, are drained and go, and what lies there is spread, while hosts and data nodes are killed: nothing that
// was acknowledged is lost, and each change ends.
func TestNodeChangeKills(t *testing.T) {
	if *changeRounds == 0 {
		t.Skip("-change-rounds says how often")
	}
	var p *pair
	var etcd []*etcdMember
	first := 1 // that may be drained: with the registry in it a node stays
	if *changeEtcd {
		p, etcd = newPairEtcd(t, 3, 3)
		first = 0
	} else {
		p = newPair(t, 3)
	}
	h, all := p.hosts, newLoaders()
	h[0].command(t, "snapshot", "create", "vm1", "empty")
	fillBehind(t, h[0], *changeFill)
	there := slices.Clone(p.nodes) // those of the pool
	address, err := api.ParseAddress(h[0].api)
	must(t, err)
	client, err := api.NewClient(address, api.ClientOptions{})
	must(t, err)
	defer client.Close()
	kills := 0
	// until kills hosts and data nodes, at random, until something is so.
	until := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * waitMax); ; {
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
			switch n := rand.IntN(8); {
			case n < 2:
				i := rand.IntN(len(there))
				there[i].kill()
				time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
				there[i].start(t)
				kills++
			case n < 3: // not the one with the loaders
				h[1].kill()
				h[1] = p.begin(t, "h2")
				kills++
			case n < 4 && *changeEtcd:
				m := etcd[rand.IntN(len(etcd))]
				m.kill()
				time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
				m.start(t)
				kills++
			}
			if is() {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s\n%s", what, h[0].command(t, "node", "ls"), h[0].said)
			}
		}
	}
	for round := range *changeRounds {
		name := fmt.Sprint("dn", 4+round)
		d := p.newNode(t, name)
		noErrors(t, "while data nodes came and went", loadAll(t, h[:1], all, func() {
			awaitWrites(t, all, 20)
			until("add", func() bool {
				_, _, code := plinth(t, []string{"PLINTH_API=" + h[0].api}, "node", "add", name, "unix:"+d.socket)
				n := nodeOf(t, h[0], name)
				return code == 0 || n != nil && n.State == "in"
			})
			there = append(there, d)
			grows := there[rand.IntN(len(there))].name
			had := nodeOf(t, h[0], grows).Spindles
			until("spindle add", func() bool {
				n := nodeOf(t, h[0], grows)
				if n != nil && n.Spindles == had {
					_ = client.AddSpindle(t.Context(), grows) // or it is tried again
				}
				return n != nil && n.Spindles > had && n.SpindlesComing == 0
			})
			spread := false
			until("rebalance", func() bool {
				_, _, code := plinth(t, []string{"PLINTH_API=" + h[0].api}, "rebalance")
				spread = spread || code == 0
				out, _, code := plinth(t, []string{"PLINTH_API=" + h[0].api}, "status", "--json")
				return spread && code == 0 && !strings.Contains(out, `"rebalance":`)
			})
			leaves := there[first+rand.IntN(3-first)]
			until("drain", func() bool {
				if n := nodeOf(t, h[0], leaves.name); n != nil && n.State == "in" {
					plinth(t, []string{"PLINTH_API=" + h[0].api}, "node", "drain", leaves.name)
				}
				return drained(nodeOf(t, h[0], leaves.name))
			})
			until("rm", func() bool {
				plinth(t, []string{"PLINTH_API=" + h[0].api}, "node", "rm", leaves.name)
				return nodeOf(t, h[0], leaves.name) == nil
			})
			there = slices.DeleteFunc(there, func(n *dataNode) bool { return n == leaves })
			leaves.kill()
			awaitWrites(t, all, 20)
		}))
		checkAll(t, h[1], all)
		awaitWhole(t, h...)
		h[0].command(t, "verify")
		h[1].command(t, "verify")
		t.Logf("round %d: %s came, %d kills so far", round, filepath.Base(d.dir), kills)
	}
	for _, x := range h { // which have logged errors of requests that came while data nodes were dead
		x.kill()
	}
}
