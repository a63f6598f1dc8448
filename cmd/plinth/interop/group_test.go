package interop

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/nbd/client"
)

var (
	groupTakeovers = flag.Int("group-takeovers", 1, "takeovers of TestGroupSnapshots, each in the middle of one")
	groupCount     = flag.Int("group-count", 5, "group snapshots of TestGroupSnapshots before the takeovers, of which pauses are told")
)

const groupChains = 3

// groupLoad is clients that write in causal order to vm1 and vm2: a number to a block of the
// one and then of the other, or what they have read in one disk to the other.
type groupLoad struct {
	*pair
	t  *testing.T
	mu sync.Mutex // guards hosts, which are started again

	issued, acked [groupChains][2]atomic.Uint64
	longest       atomic.Int64 // write, ns; who measures sets it to 0
}

func (g *groupLoad) host(i int) *site {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hosts[i]
}

// groupClient is one of the clients. It begins at the host that has the disk, so that
// it does not ask for it.
type groupClient struct {
	g    *groupLoad
	at   [2]int
	conn [2]*client.Client
}

// do makes a call to vm1 or vm2 until it succeeds by way of some host, or ctx ends.
func (c *groupClient) do(ctx context.Context, disk int, call func(context.Context, *client.Client) error) bool {
	for deadline := time.Now().Add(waitMax); ctx.Err() == nil; {
		callCtx, cancel := context.WithTimeout(ctx, 6*time.Second)
		var err error
		if c.conn[disk] == nil {
			c.conn[disk], err = client.Dial(callCtx, "unix", c.g.host(c.at[disk]).socket, fmt.Sprint("vm", disk+1), client.Options{})
		}
		if err == nil {
			err = call(callCtx, c.conn[disk])
		}
		if cancel(); err == nil {
			return true
		}
		c.leave(disk)
		c.at[disk] = 1 - c.at[disk]
		if time.Now().After(deadline) {
			c.g.t.Errorf("vm%d is not served: %v", disk+1, err)
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func (c *groupClient) leave(disk int) {
	if c.conn[disk] != nil {
		_ = c.conn[disk].Close()
		c.conn[disk] = nil
	}
}

func (c *groupClient) write(ctx context.Context, disk, block int, value uint64) bool {
	p := binary.LittleEndian.AppendUint64(make([]byte, 0, 4096), value)[:4096]
	began := time.Now()
	ok := c.do(ctx, disk, func(ctx context.Context, conn *client.Client) error {
		return conn.WriteAt(ctx, p, int64(block)*4096, false)
	})
	took := int64(time.Since(began))
	for {
		most := c.g.longest.Load()
		if took <= most || c.g.longest.CompareAndSwap(most, took) {
			return ok
		}
	}
}

// run runs all clients until it is ended.
func (g *groupLoad) run() (end func()) {
	ctx, stop := context.WithCancel(g.t.Context())
	var clients sync.WaitGroup
	begin := func(work func(c *groupClient) bool) {
		clients.Go(func() {
			c := &groupClient{g: g, at: [2]int{0, 1}}
			defer c.leave(0)
			defer c.leave(1)
			for work(c) {
				time.Sleep(rand.N(2 * time.Millisecond))
			}
		})
	}
	for chain := range groupChains {
		n := uint64(0)
		begin(func(c *groupClient) bool {
			n++
			for disk := range 2 {
				g.issued[chain][disk].Store(n)
				if !c.write(ctx, disk, chain, n) {
					return false
				}
				g.acked[chain][disk].Store(n)
			}
			return true
		})
	}
	for from := range 2 {
		p := make([]byte, 4096)
		begin(func(c *groupClient) bool {
			return c.do(ctx, from, func(ctx context.Context, conn *client.Client) error { return conn.ReadAt(ctx, p, 0) }) &&
				c.write(ctx, 1-from, groupChains, binary.LittleEndian.Uint64(p))
		})
	}
	return func() { stop(); clients.Wait() }
}

// progress waits until every chain has gone on.
func (g *groupLoad) progress() {
	g.t.Helper()
	deadline := time.Now().Add(waitMax)
	for chain := range groupChains {
		for until := g.acked[chain][1].Load() + 2; g.acked[chain][1].Load() < until; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				g.t.Fatalf("chain %d does not go on\n%s\n%s", chain, g.host(0).said, g.host(1).said)
			}
		}
	}
}

// snapshot asks a host for a snapshot of both disks.
func (g *groupLoad) snapshot(h *site, name string) error {
	address, err := api.ParseAddress(h.api)
	if err != nil {
		return err
	}
	c, err := api.NewClient(address, api.ClientOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.CreateSnapshots(g.t.Context(), api.CreateSnapshots{Disks: []string{"vm1", "vm2"}, CreateSnapshot: api.CreateSnapshot{Name: name}})
	return err
}

// snapshots lists vm1's or vm2's, at the host that has it.
func (g *groupLoad) snapshots(disk int) []string {
	g.t.Helper()
	for deadline := time.Now().Add(waitMax); ; time.Sleep(20 * time.Millisecond) {
		for i := range 2 {
			out, _, code := plinth(g.t, []string{"PLINTH_API=" + g.host(i).api}, "snapshot", "ls", fmt.Sprint("vm", disk+1), "--json")
			var list api.SnapshotList
			if code == 0 && json.Unmarshal([]byte(out), &list) == nil {
				var names []string
				for _, s := range list.Snapshots {
					names = append(names, s.Name)
				}
				return names
			}
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("no host has vm%d", disk+1)
		}
	}
}

// read reads the first blocks of a disk's snapshot, by way of either host.
func (g *groupLoad) read(disk int, name string) []uint64 {
	g.t.Helper()
	var err error
	for deadline := time.Now().Add(waitMax); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for i := range 2 {
			var c *client.Client
			ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
			c, err = client.Dial(ctx, "unix", g.host(i).socket, fmt.Sprintf("vm%d@%s", disk+1, name), client.Options{})
			p := make([]byte, (groupChains+1)*4096)
			if err == nil {
				err = c.ReadAt(ctx, p, 0)
				_ = c.Close()
			}
			if cancel(); err != nil {
				continue
			}
			var out []uint64
			for b := range groupChains + 1 {
				out = append(out, binary.LittleEndian.Uint64(p[b*4096:]))
			}
			return out
		}
	}
	g.t.Fatalf("vm%d@%s is not read: %v", disk+1, name, err)
	return nil
}

// numbers are what chains have written, to both disks.
type numbers [groupChains][2]uint64

func numbersOf(from *[groupChains][2]atomic.Uint64) (n numbers) {
	for chain := range n {
		for disk := range 2 {
			n[chain][disk] = from[chain][disk].Load()
		}
	}
	return n
}

// check compares a group with what was acknowledged before it was asked for and what was
// sent until it was made.
func (g *groupLoad) check(name string, acked, issued numbers) {
	g.t.Helper()
	a, b := g.read(0, name), g.read(1, name)
	for chain := range groupChains {
		if b[chain] > a[chain] || a[chain] > b[chain]+1 {
			g.t.Errorf("%s, chain %d: %d in vm1, %d in vm2, which was written after it", name, chain, a[chain], b[chain])
		}
		if a[chain] < acked[chain][0] || b[chain] < acked[chain][1] || a[chain] > issued[chain][0] || b[chain] > issued[chain][1] {
			g.t.Errorf("%s, chain %d: %d and %d, acknowledged before %d, sent until after it %d", name, chain, a[chain], b[chain], acked[chain], issued[chain])
		}
	}
	if b[groupChains] > a[0] || a[groupChains] > b[0] {
		g.t.Errorf("%s: who read %d in vm1 had it in vm2, where there was %d; who read %d in vm2 had it in vm1, where there was %d",
			name, b[groupChains], a[0], a[groupChains], b[0])
	}
}

// place has each disk at a host of its own.
func (g *groupLoad) place() {
	g.t.Helper()
	for disk, host := range []string{"h1", "h2"} {
		for deadline := time.Now().Add(waitMax); ; time.Sleep(20 * time.Millisecond) {
			_, complaint, code := plinth(g.t, []string{"PLINTH_API=" + g.host(0).api}, "disk", "move", fmt.Sprint("vm", disk+1), host)
			if code == 0 {
				break
			}
			if time.Now().After(deadline) {
				g.t.Fatalf("vm%d does not move to %s: %s", disk+1, host, complaint)
			}
		}
	}
}

// takeover takes a group snapshot in the middle of which the second host dies, and is started
// again at once or when the first one has its disk, or stands still for a while. It
// reports whether the snapshots were made.
func (g *groupLoad) takeover(n int) bool {
	g.t.Helper()
	g.place()
	g.progress()
	name, how := fmt.Sprint("t", n), n%3
	acked := numbersOf(&g.acked)
	done := make(chan error, 1)
	go func() { done <- g.snapshot(g.host(0), name) }()
	time.Sleep(rand.N(15 * time.Millisecond))
	victim := g.host(1)
	if how == 2 {
		if err := victim.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			g.t.Error(err)
		}
		time.Sleep(rand.N(time.Second))
		_ = victim.cmd.Process.Signal(syscall.SIGCONT)
	} else {
		victim.kill()
	}
	again := func() {
		h := g.begin(g.t, "h2")
		g.mu.Lock()
		defer g.mu.Unlock()
		g.hosts[1] = h
	}
	if how == 1 {
		again()
	}
	err := <-done
	issued := numbersOf(&g.issued)
	g.progress() // vm2 too is served
	if how == 0 {
		again()
	}
	if err != nil {
		g.t.Logf("%s: %v", name, err)
	}
	// On a machine that stalls the disk may have had no host, or the host no lease.
	if body := (*api.ErrorBody)(nil); err != nil && (!errors.As(err, &body) || !slices.Contains([]string{"busy", "elsewhere", "no_lease", "unreachable"}, body.Code) ||
		body.Code == "busy" && !strings.Contains(body.Message, "nothing was made, try again")) {
		g.t.Errorf("%s: the error says %v", name, err)
	}
	for disk := range 2 {
		if slices.Contains(g.snapshots(disk), name) != (err == nil) {
			g.t.Errorf("%s is one of vm%d's: %v; its making: %v", name, disk+1, err != nil, err)
		}
	}
	if err == nil {
		g.check(name, acked, issued)
	}
	return err == nil
}

