package wire

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/datanodetest"
	"plinth/datanode/shelf"
)

// conform runs the suite over the wire: each node is a shelf behind a server, on
// a file system of its own, reached by way of what between makes of the server's
// address.
func conform(t *testing.T, files func(t *testing.T) (vfs.FS, string), between func(t *testing.T, address string) (string, func())) {
	ca := newAuthority(t)
	node, host := ca.node(t), ca.host(t)
	datanodetest.Run(t, func(t *testing.T) (datanode.Node, func() datanode.Node) {
		noLeaks(t)
		fs, dir := files(t)
		opts := shelfOptions(fs)
		if err := shelf.Create(dir, opts); err != nil {
			t.Fatal(err)
		}
		var s *shelf.Shelf
		var v *served
		var c *Client
		var unplug func()
		start := func() datanode.Node {
			var err error
			if s, err = shelf.Open(context.Background(), dir, opts); err != nil {
				t.Fatal(err)
			}
			v = serve(t, s, ServerOptions{TLS: node}, "127.0.0.1:0")
			var address string
			address, unplug = between(t, v.address)
			c = dial(t, ClientOptions{TLS: host, Paths: []string{address}, Pool: opts.PoolID, Node: testNode})
			return c
		}
		stop := func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			unplug()
			v.stop(t)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(func() { stop() })
		return start(), func() datanode.Node { stop(); return start() }
	})
}

func inMemory(*testing.T) (vfs.FS, string) { return vfs.NewMem(), "/data" }

func onDisk(t *testing.T) (vfs.FS, string) { return vfs.Default, t.TempDir() }

// The suite passes while connections come and go, as long as the server lives.
func TestSimConformanceThroughCuts(t *testing.T) { conformThroughCuts(t, inMemory) }

// The race detector sees one run, which reaches all locks.
func TestConformance(t *testing.T) { conformThroughCuts(t, onDisk) }

func conformThroughCuts(t *testing.T, files func(t *testing.T) (vfs.FS, string)) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	cuts := 0
	conform(t, files, func(t *testing.T, address string) (string, func()) {
		seed++
		p := newProxy(t, address, true, seed)
		return p.address, func() {
			p.close()
			cuts += p.cuts
		}
	})
	t.Logf("%d connections cut", cuts)
	if cuts == 0 && !t.Failed() {
		t.Error("no connection was cut")
	}
}
