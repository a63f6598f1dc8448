package interop

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"plinth/nbd/client"
)

var rackTime = flag.Duration("rack-time", 15*time.Second, "how long TestRack kills hosts, data nodes and members of etcd")

const (
	rackHosts    = 4
	rackDisks    = 8
	rackDiskSize = "64M"
	// rackPause limits a loader's rate: the machine has more processes than cores.
	rackPause = 2 * time.Millisecond
)

// rack is three data nodes, three members of etcd, four hosts, and eight disks that
// are written to by way of whichever host answers.
type rack struct {
	*pair // of four hosts
	etcd  []*etcdMember
	mu    sync.Mutex // guards hosts
	disks []*loader
}

// etcdMember is one of a cluster.
type etcdMember struct {
	args []string
	cmd  *exec.Cmd
	said bytes.Buffer
}

func (m *etcdMember) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command("etcd", m.args...)
	m.cmd.Stderr = &m.said
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (m *etcdMember) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// serveEtcd starts an etcd of so many members, until the test ends, and returns where they
// answer when they do.
func serveEtcd(t *testing.T, members int) (all []*etcdMember, addresses string) {
	t.Helper()
	free, dir := freeAddresses(t, 2*members), tempDir(t)
	clients, peers := free[:members], free[members:]
	var cluster []string
	for i, peer := range peers {
		cluster = append(cluster, fmt.Sprintf("m%d=http://%s", i, peer))
	}
	for i := range members {
		client, peer := "http://"+clients[i], "http://"+peers[i]
		m := &etcdMember{args: []string{
			"--name", fmt.Sprint("m", i), "--data-dir", filepath.Join(dir, fmt.Sprint(i)), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(cluster, ","), "--log-level", "error",
		}}
		m.start(t)
		t.Cleanup(m.kill)
		all = append(all, m)
	}
	for i, m := range all {
		for deadline := time.Now().Add(startTime); ; time.Sleep(50 * time.Millisecond) {
			if c, err := net.Dial("tcp", clients[i]); err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				m.kill() // or what it said is still being written
				t.Fatalf("etcd does not serve\n%s", &m.said)
			}
		}
	}
	return all, strings.Join(clients, ",")
}

// answering returns a client of a disk at one of the hosts that run.
func (r *rack) answering(t *testing.T, disk string) *client.Client {
	for deadline := time.Now().Add(waitMax); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r.mu.Lock()
		h := r.hosts[rand.IntN(len(r.hosts))]
		r.mu.Unlock()
		if h == nil {
			continue
		}
		if c, err := client.Dial(t.Context(), "unix", h.socket, disk, client.Options{}); err == nil {
			return c
		}
	}
	t.Errorf("no host serves %s", disk)
	return nil
}

// write has a disk written to until ctx ends. Who loses the connection goes on by way
// of another host.
func (r *rack) write(ctx context.Context, t *testing.T, l *loader, disk string) {
	for ctx.Err() == nil {
		c := r.answering(t, disk)
		if c == nil {
			return
		}
		if l.doubt >= 0 {
			if l.check(t, c, l.doubt) != nil {
				c.Close()
				continue
			}
		}
		_ = l.run(ctx, t, c, rand.New(rand.NewPCG(rand.Uint64(), 1))) // its host was killed
		c.Close()
	}
}

// goOn returns how long it takes until each disk has acknowledged more writes than
// may have been under way.
func (r *rack) goOn(t *testing.T) time.Duration {
	t.Helper()
	began, before := time.Now(), make([]uint64, len(r.disks))
	for i, l := range r.disks {
		before[i] = written([]*loader{l})
	}
	for i, l := range r.disks {
		for written([]*loader{l}) < before[i]+2 {
			if time.Since(began) > waitMax || t.Failed() {
				t.Fatalf("disk d%d does not go on", i)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return time.Since(began)
}

// replace sets a host, nil while there is none.
func (r *rack) replace(i int, h *site) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts[i] = h
}

// A host, a data node or a member of etcd is killed at a time, the next one when all is
// whole again: no byte is wrong, no acknowledged write is lost.
func TestRack(t *testing.T) {
	t.Parallel()
	members, addresses := serveEtcd(t, 3)
	r := &rack{pair: &pair{split: newSplit(t, 3)}, etcd: members}
	r.more = []string{"--registry", "etcd://" + addresses}
	for i := range rackHosts {
		name := fmt.Sprint("h", i+1)
		r.join(t, "host", name)
		r.hosts = append(r.hosts, r.begin(t, name))
	}
	for i := range rackDisks {
		r.hosts[i%rackHosts].command(t, "disk", "create", fmt.Sprint("d", i), rackDiskSize)
		r.disks = append(r.disks, &loader{doubt: -1, pause: rackPause})
	}
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer func() { stop(); writing.Wait() }()
	for i, l := range r.disks {
		writing.Go(func() { r.write(ctx, t, l, fmt.Sprint("d", i)) })
	}
	stood := make([]pauses, 3)
	var whole pauses
	first := rand.IntN(3) // each kind gets its turn, however short the time
	for end, round := time.Now().Add(*rackTime), 0; (time.Now().Before(end) || round < 3) && !t.Failed(); round++ {
		r.goOn(t)
		kind := rand.IntN(3)
		if round < 3 {
			kind = (first + round) % 3
		}
		switch kind {
		case 0:
			i := rand.IntN(rackHosts)
			h := r.hosts[i]
			r.replace(i, nil)
			h.kill()
			stood[kind] = append(stood[kind], r.goOn(t))
			r.replace(i, r.begin(t, fmt.Sprint("h", i+1)))
		case 1:
			n := r.nodes[rand.IntN(len(r.nodes))]
			n.kill()
			stood[kind] = append(stood[kind], r.goOn(t))
			n.start(t)
		case 2:
			m := r.etcd[rand.IntN(len(r.etcd))]
			m.kill()
			stood[kind] = append(stood[kind], r.goOn(t))
			m.start(t)
		}
		began := time.Now()
		awaitWhole(t, r.hosts...)
		whole = append(whole, time.Since(began))
	}
	stop()
	writing.Wait()
	for i, l := range r.disks {
		c := r.answering(t, fmt.Sprint("d", i))
		for b := range loaderBlocks {
			if err := l.check(t, c, b); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
	}
	t.Logf("%d writes; all went on after %d hosts were killed in %v, %d data nodes %v, %d members of etcd %v; all was whole after %v",
		written(r.disks), len(stood[0]), stood[0], len(stood[1]), stood[1], len(stood[2]), stood[2], whole)
	r.hosts[0].command(t, "verify")
	for _, h := range r.hosts {
		h.stop(t)
	}
}
