package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd/client"
)

// split is a pool whose data nodes and hosts are processes of their own.
type split struct {
	dir       string
	authority *authority
	nodes     []*dataNode
	nodeMore  []string // arguments of data nodes beside the usual ones
	more      []string // flags of hosts
}

// newSplit begins a cluster and starts its data nodes, dn1, dn2 and so on, with more
// arguments.
func newSplit(t *testing.T, nodes int, more ...string) *split {
	t.Helper()
	p := &split{dir: tempDir(t), nodeMore: more}
	admin := filepath.Join(p.dir, "admin")
	cluster(t, admin, "init")
	p.authority = serveCluster(t, admin)
	for i := range nodes {
		p.nodes = append(p.nodes, p.newNode(t, fmt.Sprint("dn", i+1)))
	}
	return p
}

// dataNode is a data node's process.
type dataNode struct {
	name, identity, dir, socket string
	more                        []string
	cmd                         *exec.Cmd
}

// newNode makes a data node a member and starts it.
func (p *split) newNode(t *testing.T, name string) *dataNode {
	t.Helper()
	p.join(t, "datanode", name)
	n := &dataNode{name: name, identity: filepath.Join(p.dir, name), dir: filepath.Join(p.dir, "shelf-"+name), socket: filepath.Join(p.dir, "s-"+name), more: p.nodeMore}
	n.start(t)
	t.Cleanup(n.kill)
	return n
}

// join makes a member in a folder by its name.
func (p *split) join(t *testing.T, role, name string) {
	t.Helper()
	cluster(t, filepath.Join(p.dir, name), "join", p.authority.token(t, role, name), "--ca-server", p.authority.addr)
}

func (n *dataNode) args(identity string) []string {
	return append([]string{
		"datanode", "--dir", n.dir, "--listen", "unix:" + n.socket, "--identity", identity,
		"--spindles", "4", "--log-size", "64M", "--spindle-size", "128M",
	}, n.more...)
}

// start starts the data node and waits until it serves.
func (n *dataNode) start(t *testing.T) {
	t.Helper()
	n.cmd = exec.Command(executable, n.args(n.identity)...)
	n.cmd.Env = environment()
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	n.cmd.Stderr = &complaint
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "data node "+n.name+" of pool") {
		n.kill()
		t.Fatalf("plinth datanode says %q, %v\n%s", line, err, &complaint)
	}
}

func (n *dataNode) kill() {
	_ = n.cmd.Process.Kill() // fails for one that has ended
	_ = n.cmd.Wait()
}

// nodeFlags name the data nodes for a host.
func (p *split) nodeFlags() (flags []string) {
	for _, n := range p.nodes {
		flags = append(flags, "--node", "unix:"+n.socket)
	}
	return flags
}

// host starts a host, which may be refused.
func (p *split) host(t *testing.T, name string, more ...string) *site {
	t.Helper()
	return p.hostBy(t, name, p.nodeFlags(), slices.Concat([]string{"--ram-cache", "0"}, p.more, more)...)
}

// hostBy is host by other ways to the data nodes, and with a RAM cache.
func (p *split) hostBy(t *testing.T, name string, nodeFlags []string, more ...string) *site {
	t.Helper()
	dir := filepath.Join(p.dir, "host-"+name)
	return launchAgent(t, dir, slices.Concat([]string{"host"}, nodeFlags, []string{
		"--dir", dir, "--identity", filepath.Join(p.dir, name), "--root-key", filepath.Join(p.dir, "root.key"),
		"--nbd", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--destage-interval", "200ms", "--idle-time", "1s",
	}, more)...)
}

// waitMax bounds every wait for processes under load, on the busiest machine.
const waitMax = 2 * time.Minute

const (
	loaders      = 4
	loaderBlocks = 256 // of 4 KiB, to each loader
	loadBlock    = 4096
)

// loader writes to blocks of its own and reads them, as long as ctx lasts. Each
// block has its number, a version, and what follows from the two.
type loader struct {
	first    int
	versions [loaderBlocks]atomic.Uint64 // that were acknowledged
	doubt    int                         // the block whose write got no answer, -1: none
	longest  atomic.Int64                // write, ns; who measures sets it to 0
	pause    time.Duration               // after each request
}

func fillBlock(p []byte, n int, version uint64) {
	if clear(p); version == 0 {
		return
	}
	rng := rand.New(rand.NewPCG(uint64(n), version))
	for i := 16; i < len(p)/2; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	binary.LittleEndian.PutUint64(p, uint64(n))
	binary.LittleEndian.PutUint64(p[8:], version)
}

