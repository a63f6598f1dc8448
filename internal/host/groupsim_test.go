package host

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plinth/datanode"
	"plinth/nbd"
)

var (
	groupRounds = flag.Int("group-rounds", 200, "group snapshots of TestSimGroups")
	groupSeed   = flag.Uint64("group-seed", 0, "of TestSimGroups; 0 draws one")
)

const (
	groupSectors = 16
	groupChains  = 3 // clients that write to one disk and then to the other
	groupPairs   = 2 // clients that read in one disk and then write to the other, for each way
)

// TestSimGroups takes snapshots of two disks of different hosts in simulated time, while
// clients write in causal order: a number to disk a, then the same to b; or what they
// read in one disk to the other. In most rounds a host is taken over from, cut off or closed
// at some step of the group, answers of the registry are lost, and its
// transactions come late. No snapshot has an effect without its cause, and of a
// group there is all or nothing.
func TestSimGroups(t *testing.T) {
	seed := *groupSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-group-seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		g := &groupRun{rng: rand.New(rand.NewPCG(seed, 1)), delays: rand.New(rand.NewPCG(seed, 2))}
		g.run(t, seed)
		if t.Failed() {
			return
		}
		t.Logf("%d made, %d not, %d in doubt; of %d with a takeover %d made; %d writes; steps that were hit: %v",
			g.made, g.failed, g.doubtful, g.takeovers, g.madeBeside, g.writes.Load(), g.hits)
		if *groupRounds >= 100 && (g.made < *groupRounds/10 || g.failed < *groupRounds/10 || g.madeBeside == 0) {
			t.Error("that was an idle run")
		}
	})
}

type groupRun struct {
	linearRun
	rng  *rand.Rand // of the rounds
	over context.Context
	busy atomic.Bool // a group is under way: clients hurry

	mu     sync.Mutex
	delays *rand.Rand
	trap   *groupTrap

	// issued and acked are what was written of each chain, to disks a and b.
	issued, acked [groupChains][2]atomic.Uint64
	writes        atomic.Int64

	made, failed, doubtful, takeovers, madeBeside int
	hits                                          map[string]int
}

// groupTrap does something once when a host makes a step of a group.
type groupTrap struct {
	step  string
	after bool // it was carried out
	do    func()
}

// groupStep says what a transaction is in a group, "" for none.
func groupStep(q *datanode.RegistryTxn) string {
	keys := append([]string{}, q.Deletes...)
	for _, p := range q.Puts {
		keys = append(keys, p.Key)
	}
	for i, key := range keys {
		_, host, err := parseGroupKey(key)
		switch put := i >= len(q.Deletes); {
		case err != nil || !strings.HasPrefix(key, groupPrefix):
		case host == "" && put:
			return "ask"
		case host == "" && len(q.Puts) > 0:
			return "record"
		case host == "":
			return "end"
		case put:
			return "answer"
		}
	}
	return ""
}

// groupLink is a host's way to the data node.
type groupLink struct {
	*lossyLink
	run *groupRun
}

func (g *groupRun) draw(n int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.delays.IntN(n)
}

func (g *groupRun) pause(most time.Duration) { time.Sleep(time.Duration(g.draw(int(most)))) }

// spring springs the trap if it is one for this.
func (g *groupRun) spring(step string, after bool) {
	g.mu.Lock()
	trap := g.trap
	hit := trap != nil && trap.step == step && trap.after == after
	if hit {
		g.trap = nil
		g.hits[fmt.Sprintf("%s, after: %v", step, after)]++
	}
	g.mu.Unlock()
	if hit {
		trap.do()
	}
}

func (k groupLink) RegistryCommit(ctx context.Context, q *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	step := groupStep(q)
	if step == "" {
		return k.lossyLink.RegistryCommit(ctx, q)
	}
	g := k.run
	g.spring(step, false)
	g.pause(4 * time.Millisecond)
	switch g.draw(20) {
	case 0: // it comes later
		k.late.Go(func() {
			g.pause(time.Second)
			_, _ = k.node.RegistryCommit(context.Background(), q)
		})
		return nil, datanode.Errorf(datanode.ErrOutcome, "no answer")
	case 1:
		_, _ = k.lossyLink.RegistryCommit(ctx, q)
		return nil, datanode.Errorf(datanode.ErrOutcome, "no answer")
	}
	reply, err := k.lossyLink.RegistryCommit(ctx, q)
	g.spring(step, true)
	g.pause(4 * time.Millisecond)
	return reply, err
}

