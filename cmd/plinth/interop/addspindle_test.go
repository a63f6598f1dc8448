package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAddedSpindle adds drives under load, to a plinth up, and to the only and to one of three data
// nodes that two hosts use: nothing is stopped, and what is written then lies on them, too.
func TestAddedSpindle(t *testing.T) {
	t.Run("up", func(t *testing.T) {
		t.Parallel()
		data := filepath.Join(tempDir(t), "data")
		s := start(t, data, append(small, "--ram-cache", "0")...)
		s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
		l := startLoad(t, "unix", s.socket, "vm", make([]byte, snapshotBytes))
		l.await(t, 300)
		addSpindle(t, "13 spindles, and new segments use all of them", "--data", data)
		spindle := func(n string) string { return filepath.Join(data, "datanode", "spindle-"+n) }
		holdsFragments(t, l, spindle("12"))
		l.pause()
		s.verify(t)
		s.stop(t)
		addSpindle(t, "number 13", "--data", data)
		s = start(t, data, append(small, "--ram-cache", "0")...)
		l = startLoad(t, "unix", s.socket, "vm", l.model)
		holdsFragments(t, l, spindle("13"))
		s.command(t, "rebalance")
		if _, complaint, code := plinth(t, nil, "rebalance", "--api", s.api); code != 1 || !strings.Contains(complaint, "is under way") {
			t.Errorf("another rebalance: %d, %s", code, complaint)
		}
		awaitBalanced(t, s)
		l.pause()
		s.verify(t)
		for _, n := range []string{"02", "12"} {
			must(t, os.RemoveAll(spindle(n)))
		}
		s.equalExport(t, "vm", l.model)
		interrupt(t, s)
	})
	for _, count := range []int{1, 3} {
		t.Run(fmt.Sprint(count, " datanodes"), func(t *testing.T) {
			t.Parallel()
			addToPair(t, count)
		})
	}
}

// addToPair adds a spindle to a node of a pool of two hosts, has what is there spread over it, and
// has one of several nodes begin again.
func addToPair(t *testing.T, count int) {
	p := newPair(t, count)
	h, all := p.hosts, newLoaders()
	to := count / 2
	name, flags := p.nodes[to].name, []string{"--api", h[1].api, "--node", p.nodes[to].name}
	if count == 1 {
		name, flags = "", flags[:2]
	} else if _, complaint, code := plinth(t, nil, "spindle", "add", "--api", h[1].api); code != 1 || !strings.Contains(complaint, "--node takes one of") {
		t.Errorf("a spindle for any node: %d, %s", code, complaint)
	}
	before := nodeOf(t, h[0], name)
	noErrors(t, "while a spindle came", loadAll(t, h[:1], all, func() {
		awaitWrites(t, all, 200)
		addSpindle(t, fmt.Sprintf("%d spindles, and new segments use all of them", before.Spindles+1), flags...)
		awaitWrites(t, all, 200)
		h[1].command(t, "rebalance")
		awaitBalanced(t, h[1])
	}))
	if n := nodeOf(t, h[0], name); n.Spindles != before.Spindles+1 || n.SpindlesComing != 0 || n.SpindlesOK != n.Spindles || (count > 1) != (len(n.LaterSpindles) == 1) {
		t.Errorf("data node %s is %+v", name, n)
	}
	if count > 1 { // the death of the only one ends sessions
		p.nodes[to].kill()
		p.nodes[to].start(t)
		awaitWhole(t, h...)
		noErrors(t, "after the node began again", loadAll(t, h[:1], all, func() { awaitWrites(t, all, 200) }))
	}
	for _, x := range h {
		x.verify(t)
	}
}

func awaitBalanced(t *testing.T, h *site) {
	t.Helper()
	for deadline := time.Now().Add(waitMax); statusOf(t, h).Rebalance != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the pool is not balanced: %+v\n%s", statusOf(t, h).Rebalance, h.said)
		}
	}
}

func addSpindle(t *testing.T, says string, flags ...string) {
	t.Helper()
	out, complaint, code := plinth(t, nil, append([]string{"spindle", "add"}, flags...)...)
	if code != 0 || !strings.Contains(out, says) {
		t.Fatalf("spindle add: %d, %s%s", code, out, complaint)
	}
}

// holdsFragments has a load go on until a spindle's directory holds slabs.
func holdsFragments(t *testing.T, l *load, dir string) {
	t.Helper()
	for range 100 {
		l.await(t, 100)
		names, err := filepath.Glob(filepath.Join(dir, "slab*"))
		must(t, err)
		if len(names) > 0 {
			return
		}
	}
	t.Fatalf("nothing is written to %s", dir)
}