// run ends with ctx, or with the first error; a wrong byte fails the test.
func (l *loader) run(ctx context.Context, t *testing.T, c *client.Client, rng *rand.Rand) error {
	p := make([]byte, loadBlock)
	for count := 0; ctx.Err() == nil; count++ {
		time.Sleep(l.pause)
		i := rng.IntN(loaderBlocks)
		if rng.IntN(3) == 0 {
			if err := l.check(t, c, i); err != nil {
				return err
			}
			continue
		}
		fillBlock(p, l.first+i, l.versions[i].Load()+1)
		began := time.Now()
		if err := c.WriteAt(t.Context(), p, int64(l.first+i)*loadBlock, count%64 == 0); err != nil {
			l.doubt = i
			return fmt.Errorf("write: %w", err)
		}
		l.longest.Store(max(l.longest.Load(), int64(time.Since(began))))
		l.versions[i].Add(1)
	}
	return nil
}

// check reads a block. Where the last write got no answer, either version is right,
// and from then on that one.
func (l *loader) check(t *testing.T, c *client.Client, i int) error {
	got, want := make([]byte, loadBlock), make([]byte, loadBlock)
	if err := c.ReadAt(t.Context(), got, int64(l.first+i)*loadBlock); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	fillBlock(want, l.first+i, l.versions[i].Load())
	if !bytes.Equal(got, want) && l.doubt == i {
		fillBlock(want, l.first+i, l.versions[i].Add(1))
	}
	if l.doubt == i {
		l.doubt = -1
	}
	if !bytes.Equal(got, want) {
		t.Errorf("block %d is block %d, version %d; version %d was acknowledged", l.first+i,
			binary.LittleEndian.Uint64(got), binary.LittleEndian.Uint64(got[8:]), l.versions[i].Load())
	}
	return nil
}

// newLoaders returns loaders, each with blocks of its own.
func newLoaders() []*loader {
	all := make([]*loader, loaders)
	for i := range all {
		all[i] = &loader{first: i * loaderBlocks, doubt: -1}
	}
	return all
}

// written counts the writes that were acknowledged.
func written(all []*loader) (n uint64) {
	for _, l := range all {
		for i := range l.versions {
			n += l.versions[i].Load()
		}
	}
	return n
}

// longestWrite returns how long a write took at most since the last call.
func longestWrite(all []*loader) (longest time.Duration) {
	for _, l := range all {
		longest = max(longest, time.Duration(l.longest.Swap(0)))
	}
	return longest
}

// awaitWrites returns when loaders have written some more.
func awaitWrites(t *testing.T, all []*loader, more int) {
	t.Helper()
	deadline := time.Now().Add(waitMax)
	for until := written(all) + uint64(more); written(all) < until; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the load does not go on")
		}
	}
}

// loadAll runs all loaders, one connection each, in turn to each of the sites, while
// something happens. The errors that ended them come back.
func loadAll(t *testing.T, sites []*site, all []*loader, meanwhile func()) []error {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, l := range all {
		c := dialDisk(t, sites[i%len(sites)])
		running.Go(func() {
			defer c.Close()
			errs[i] = l.run(ctx, t, c, rand.New(rand.NewPCG(rand.Uint64(), 1)))
		})
	}
	meanwhile()
	stop()
	running.Wait()
	return errs
}