func (k groupLink) RegistryWatch(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	reply, err := k.lossyLink.RegistryWatch(ctx, q)
	if q.Prefix == groupPrefix {
		k.run.pause(4 * time.Millisecond)
	}
	return reply, err
}

func (g *groupRun) run(t *testing.T, seed uint64) {
	g.t, g.hits = t, make(map[string]int)
	g.node = func(i int) datanode.Node { return groupLink{g.links[i], g} }
	g.open()
	for _, disk := range []string{"a", "b"} {
		_, err := g.hosts[0].CreateDisk(t.Context(), DiskSpec{Name: disk, Bytes: groupSectors * 512})
		g.ok(err)
	}
	var end context.CancelFunc
	g.over, end = context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for c := range groupChains {
		clients.Go(func() { g.chain(c, rand.New(rand.NewPCG(seed, uint64(10+c)))) })
	}
	for c := range groupPairs {
		clients.Go(func() { g.follow(0, c, rand.New(rand.NewPCG(seed, uint64(20+c)))) })
		clients.Go(func() { g.follow(1, c, rand.New(rand.NewPCG(seed, uint64(30+c)))) })
	}
	for n := 0; n < *groupRounds && !t.Failed(); n++ {
		g.round(n)
	}
	end()
	clients.Wait()
	for i, h := range g.hosts {
		g.links[i].late.Wait()
		_ = h.Close()
	}
	g.ok(g.shelf.Close())
}

// host returns a host, which may be closed and opened again.
func (g *groupRun) host(i int) *Host {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hosts[i]
}

// at returns the number of the host that has a disk, -1 for none.
func (g *groupRun) at(disk string) int {
	for i := range g.hosts {
		if d, err := g.host(i).Disk(disk); err == nil && d.State == "ok" {
			return i
		}
	}
	return -1
}

// move has a host serve a disk, if that works within a while.
func (g *groupRun) move(disk string, to int) {
	ctx, cancel := context.WithTimeout(g.over, 10*time.Second)
	defer cancel()
	_ = g.host(to).MoveDisk(ctx, disk, fmt.Sprint("h", to))
}

// round takes one group snapshot.
func (g *groupRun) round(n int) {
	at := g.rng.Perm(linearHosts)
	if g.rng.IntN(10) == 0 {
		at[1] = at[0]
	}
	for i, disk := range []string{"a", "b"} {
		if g.at(disk) != at[i] {
			g.move(disk, at[i])
		}
	}
	g.busy.Store(true)
	time.Sleep(time.Duration(g.rng.IntN(20)) * time.Millisecond)
	asks := g.rng.IntN(linearHosts)
	undo := g.arm(at, asks)
	var acked, issued [groupChains][2]uint64
	for c := range acked {
		for d := range acked[c] {
			acked[c][d] = g.acked[c][d].Load()
		}
	}
	name := fmt.Sprint("s", n)
	ctx, cancel := context.WithTimeout(g.over, 30*time.Second)
	_, err := g.host(asks).CreateSnapshots(ctx, SnapshotSpec{Disks: []string{"a", "b"}, Name: name})
	cancel()
	for c := range issued {
		for d := range issued[c] {
			issued[c][d] = g.issued[c][d].Load()
		}
	}
	g.busy.Store(false)
	if g.rng.IntN(4) == 0 {
		time.Sleep(time.Second) // what comes late comes now
	}
	beside := undo()
	g.settle()
	made := g.rows(name)
	switch {
	case err == nil && made != 2:
		g.t.Errorf("%s: %d rows of a snapshot that was made", name, made)
	case errors.Is(err, errDoubt) && made != 1:
		g.doubtful++
	case err != nil && made != 0:
		g.t.Errorf("%s: %d rows of a snapshot that was not made: %v", name, made, err)
	case err == nil:
		g.made++
	default:
		g.failed++
	}
	if beside {
		g.takeovers++
		if made == 2 {
			g.madeBeside++
		}
	}
	if made != 2 {
		return
	}
	a, b := g.read("a@"+name), g.read("b@"+name)
	for c := range groupChains {
		if b[c] > a[c] || a[c] > b[c]+1 {
			g.t.Errorf("%s, chain %d: %d in disk a, %d in disk b, which was written after it", name, c, a[c], b[c])
		}
		if err == nil && (a[c] < acked[c][0] || b[c] < acked[c][1] || a[c] > issued[c][0] || b[c] > issued[c][1]) {
			g.t.Errorf("%s, chain %d: %d and %d, acknowledged before %d, issued until after it %d", name, c, a[c], b[c], acked[c], issued[c])
		}
	}
	for c := range groupPairs {
		if b[groupChains+c] > a[c] || a[groupChains+c] > b[c] {
			g.t.Errorf("%s: who read %d in a had it in b, where there was %d; who read %d in b had it in a, where there was %d",
				name, b[groupChains+c], a[c], a[groupChains+c], b[c])
		}
	}
}

