package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAddedSpindle adds drives under load, to a plinth up and to one of three data nodes that two
// hosts use: nothing is stopped, and what is written then lies on them, too.
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
		l.pause()
		s.verify(t)
		for _, n := range []string{"02", "12"} {
			must(t, os.RemoveAll(spindle(n)))
		}
		s.equalExport(t, "vm", l.model)
		interrupt(t, s)
	})
	t.Run("datanodes", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, 3)
		h, all := p.hosts, newLoaders()
		before := nodeOf(t, h[0], "dn2")
		if _, complaint, code := plinth(t, nil, "spindle", "add", "--api", h[1].api); code != 1 || !strings.Contains(complaint, "--node takes one of") {
			t.Errorf("a spindle for any node: %d, %s", code, complaint)
		}
		noErrors(t, "while a spindle came", loadAll(t, h[:1], all, func() {
			awaitWrites(t, all, 200)
			addSpindle(t, fmt.Sprintf("%d spindles, and new segments use all of them", before.Spindles+1), "--api", h[1].api, "--node", "dn2")
			awaitWrites(t, all, 200)
		}))
		if n := nodeOf(t, h[0], "dn2"); n.Spindles != before.Spindles+1 || len(n.LaterSpindles) != 1 || n.SpindlesOK != n.Spindles {
			t.Errorf("data node dn2 is %+v", n)
		}
		p.nodes[1].kill()
		p.nodes[1].start(t)
		awaitWhole(t, h...)
		noErrors(t, "after the node began again", loadAll(t, h[:1], all, func() { awaitWrites(t, all, 200) }))
		for _, x := range h {
			x.verify(t)
		}
	})
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
