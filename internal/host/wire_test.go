package host_test

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/datanode/wire"
	"plinth/datanode/wire/wiretest"
	"plinth/internal/host"
	"plinth/internal/keyring"
	"plinth/internal/standalone"
)

// An agent whose data node is another machine's: disks, snapshots, reclaim and a
// full walk, all over TLS on loopback.
func TestHostOverTheWire(t *testing.T) {
	opts := siteOptions(t)
	local := openSite(t, opts)
	local.ok(local.Close()) // the pool is made
	dir := filepath.Join(opts.Dir, "datanode")
	pool, err := shelf.PoolID(vfs.Default, dir)
	local.ok(err)
	opts.Node.PoolID, opts.Node.Logger = pool, opts.Logger
	node, err := shelf.Open(t.Context(), dir, opts.Node)
	local.ok(err)
	t.Cleanup(func() { local.ok(node.Close()) })

	cluster := hex.EncodeToString(pool[:])
	ca := wiretest.NewAuthority(t)
	server, err := wire.NewServer(t.Context(), node, wire.ServerOptions{
		TLS: ca.Config(t, "plinth://"+cluster+"/datanode/n1"), Cluster: cluster, Name: "n1", Logger: opts.Logger,
	})
	local.ok(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	local.ok(err)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		local.ok(server.Close())
		local.ok(<-ended)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client, err := wire.Dial(ctx, wire.ClientOptions{
		TLS: ca.Config(t, "plinth://"+cluster+"/host/h1"), Cluster: cluster, Pool: pool, Paths: []string{l.Addr().String()}, Logger: opts.Logger,
	})
	local.ok(err)
	t.Cleanup(func() { local.ok(client.Close()) })

	root, err := keyring.LoadRootFile(filepath.Join(opts.Dir, "root.key"))
	local.ok(err)
	opts.Host.Dir, opts.Host.Logger = t.TempDir(), opts.Logger
	far, err := host.Open(t.Context(), client, root, opts.Host)
	local.ok(err)
	node.SetLayoutVersion(far.LayoutVersion())
	s := &site{t, &standalone.Site{Host: far}, opts}
	t.Cleanup(func() { s.ok(far.Close()) })

	rng := rand.New(rand.NewPCG(1, 1))
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	s.write("a", content)
	s.write("b", content)
	_, err = far.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"a"}, Name: "s"})
	s.ok(err)
	s.remove("b")
	_, err = far.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
	s.ok(err)
	s.has("a", content)
	report, err := far.Verify(t.Context(), host.VerifyOptions{})
	s.ok(err)
	if !report.OK() {
		t.Errorf("verify: %+v", report)
	}
}
