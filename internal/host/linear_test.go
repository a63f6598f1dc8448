package host

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/keyring"
	"plinth/internal/linear"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

var (
	linearRuns = flag.Int("linear-runs", 3, "histories of TestSimLinearizable")
	linearOps  = flag.Int("linear-ops", 10_000, "operations of each")
	linearSeed = flag.Uint64("linear-seed", 0, "of the first; 0 draws one")
)

const (
	linearHosts   = 3
	linearClients = 8
	linearSectors = 24 // registers of a history, three chunks
	linearTTL     = 2 * time.Second
	linearDisk    = "d"
)

// TestSimLinearizable has clients read and write the sectors of one disk by way of
// three hosts, in simulated time. The disk moves, hosts are cut off from the data
// node for less or more than their lease, replies are lost, and appends come when
// their host has been forgotten.
func TestSimLinearizable(t *testing.T) {
	seed := *linearSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for i := range uint64(*linearRuns) {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			l := linearRun{History: linear.New(linearSectors)}
			synctest.Test(t, func(t *testing.T) { l.run(t, seed+i) })
			if err := l.Check(); err != nil {
				t.Error(err)
			}
			t.Logf("%+v, %d moves, %d cuts, %d late appends", l.Tally, l.moves, l.cuts, l.late)
			if *linearOps >= 10_000 && (l.moves == 0 || l.cuts == 0 || l.Unknown == 0) {
				t.Error("that was an idle history")
			}
		})
	}
}

// linearRun is one history.
type linearRun struct {
	t     *testing.T
	shelf *shelf.Shelf
	hosts [linearHosts]*Host
	links [linearHosts]*lossyLink
	key   string // file of the root key
	began time.Time
	// node is a host's way to the data node; nil: its link.
	node func(host int) datanode.Node

	left atomic.Int64 // operations to begin
	*linear.History
	moves, cuts, late int
}

func (l *linearRun) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *linearRun) run(t *testing.T, seed uint64) {
	l.t = t
	l.open()
	_, err := l.hosts[0].CreateDisk(t.Context(), DiskSpec{Name: linearDisk, Bytes: linearSectors * linear.SectorBytes})
	l.ok(err)
	l.left.Store(int64(*linearOps))
	var clients, chaos sync.WaitGroup
	for c := range linearClients {
		clients.Go(func() { l.client(c, rand.New(rand.NewPCG(seed, uint64(c)))) })
	}
	over, end := context.WithCancel(t.Context())
	chaos.Go(func() { l.chaos(over, rand.New(rand.NewPCG(seed, 99))) })
	clients.Wait()
	end()
	chaos.Wait()
	for i, h := range l.hosts {
		l.links[i].late.Wait()
		_ = h.Close() // one that was cut off cannot give its lease back
	}
	l.ok(l.shelf.Close())
}

// open opens a data node in memory and the hosts.
func (l *linearRun) open() {
	t := l.t
	l.key = filepath.Join(t.TempDir(), "root.key")
	root, err := keyring.CreateRootFile(l.key)
	l.ok(err)
	pool, fs := keyring.NewPoolID(), crashfs.New()
	o := shelf.Options{
		PoolID: pool, FS: fs, Spindles: 4, LogBytes: 64 << 20, SpindleBytes: 128 << 20, Width: 3, IndexCacheBytes: 1 << 20,
		Logger: slog.New(slog.DiscardHandler),
	}
	l.ok(shelf.Create("pool", o))
	l.shelf, err = shelf.Open(t.Context(), "pool", o)
	l.ok(err)
	header, _ := keyring.CreatePool(root, pool)
	l.ok(Format(t.Context(), l.shelf, header, stripe.Geometry{K: 2, M: 1}, 4))
	l.began = time.Now()
	for i := range l.hosts {
		l.links[i] = newLossyLink(l.shelf)
		l.openHost(i)
	}
}

func (l *linearRun) openHost(i int) {
	root, err := keyring.LoadRootFile(l.key)
	l.ok(err)
	node := datanode.Node(l.links[i])
	if l.node != nil {
		node = l.node(i)
	}
	l.hosts[i], err = Open(l.t.Context(), node, root, Options{
		Name: fmt.Sprint("h", i), Peer: fmt.Sprint("h", i, ":1"), FS: crashfs.New(), Dir: "host", CacheBytes: 1 << 20, RAMCacheBytes: RAMCacheBytesMin,
		LeaseTTL: linearTTL, DestageInterval: 300 * time.Millisecond, IdleTime: time.Second, Logger: slog.New(slog.DiscardHandler),
		clock: func() time.Duration { return time.Since(l.began) },
	})
	l.ok(err)
}

// client does operations, one at a time, wherever the disk seems to be.
func (l *linearRun) client(c int, rng *rand.Rand) {
	at := rng.IntN(linearHosts)
	var device nbd.Device
	var release func()
	leave := func() {
		if release != nil {
			release()
		}
		device, release = nil, nil
	}
	defer leave()
	for l.left.Add(-1) >= 0 && !l.t.Failed() {
		if c%2 == 0 && l.links[at].calm.Load() {
			leave() // who writes elsewhere has the others here read what is old
		}
		for device == nil {
			if c%2 != 0 || !l.links[at].calm.Load() {
				e, r, err := Exports{l.hosts[at]}.Open(l.t.Context(), linearDisk)
				if err == nil {
					device, release = e.Device, r
					break
				}
			}
			at = rng.IntN(linearHosts)
			time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
		}
		if !l.operate(device, l.links[at], rng) {
			// Some stay where it failed: a host that was cut off is to be asked.
			if rng.IntN(3) > 0 {
				leave()
				at = rng.IntN(linearHosts)
			}
			time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
		}
		if rng.IntN(3) > 0 {
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		}
	}
}

