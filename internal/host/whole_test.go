package host

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/keyring"
	"plinth/internal/linear"
	"plinth/internal/rack/racktest"
	"plinth/internal/sim"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

var (
	wholeSeeds   = flag.Int("whole-seeds", 100, "pools of TestSimWhole")
	wholeDir     = flag.String("whole-dir", "", "where a run of seeds from 1 on is kept, to go on; empty: nowhere")
	wholeSeed    = flag.Uint64("whole-seed", 0, "of the first; 0 draws one")
	wholeOps     = flag.Int("whole-ops", 1000, "operations of each pool")
	wholeFaults  = flag.Int("whole-faults", 20, "faults of each pool, at least")
	wholeVerbose = flag.Bool("whole-verbose", false, "log what nodes and hosts say")
)

const (
	wholeNodes    = 3
	wholeSpindles = 3
	wholeHosts    = 3
	wholeClients  = 4
	wholeSectors  = 160 // of a disk, 20 chunks
	wholeTTL      = 2 * time.Second
)

// TestSimWhole runs the real hosts, data nodes, registry and Pebble in one process and
// in simulated time, on file systems in memory that lose power. A seed says what
// happens to them.
//
// Fault model: a host ends at any moment, or is cut off from some nodes or all, in
// both directions or in that of the answers, for less or more than its lease; its clock
// jumps ahead. A data node's process ends, or its machine loses power, at any byte
// that it writes; all lose power at once, after a flush. Calls are late, overtake each
// other, are lost, their answers are lost, and appends are carried out when their caller
// has given up. On two spindles of one node writes are refused, lost, torn, misdirected or
// taken back, bits flip, reads fail or are slow, and a drive is replaced and rebuilt.
//
// Workload: reads, writes, FUA, flush, zeroing, resize, snapshots, clones, removal,
// moves, reclaim, drains of spindles, spindles that come, rebalances.
//
// What is looked for: every sector is a register, over all losses of power; snapshots and
// clones stay as they were; at rest verify finds nothing: no chunk, fragment or
// parity that is wrong, nothing freed that is needed, no leak.
func TestSimWhole(t *testing.T) {
	kept, err := sim.LoadKept(*wholeDir)
	if err != nil {
		t.Fatal(err)
	}
	first := *wholeSeed
	if first == 0 {
		first = rand.Uint64()
	}
	if *wholeDir != "" {
		first = 1
	}
	if *wholeSeed == 0 && *wholeDir == "" {
		for _, seed := range wholeFound {
			wholePool(t, seed)
		}
	}
	began := time.Now()
	for i := kept.Done; i < *wholeSeeds && !t.Failed(); i++ {
		seed := first + uint64(i)
		wholePool(t, seed)
		if !t.Failed() {
			if err := kept.Add(1, time.Since(began)); err != nil {
				t.Fatal(err)
			}
			began = time.Now()
		}
	}
	t.Logf("%d pools in %v", kept.Done, kept.Took.Round(time.Second))
}

// wholeFound are seeds that found something, each time.
var wholeFound = []uint64{
	40, // a disk is opened again while an open of it, from before the session ended, is under way
}

func wholePool(t *testing.T, seed uint64) {
	t.Run(fmt.Sprint(seed), func(t *testing.T) {
		w := &whole{seed: seed, counts: map[string]int{}}
		began := time.Now()
		synctest.Test(t, w.run)
		for _, d := range w.disks {
			if err := d.Check(); err != nil {
				t.Errorf("disk %s: %v", d.name, err)
			}
		}
		t.Logf("-whole-seed %d: %v of simulated time in %v, %v", seed, w.took.Round(time.Second), time.Since(began).Round(time.Millisecond), w.counts)
	})
}

// whole is one pool.
type whole struct {
	*testing.T
	seed   uint64
	rng    *rand.Rand // of the faults
	key    string     // file of the root key
	nodes  *racktest.Shelves
	drives [wholeNodes]atomic.Pointer[crashfs.FS]
	parks  [wholeNodes]*crashfs.Parking
	hosts  [wholeHosts]*wholeHost
	disks  []*wholeDisk
	poor   int // the node with bad drives
	bad    badness
	began  time.Time
	took   time.Duration
	left   atomic.Int64 // operations to do

	mu     sync.Mutex
	counts map[string]int
}

// wholeDisk is a disk under load.
type wholeDisk struct {
	name string
	*linear.History
}

func (w *whole) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *whole) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

func (w *whole) logger(who string) *slog.Logger {
	if !*wholeVerbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", who)
}

func (w *whole) run(t *testing.T) {
	w.T, w.rng, w.began = t, rand.New(rand.NewPCG(w.seed, 0)), time.Now()
	w.open()
	defer func() { w.took = time.Since(w.began) }()
	for _, name := range []string{"a", "b"} {
		_, err := w.hosts[0].host().CreateDisk(t.Context(), DiskSpec{Name: name, Bytes: wholeSectors * linear.SectorBytes})
		w.ok(err)
		w.disks = append(w.disks, &wholeDisk{name, linear.New(wholeSectors)})
	}
	for faults := 0; faults < *wholeFaults && !t.Failed(); {
		faults += w.chapter(*wholeFaults / 2)
		w.heal()
		w.blackout()
	}
	w.heal()
	w.settle()
	w.end()
}