// arm sets a trap for a step of the group, and returns what ends its consequences and
// tells whether it was a takeover that came.
func (g *groupRun) arm(at []int, asks int) (undo func() bool) {
	which := g.rng.IntN(2) // disk
	disk, victim, to := [2]string{"a", "b"}[which], at[which], at[2]
	if to == victim || g.rng.IntN(2) == 0 {
		to = at[1-which]
	}
	how, long := g.rng.IntN(6), time.Duration(g.rng.IntN(1000))*time.Millisecond
	if how == 5 || to == victim {
		return func() bool { return false }
	}
	if how == 4 {
		victim = asks
	}
	var came bool
	var closing sync.WaitGroup
	trap := &groupTrap{step: []string{"ask", "answer", "answer", "record", "record", "end"}[g.rng.IntN(6)], after: g.rng.IntN(2) == 0}
	trap.do = func() {
		came = true
		switch how {
		case 0, 1, 4: // its lease has ended, which it does not know
			g.endLease(victim)
			if how != 0 {
				g.links[victim].sever(true)
			}
		case 2, 3: // it ends in good order
			h := g.host(victim)
			closing.Go(func() { _ = h.Close() })
		}
		closing.Go(func() { g.move(disk, to) })
		for began := time.Now(); time.Since(began) < long && g.at(disk) != to; {
			time.Sleep(time.Millisecond)
		}
		g.pause(30 * time.Millisecond)
	}
	g.mu.Lock()
	g.trap = trap
	g.mu.Unlock()
	return func() bool {
		g.mu.Lock()
		g.trap = nil
		g.mu.Unlock()
		closing.Wait()
		if came && (how == 2 || how == 3) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.openHost(victim)
		} else if came && how != 0 {
			g.links[victim].sever(false)
		}
		return came
	}
}

// endLease ends a host's lease at the registry.
func (g *groupRun) endLease(host int) {
	row, err := g.shelf.RegistryGet(context.Background(), &datanode.RegistryGetRequest{Key: hostKey(fmt.Sprint("h", host))})
	if err == nil {
		_ = g.shelf.RegistryRevoke(context.Background(), &datanode.RegistryRevokeRequest{Lease: row.Lease})
	}
}

// settle waits until every group has ended, and nothing of one is left.
func (g *groupRun) settle() {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		all, err := g.shelf.RegistryList(g.t.Context(), &datanode.RegistryListRequest{Prefix: groupPrefix})
		g.ok(err)
		if len(all.Entries) == 0 {
			return
		}
		if time.Now().After(deadline) {
			g.t.Errorf("%s stays: %s", all.Entries[0].Key, all.Entries[0].Value)
			return
		}
	}
}

// rows counts the rows of a group's snapshots.
func (g *groupRun) rows(name string) (n int) {
	all, err := g.shelf.RegistryList(g.t.Context(), &datanode.RegistryListRequest{Prefix: snapPrefix})
	g.ok(err)
	for _, e := range all.Entries {
		if strings.HasSuffix(e.Key, "/"+name) {
			n++
		}
	}
	return n
}

// read reads a snapshot's sectors where its disk is, and removes it there.
func (g *groupRun) read(name string) []uint64 {
	p := make([]byte, groupSectors*512)
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for i := range g.hosts {
			h := g.host(i)
			var e nbd.Export
			var release func()
			if e, release, err = (Exports{h}).Open(g.t.Context(), name); err != nil {
				continue
			}
			err = e.Device.ReadAt(g.t.Context(), p, 0)
			release()
			if err != nil {
				continue
			}
			out := make([]uint64, groupSectors)
			for s := range out {
				out[s] = binary.LittleEndian.Uint64(p[s*512:])
			}
			disk, snapshot, _ := strings.Cut(name, "@")
			_ = h.RemoveSnapshot(g.t.Context(), disk, snapshot, false)
			return out
		}
	}
	g.t.Errorf("snapshot %s is not read: %v", name, err)
	return make([]uint64, groupSectors)
}