func dialDisk(t *testing.T, s *site) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), "unix", s.socket, "vm1", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkAll reads every block.
func checkAll(t *testing.T, s *site, all []*loader) {
	t.Helper()
	c := dialDisk(t, s)
	defer c.Close()
	for _, l := range all {
		for i := range loaderBlocks {
			if err := l.check(t, c, i); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A data node and a host as processes: the data node is killed under load, and
// clients see a pause; the host is killed, and what it acknowledged is there.
func TestSplit(t *testing.T) {
	p := newSplit(t, 1)
	p.join(t, "host", "h1")
	h := p.host(t, "h1")
	if h.socket == "" {
		t.Fatalf("plinth host: %v\n%s", h.err, h.said)
	}
	h.command(t, "snapshot", "create", "vm1", "empty")
	all := newLoaders()
	for i, err := range loadAll(t, []*site{h}, all, func() {
		for range 4 {
			awaitWrites(t, all, 1+rand.IntN(300))
			p.nodes[0].kill()
			p.nodes[0].start(t)
		}
		awaitWrites(t, all, 100)
	}) {
		if err != nil {
			t.Errorf("while the data node was killed, loader %d: %v", i, err)
		}
	}
	checkAll(t, h, all)
	if out := h.command(t, "disk", "show", "vm1", "--json"); !strings.Contains(out, `"state": "ok"`) {
		t.Errorf("after the data node was killed:\n%s", out)
	}

	loadAll(t, []*site{h}, all, func() {
		awaitWrites(t, all, 100)
		h.kill()
	})
	h = p.host(t, "h1") // at once: nobody waits for the lease of its own last process
	if h.socket == "" {
		t.Fatalf("plinth host after SIGKILL: %v\n%s", h.err, h.said)
	}
	checkAll(t, h, all)
	loadAll(t, []*site{h}, all, func() { p.nodes[0].kill(); p.nodes[0].start(t); awaitWrites(t, all, 50) })
	h.stop(t)
	h = p.host(t, "h1")
	checkAll(t, h, all)
	h.command(t, "verify")
	h.stop(t)
}

// Who may not serve is told why, in a line, and nothing is changed.
func TestSplitRefusals(t *testing.T) {
	p := newSplit(t, 1)
	for _, name := range []string{"h1", "h2"} {
		p.join(t, "host", name)
	}
	h := p.host(t, "h1")
	if h.socket == "" {
		t.Fatalf("plinth host: %v\n%s", h.err, h.said)
	}
	other := filepath.Join(tempDir(t), "other")
	cluster(t, other, "init")
	foreign := serveCluster(t, other)
	f1, fdn := foreign.member(t, "host", "f1"), foreign.member(t, "datanode", "fdn")
	dir, identity := filepath.Join(p.dir, "x"), filepath.Join(p.dir, "h2")
	hostArgs := func(dir, identity string, more ...string) []string {
		return append([]string{
			"host", "--node", "unix:" + p.nodes[0].socket, "--dir", dir, "--identity", identity, "--nbd", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0",
		}, more...)
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"another process serves from", hostArgs(filepath.Join(p.dir, "host-h1"), filepath.Join(p.dir, "h1"), "--root-key", filepath.Join(p.dir, "root.key"))},
		{"--peer-listen: address", hostArgs(dir, identity, "--peer-listen", "here")},
		{"--peer-address: address", hostArgs(dir, identity, "--peer-address", "here")},
		{"--peer-address needs --peer-listen", hostArgs(dir, identity, "--peer-listen", "", "--peer-address", "here:1")},
		{"choose another address with --peer-listen", hostArgs(dir, identity, "--peer-listen", h.tcp)},
		{"--lease-ttl is 3s to", hostArgs(dir, identity, "--lease-ttl", "1s")},
		{"the certificate is a datanode's, not a host's", hostArgs(dir, filepath.Join(p.dir, "dn1"))},
		{"cluster", hostArgs(dir, f1)},
		{"leave --cert, --key and --ca out", hostArgs(dir, identity, "--cert", "c")},
		{"who this is must be given", hostArgs(dir, "")},
		{"--node: ", []string{"host", "--node", "nowhere", "--dir", dir, "--identity", identity}},
		{"--node: an address is empty", []string{"host", "--node", "unix:,127.0.0.1:1", "--dir", dir, "--identity", identity}},
		{"is not a directory", hostArgs(filepath.Join(identity, "identity.pem"), identity)},
		{"--cache-size needs --cache", hostArgs(dir, identity, "--cache-size", "1G")},
		{"another process has", p.nodes[0].args(filepath.Join(p.dir, "dn1"))},
		{"the certificate is a host's, not a datanode's", p.nodes[0].args(identity)},
		{"the certificate is of pool", p.nodes[0].args(fdn)},
		{"--spindle-size is at least", append(p.nodes[0].args(filepath.Join(p.dir, "dn1")), "--spindle-size", "1M")},
		{"create the data node in a directory of its own", []string{"datanode", "--dir", p.dir, "--identity", filepath.Join(p.dir, "dn1")}},
	} {
		_, complaint, code := plinth(t, nil, c.args...)
		oneLine(t, complaint, code, c.want)
	}
	h.command(t, "status")
	h.stop(t)
	// The lease was given up: the next host need not wait. Its pool's stripes stay.
	_, complaint, code := plinth(t, nil, hostArgs(dir, identity, "--root-key", filepath.Join(p.dir, "root.key"), "--ec", "3+1")...)
	oneLine(t, complaint, code, "a pool does not change them")
	_, complaint, code = plinth(t, nil, hostArgs(dir, identity)...)
	oneLine(t, complaint, code, "the pool cannot be read without its root key")
	if h = p.host(t, "h2"); h.socket == "" {
		t.Fatalf("the next host: %v\n%s", h.err, h.said)
	}
	h.stop(t)
}