// chapter has clients and faults at once, and returns how many faults there were.
func (w *whole) chapter(most int) (faults int) {
	w.left.Store(int64(*wholeOps / 2))
	w.bad.on.Store(true)
	defer w.bad.on.Store(false)
	var clients sync.WaitGroup
	for c := range wholeClients {
		rng := rand.New(rand.NewPCG(w.rng.Uint64(), uint64(c)))
		clients.Go(func() { w.client(rng) })
	}
	over, end := context.WithCancel(w.Context())
	var keeper sync.WaitGroup
	rng := rand.New(rand.NewPCG(w.rng.Uint64(), wholeClients))
	keeper.Go((&wholeKeeper{whole: w, over: over, rng: rng}).run)
	for w.left.Load() > 0 || faults < most {
		if w.Failed() {
			break
		}
		w.fault()
		faults++
		time.Sleep(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
	}
	w.heal()
	clients.Wait()
	end()
	keeper.Wait()
	return faults
}

// open opens the data nodes and the hosts.
func (w *whole) open() {
	w.key = filepath.Join(w.TempDir(), "root.key")
	root, err := keyring.CreateRootFile(w.key)
	w.ok(err)
	w.poor = w.rng.IntN(wholeNodes)
	w.bad.rng = rand.New(rand.NewPCG(w.seed, 3))
	pool := keyring.NewPoolID()
	w.nodes = racktest.OpenOn(w.T, pool, stripe.Geometry{K: 4, M: 2}, wholeNodes, wholeSpindles, func(n int) vfs.FS {
		fs := crashfs.New()
		fs.Order("index") // Pebble
		w.drives[n].Store(fs)
		return w.park(n, fs)
	})
	for _, p := range w.parks {
		p.Opened()
	}
	for n, s := range w.nodes.Switches {
		s.Alive = func() bool { return !w.drives[n].Load().Crashed() }
	}
	header, _ := keyring.CreatePool(root, pool)
	rows := w.nodes.Told()
	w.ok(FormatLayouts(w.Context(), w.nodes.Switches[0], header, w.nodes.Layouts, rows...))
	for i := range w.hosts {
		h := &wholeHost{run: w, name: fmt.Sprint("h", i), rng: rand.New(rand.NewPCG(w.seed, uint64(10+i)))}
		for n := range h.ways {
			h.ways[n] = &wholeWay{Switch: datanode.NewSwitch(w.nodes.Switches[n]), node: w.nodes.Switches[n], host: h}
		}
		w.hosts[i] = h
		h.open()
	}
}

// park returns a node's file system as its program sees it.
func (w *whole) park(n int, fs *crashfs.FS) vfs.FS {
	w.parks[n] = crashfs.Park(fs, ofIndex, ofIndex)
	if n == w.poor {
		return &poorDrives{w.parks[n], w}
	}
	return w.parks[n]
}

func ofIndex(path string) bool { return strings.Contains(path, "/index/") }

// use has a host's device of a disk.
func (w *whole) use(h *Host, name string, do func(d nbd.Device) error) error {
	if h == nil {
		return errors.New("the host is away")
	}
	e, release, err := Exports{h}.Open(w.Context(), name)
	if err != nil {
		return err
	}
	defer release()
	return do(e.Device)
}

// client does operations, one at a time, wherever a disk seems to be.
func (w *whole) client(rng *rand.Rand) {
	at := rng.IntN(wholeHosts)
	for w.left.Load() > 0 && !w.Failed() {
		d := w.disks[rng.IntN(len(w.disks))]
		err := w.use(w.hosts[at].host(), d.name, func(dev nbd.Device) error { return w.operate(d, dev, rng) })
		if err != nil {
			w.count("operations that failed")
			if rng.IntN(3) > 0 {
				at = rng.IntN(wholeHosts)
			}
			time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		} else {
			w.left.Add(-1)
			w.count("operations")
		}
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
	}
}

// operate does one operation.
func (w *whole) operate(d *wholeDisk, dev nbd.Device, rng *rand.Rand) error {
	first := rng.IntN(wholeSectors)
	n, off := 1+rng.IntN(min(24, wholeSectors-first)), int64(first*linear.SectorBytes)
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	fua := rng.IntN(4) == 0
	var err error
	switch k := rng.IntN(20); {
	case k < 9:
		err = d.Write(first, n, func(p []byte) error { return dev.WriteAt(ctx, p, off, fua) })
	case k < 11:
		err = d.Zero(first, n, func() error { return dev.Zero(ctx, off, int64(n)*linear.SectorBytes, rng.IntN(2) == 0, fua) })
	case k < 12:
		err = dev.Flush(ctx)
	default:
		err = d.Read(first, n, func(p []byte) error { return dev.ReadAt(ctx, p, off) })
	}
	if torn := (*linear.TornError)(nil); errors.As(err, &torn) {
		w.Error(err)
	}
	return err
}
