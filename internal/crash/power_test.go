package crash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode/shelf"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/stripe"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

const (
	powerPoints = 2000
	// powerChains run at a time, each on a file system of its own.
	powerChains = 2
	// powerLives is after how many lives a chain begins with a new pool.
	powerLives         = 50
	powerRegions       = 4
	powerRegionSectors = 256
	powerDiskBytes     = powerRegions * powerRegionSectors * sectorBytes
	// powerBytesMax bounds what is written until a crash, after or in a start.
	powerBytesMax      = 4 << 20
	powerStartBytesMax = 256 << 10
	powerTimeMax       = 30 * time.Second
	powerStallMax      = 15 * time.Second // a nearly full pool is emptied for a write
	closeTimeMax       = time.Minute
)

// powerTally counts over all chains.
type powerTally struct {
	points, inStart, kills, ops, destages, trims, attaches, verifies, full atomic.Int64
	snapshots, snapshotsRead                                               atomic.Int64
}

// TestSimPowerLoss runs data node and host on a file system in memory that loses
// power, or only the process, at any write, sync or change of a name: while it
// serves 1 to 4 writers, destages, makes checkpoints, scans; or while it starts.
// PLINTH_CRASH_POINTS says how many losses of power.
func TestSimPowerLoss(t *testing.T) {
	want := int64(powerPoints)
	if text := os.Getenv("PLINTH_CRASH_POINTS"); text != "" {
		var err error
		if want, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	if text := os.Getenv("PLINTH_CRASH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	var tally powerTally
	var chains sync.WaitGroup
	for n := range uint64(powerChains) {
		dir := t.TempDir()
		chains.Go(func() {
			for pool := uint64(0); tally.points.Load() < want && !t.Failed(); pool++ {
				c := &chain{
					t: t, rng: rand.New(rand.NewPCG(seed, n<<32|pool)), tally: &tally, want: want,
					key: filepath.Join(dir, fmt.Sprint(pool)), name: fmt.Sprintf("seed %d, chain %d, pool %d", seed, n, pool),
				}
				c.run()
			}
		})
	}
	chains.Wait()
	t.Logf("%d losses of power, of these %d while starting; %d kills; %d operations, %d destage commits, %d log trims, %d attaches from a checkpoint, %d verifies, %d writes found no space; %d snapshots, read %d times",
		tally.points.Load(), tally.inStart.Load(), tally.kills.Load(), tally.ops.Load(), tally.destages.Load(),
		tally.trims.Load(), tally.attaches.Load(), tally.verifies.Load(), tally.full.Load(),
		tally.snapshots.Load(), tally.snapshotsRead.Load())
	if t.Failed() {
		return
	}
	if n := tally.points.Load(); n < want || tally.inStart.Load() < n/20 || tally.destages.Load() < n/4 || tally.attaches.Load() < n/4 || tally.snapshotsRead.Load() < n/4 {
		t.Error("too few to mean anything")
	}
}

// chain is one pool that crashes again and again.
type chain struct {
	t     *testing.T
	rng   *rand.Rand
	tally *powerTally
	want  int64
	key   string // file of the root key
	name  string

	fs      *crashfs.FS
	history *history
	seq     atomic.Uint64
	lossy   bool // power was lost since settle has looked
	logged  tail

	snapshots     []*keptSnapshot
	snapshotNames int
}

func (c *chain) run() {
	c.fs, c.history = crashfs.New(), newHistory(powerRegions, powerRegionSectors)
	c.fs.Order("index") // Pebble
	for life := range powerLives {
		if c.tally.points.Load() >= c.want || c.t.Failed() {
			return
		}
		if err := c.life(); err != nil {
			c.t.Errorf("logged before:\n%s\n%s, life %d: %v", &c.logged, c.name, life, err)
			return
		}
	}
}

func (c *chain) options(fs vfs.FS) standalone.Options {
	return standalone.Options{
		Dir: "pool", FS: fs, Keys: host.RootSource{File: c.key}, Geometry: stripe.Geometry{K: 2, M: 1},
		Node: shelf.Options{Spindles: 3, LogBytes: 9 << 20, SpindleBytes: 16 << 20, IndexCacheBytes: 1 << 20},
		Host: host.Options{
			DestageInterval: time.Duration(1+c.rng.IntN(8)) * time.Millisecond, IdleTime: 20 * time.Millisecond,
			CheckpointUpdates: int64(1 + c.rng.IntN(300)), CacheBytes: 1 << 20,
			RAMCacheBytes: -1, // reads find out what is lost below it
		},
		Logger: slog.New(slog.NewTextHandler(&c.logged, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// life opens the pool, checks it, loads it, and crashes it.
func (c *chain) life() error {
	starting := c.rng.IntN(4) == 0
	if starting {
		c.fs.Limit(c.rng.Int64N(powerStartBytesMax))
	}
	if c.rng.IntN(10) == 0 && !starting {
		if err := c.fs.RemoveAll("pool/host"); err != nil {
			return err
		}
	}
	site, dev, err := c.open()
	if err == nil {
		err = c.check(dev)
	}
	if err == nil {
		err = c.checkSnapshots(site.Host)
	}
	if err == nil && !starting && c.rng.IntN(12) == 0 {
		err = c.verify(site)
	}
	if err != nil && !c.fs.Crashed() {
		return errors.Join(err, c.close(site))
	}
	wait := func() error { return nil }
	if err == nil {
		if !starting {
			c.fs.Limit(c.rng.Int64N(powerBytesMax))
		}
		wait = c.load(dev, site.Host)
	} else {
		c.tally.inStart.Add(1)
	}
	c.note(dev)
	old := c.fs
	if c.rng.IntN(8) == 0 {
		c.fs = c.fs.Kill()
		c.tally.kills.Add(1)
	} else {
		c.lossy = true
		c.fs = c.fs.Crash(c.rng, []int{0, 100, c.rng.IntN(101)}[c.rng.IntN(3)])
		c.tally.points.Add(1)
	}
	// Writers that wait for what cannot come any more end with the site.
	err = errors.Join(c.close(site), wait())
	old.Drop()
	return err
}

// ofPebble tells the files of Pebble from those of log and spindles, and ofIndex
// those of the data node's.
func ofPebble(path string) bool { return ofIndex(path) || strings.Contains(path, "/host/") }
func ofIndex(path string) bool  { return strings.Contains(path, "/index/") }

// errParked says that an opening has met the crash and stopped for good.
var errParked = errors.New("the opening has stopped")

// open opens the pool and its disk, making what is not there yet.
func (c *chain) open() (*standalone.Site, nbd.Device, error) {
	type result struct {
		site *standalone.Site
		dev  nbd.Device
		err  error
	}
	fs, done := crashfs.Park(c.fs, ofPebble, ofIndex), make(chan result, 1)
	opts := c.options(fs)
	go func() {
		var r result
		r.site, r.dev, r.err = openSite(opts)
		fs.Opened()
		done <- r
	}()
	select {
	case r := <-done:
		return r.site, r.dev, r.err
	case <-fs.Parked():
		return nil, nil, errParked
	}
}

func openSite(opts standalone.Options) (*standalone.Site, nbd.Device, error) {
	ctx := context.Background()
	site, err := standalone.Open(ctx, opts)
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	e, _, err := host.Exports{Host: site.Host}.Open(ctx, "vm")
	if errors.Is(err, nbd.ErrUnknownExport) {
		if _, err = site.Host.CreateDisk(ctx, host.DiskSpec{Name: "vm", Bytes: powerDiskBytes}); err == nil {
			e, _, err = host.Exports{Host: site.Host}.Open(ctx, "vm")
		}
	}
	if err != nil {
		return site, nil, fmt.Errorf("open the disk: %w", err)
	}
	return site, e.Device, nil
}

// close ends a site whose file system is gone; what it says does not matter, but
// that it ends does.
func (c *chain) close(site *standalone.Site) error {
	if site == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = site.Close()
	}()
	select {
	case <-done:
		return nil
	case <-time.After(closeTimeMax):
		return fmt.Errorf("close hangs for %v after a crash:\n%s", closeTimeMax, stacks())
	}
}

// check reads the whole disk and compares it with its history.
func (c *chain) check(dev nbd.Device) error {
	p := make([]byte, powerDiskBytes)
	if err := dev.ReadAt(context.Background(), p, 0); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	found, err := sectorsOf(p)
	if err != nil {
		return err
	}
	err = c.history.settle(found, !c.lossy)
	c.lossy = c.lossy && err != nil
	return err
}

// sectorsOf returns the writes that a whole disk shows, by region.
func sectorsOf(p []byte) ([][]uint64, error) {
	found := make([][]uint64, powerRegions)
	for i := range found {
		for j := range int64(powerRegionSectors) {
			sector := int64(i)*powerRegionSectors + j
			seq, err := parseSector(p[sector*sectorBytes:(sector+1)*sectorBytes], sector)
			if err != nil {
				return nil, fmt.Errorf("sector %d: %w", sector, err)
			}
			found[i] = append(found[i], seq)
		}
	}
	return found, nil
}

func (c *chain) verify(site *standalone.Site) error {
	c.tally.verifies.Add(1)
	if err := site.Host.Sweep(context.Background()); err != nil {
		return err
	}
	r, err := site.Host.Verify(context.Background(), host.VerifyOptions{})
	if err != nil {
		return err
	}
	if len(r.Findings) > 0 {
		return fmt.Errorf("verify: %+v", r.Findings)
	}
	return nil
}

func (c *chain) note(dev nbd.Device) {
	d, ok := dev.(interface{ Stats() disk.Stats })
	if !ok {
		return
	}
	s := d.Stats()
	c.tally.destages.Add(s.Destages)
	c.tally.trims.Add(s.LogTrims)
	if s.FromCheckpoint {
		c.tally.attaches.Add(1)
	}
}