// operate does one operation and reports its success.
func (l *linearRun) operate(d nbd.Device, link *lossyLink, rng *rand.Rand) bool {
	first := rng.IntN(linearSectors)
	n, off := 1+rng.IntN(min(10, linearSectors-first)), int64(first*linear.SectorBytes)
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	pause := func() {
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(4000)) * time.Microsecond)
		}
	}
	fua := rng.IntN(4) == 0
	var err error
	if rng.IntN(2) == 0 && !link.calm.Load() {
		err = l.Write(first, n, func(p []byte) error {
			pause()
			defer pause()
			return d.WriteAt(ctx, p, off, fua)
		})
	} else {
		err = l.Read(first, n, func(p []byte) error {
			pause()
			defer pause()
			return d.ReadAt(ctx, p, off)
		})
	}
	if torn := (*linear.TornError)(nil); errors.As(err, &torn) {
		l.t.Error(err)
	}
	return err == nil
}

// chaos moves the disk and cuts hosts off until the end.
func (l *linearRun) chaos(over context.Context, rng *rand.Rand) {
	pause := func(most time.Duration) bool {
		select {
		case <-time.After(rand.N(most)):
		case <-over.Done():
		}
		return over.Err() == nil
	}
	move := func() {
		ctx, cancel := context.WithTimeout(over, 20*time.Second)
		defer cancel()
		to := rng.IntN(linearHosts)
		if l.links[to].cut.Load() {
			return
		}
		if l.hosts[to].MoveDisk(ctx, linearDisk, l.hosts[to].opts.Name) == nil {
			l.moves++
		}
	}
	for pause(time.Second) {
		if rng.IntN(3) == 0 {
			move()
			continue
		}
		cut := l.links[rng.IntN(linearHosts)]
		l.cuts++
		calm := rng.IntN(2) == 0
		if cut.calm.Store(calm); calm { // it goes on to answer reads, until its lease ends
			pause(200 * time.Millisecond)
		}
		if cut.setCut(true, rng); calm {
			move()
		} else if pause(2*linearTTL) && rng.IntN(2) == 0 {
			move()
		}
		pause(linearTTL)
		cut.setCut(false, rng)
		cut.calm.Store(false)
	}
	for _, link := range l.links {
		link.setCut(false, rng)
		l.late += int(link.lates.Load())
	}
}

// lossyLink is a host's way to the data node.
type lossyLink struct {
	*datanode.Switch
	node *shelf.Shelf
	cut  atomic.Bool
	calm atomic.Bool // no client writes here

	mu    sync.Mutex
	rng   *rand.Rand // set where the link is about to be cut: what becomes of appends
	late  sync.WaitGroup
	lates atomic.Int64
}

func newLossyLink(node *shelf.Shelf) *lossyLink {
	return &lossyLink{Switch: datanode.NewSwitch(node), node: node}
}

// setCut cuts the link or heals it. The last appends before a cut get no answer: they
// were carried out, or will be.
func (k *lossyLink) setCut(cut bool, rng *rand.Rand) {
	if cut {
		k.mu.Lock()
		k.rng = rand.New(rand.NewPCG(rng.Uint64(), 0))
		k.mu.Unlock()
		time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
	}
	k.sever(cut)
}

// sever cuts the link at once, or heals it.
func (k *lossyLink) sever(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rng = nil
	if k.cut.Store(cut); cut {
		k.Set(nil)
		return
	}
	k.Set(k.node)
}

var errNoAnswer = datanode.Errorf(datanode.ErrUnreachable, "no answer")

func (k *lossyLink) Append(ctx context.Context, q *datanode.AppendRequest) (*datanode.AppendReply, error) {
	k.mu.Lock()
	fate, after := 0, time.Duration(0)
	if k.rng != nil {
		fate, after = k.rng.IntN(3), time.Duration(k.rng.IntN(int(2*linearTTL)))
	}
	k.mu.Unlock()
	switch fate {
	case 1:
		_, _ = k.Switch.Append(ctx, q)
		return nil, errNoAnswer
	case 2:
		later := keptAppend(q)
		k.late.Go(func() {
			time.Sleep(after)
			if _, err := k.node.Append(context.Background(), later); err == nil || errors.Is(err, datanode.ErrFenced) {
				k.lates.Add(1)
			}
		})
		return nil, errNoAnswer
	}
	return k.Switch.Append(ctx, q)
}

// keptAppend returns an append that may be carried out after its caller has gone on.
func keptAppend(q *datanode.AppendRequest) *datanode.AppendRequest {
	kept := *q
	kept.Records = nil
	for _, r := range q.Records {
		r.Data = bytes.Clone(r.Data)
		kept.Records = append(kept.Records, r)
	}
	return &kept
}