// Snapshots of two disks of two hosts at one instant, under clients that write to one and
// then to the other, while a host dies or stands still in the middle: no snapshot has an effect
// without its cause.
func TestGroupSnapshots(t *testing.T) {
	t.Parallel()
	testGroups(t, newPair(t, 1))
}

// The same with the registry in etcd, where a commit takes as long as a call between hosts.
func TestGroupSnapshotsEtcd(t *testing.T) {
	t.Parallel()
	p, _ := newPairEtcd(t, 2, 3)
	testGroups(t, p)
}

func testGroups(t *testing.T, p *pair) {
	g := &groupLoad{pair: p, t: t}
	g.host(1).command(t, "disk", "create", "vm2", "64M")
	g.place()
	end := g.run()
	g.progress()
	var stood, calm []time.Duration
	for n := 0; n < *groupCount; n++ {
		name := fmt.Sprint("s", n)
		g.longest.Store(0)
		time.Sleep(20 * time.Millisecond)
		calm = append(calm, time.Duration(g.longest.Swap(0)))
		acked := numbersOf(&g.acked)
		err := g.snapshot(g.host(n%2), name)
		issued := numbersOf(&g.issued)
		time.Sleep(10 * time.Millisecond)
		stood = append(stood, time.Duration(g.longest.Swap(0)))
		if err != nil { // on a machine that stalls
			t.Logf("%s: %v", name, err)
			if !strings.Contains(err.Error(), "try again") {
				t.Error(err)
			}
			continue
		}
		g.check(name, acked, issued)
	}
	for _, d := range [][]time.Duration{stood, calm} {
		slices.Sort(d)
	}
	if n := len(stood); n > 0 {
		t.Logf("the longest write beside each of %d groups: p50 %v, max %v; in 20 ms before each: p50 %v, max %v", n, stood[n/2], stood[n-1], calm[n/2], calm[n-1])
	}
	made := 0
	for n := range *groupTakeovers {
		if g.takeover(n) {
			made++
		}
	}
	g.place()
	for range 10 { // which the machine may be too slow for
		_, complaint, code := plinth(t, []string{"PLINTH_API=" + g.host(0).api}, "snapshot", "create", "vm1", "vm2", "--name", "last")
		if code == 0 {
			break
		}
		if !strings.Contains(complaint, "try again") {
			t.Fatal(complaint)
		}
	}
	end()
	if got := g.snapshots(1); !slices.Contains(got, "last") {
		t.Errorf("vm2 has the snapshots %v", got)
	}
	t.Logf("%d of %d with a takeover were made", made, *groupTakeovers)
	g.host(0).command(t, "verify")
}
