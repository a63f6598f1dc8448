package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

var (
	costChunks    = flag.Int("cost-chunks", 2_000, "TestSimSnapshotCost: mapped chunks of each disk")
	costTiB       = flag.Float64("cost-tib", 0.01, "TestSimSnapshotCost: size of each disk")
	costSnapshots = flag.Int("cost-snapshots", 40, "TestSimSnapshotCost: snapshots that one of the disks has")
	costMarks     = flag.Int("cost-marks", 20, "TestSimSnapshotCost: snapshots that are timed")
	costReads     = flag.Int("cost-reads", 100, "TestSimSnapshotCost: reads that are timed")
	costFiles     = flag.Bool("cost-files", false, "TestSimSnapshotCost: log, spindles and index in files, not in memory")
	costMaps      = flag.String("cost-maps", "", "TestSimSnapshotCost: directory of the maps, perhaps in memory; empty: with the other files")
	costStrict    = flag.Bool("cost-strict", false, "TestSimSnapshotCost: fail where a figure is out of its bounds")
)

// outside counts the time that is not the server's own: appends and syncs of the
// log, and the registry.
type outside struct {
	datanode.Node
	spent atomic.Int64
}

func (o *outside) count(began time.Time) { o.spent.Add(int64(time.Since(began))) }

func (o *outside) Append(ctx context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	defer o.count(time.Now())
	return o.Node.Append(ctx, r)
}

func (o *outside) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	defer o.count(time.Now())
	return o.Node.Sync(ctx, r)
}

func (o *outside) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	defer o.count(time.Now())
	return o.Node.RegistryCommit(ctx, r)
}

func (o *outside) Fence(ctx context.Context, r *datanode.FenceRequest) (*datanode.FenceReply, error) {
	defer o.count(time.Now())
	return o.Node.Fence(ctx, r)
}

// costs is two disks that differ in one thing only: the second kept a snapshot
// before each thousandth of it was overwritten.
type costs struct {
	*house
	node  *outside
	rng   *rand.Rand
	pool  *Pool
	plain *Disk
	snaps *Disk
	refs  []blockmap.Entry // real chunks, that all entries are
	last  id.Snapshot
}

// TestSimSnapshotCost measures what snapshots cost where a disk has none and where
// it has many: taking one, the first write after one, reads, a clone. The maps
// are made without the disks' logs; what they name is there to be read.
func TestSimSnapshotCost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &costs{rng: rand.New(rand.NewPCG(seed, 3))}
	// A version takes up to 36 bytes in a table, half as much again in a stripe, a
	// quarter of it on each spindle; there is room for three copies.
	spindle := int64(64<<20) + int64(*costChunks)*int64(1+*costSnapshots/1000)*50
	var files vfs.FS = crashfs.New()
	dir := "/node"
	if *costFiles {
		files, dir = vfs.Default, t.TempDir()
	}
	c.house = newHouseOf(t, dir, shelf.Options{FS: files, SpindleBytes: spindle / (1 << 20) << 20}, func(n datanode.Node) datanode.Node {
		c.node = &outside{Node: n}
		return c.node
	})
	c.pool = c.session()
	cache := blockmap.NewCache(256<<20, 10_000)
	t.Cleanup(cache.Close)
	c.plain, c.snaps = c.openCost(1, cache), c.openCost(2, cache)
	began := time.Now()
	c.make(c.plain, false)
	c.make(c.snaps, true)
	t.Logf("%d chunks of %.3g TiB, %d snapshots with %d overwrites each, made in %.0f s", *costChunks, *costTiB, *costSnapshots, *costChunks/1000+1, time.Since(began).Seconds())
	for n := range 2 { // let Pebble come to rest, and what is read often be in memory
		for _, d := range []*Disk{c.plain, c.snaps} {
			c.ok(d.Checkpoint(t.Context()))
			c.ok(d.m.Scan(t.Context(), func(id.LBA, blockmap.Entry) error { return nil }))
		}
		t.Logf("checkpoint and scan %d after %.0f s: %+v", n+1, time.Since(began).Seconds(), c.snaps.m.Stats())
	}
	c.reads()
	c.firstWrites()
	c.marks()
	c.clones(cache)
}

func (c *costs) openCost(n id.Disk, cache *blockmap.Cache) *Disk {
	c.epochs[n]++
	dir := c.TempDir()
	if *costMaps != "" {
		var err error
		dir, err = os.MkdirTemp(*costMaps, "map")
		c.ok(err)
		c.Cleanup(func() { os.RemoveAll(dir) })
	}
	d, err := Open(c.Context(), c.pool, Config{
		ID: n, Name: fmt.Sprint("vm", n), Bytes: int64(*costTiB*(1<<40)) &^ 4095, Chunk: chunk.SizeDefault, Suite: chunk.AES256GCM,
		Epoch: c.epochs[n], MACKey: c.mac, Map: blockmap.Options{FS: vfs.Default, Dir: dir, Cache: cache},
	})
	c.ok(err)
	c.Cleanup(func() { d.Close() })
	return d
}

// lba spreads the mapped chunks over the disk in runs of 1 MiB.
func (c *costs) lba(i int) id.LBA {
	const run = 256
	stride := int64(*costTiB*(1<<28)) / int64(*costChunks/run+1)
	return id.LBA(int64(i/run)*max(stride, run) + int64(i%run))
}

// costRow is a version in a map.
type costRow struct {
	LBA   id.LBA
	Gen   id.Gen
	Entry blockmap.Entry
}

// loadRows puts versions into a map at once, in the order of its keys. Nil: this
// build (without -tags synthetic) has no way but Apply.
var loadRows func(m *blockmap.Map, rows iter.Seq[costRow]) error

const (
	// overwritten is the share of the chunks, one in so many, that is overwritten
	// before each snapshot; and one chunk that is always the same.
	overwritten = 1000
	// appliedShare of the snapshots, one in so many, come by Apply where the others
	// are loaded: so there are newer tables above older ones, as in a map in use.
	appliedShare = 50
	// warmReadsMax bounds the reads that come before those that are timed.
	warmReadsMax = 500_000
)

// make fills a map: everything once, then a thousandth at random and one chunk that
// is always the same, again and again. Where versions are loaded, those that no
// snapshot sees are left out.
func (c *costs) make(d *Disk, keep bool) {
	c.Helper()
	const real = 512
	p := make([]byte, 4096)
	for i := range real {
		for k := 0; k < len(p); k += 8 { // what compresses well takes long to open
			binary.LittleEndian.PutUint64(p[k:], c.rng.Uint64())
		}
		c.ok(d.WriteAt(c.Context(), p, int64(c.lba(i))*4096, false))
	}
	c.ok(c.round(d))
	c.refs = make([]blockmap.Entry, real)
	for i := range real {
		c.ok(d.m.LookupRange(c.lba(i), c.refs[i:i+1]))
	}
	state := d.state.marshal()
	var updates []blockmap.Update
	apply := func(mark blockmap.Mark) id.Gen {
		gen := d.m.NextGen(false)
		c.ok(d.m.Apply(&blockmap.Batch{Gen: gen, Updates: updates, Mark: mark}, state))
		updates = updates[:0]
		return gen
	}
	mark := func(s int) (m blockmap.Mark) {
		if keep {
			m = blockmap.Mark{Snapshot: id.Snapshot(s + 1), Bytes: d.Size()}
		}
		return m
	}
	put := func(i int) {
		updates = append(updates, blockmap.Update{LBA: c.lba(i), Entry: c.refs[c.rng.IntN(real)]})
	}
	loaded := 0
	if loadRows != nil {
		gens := []id.Gen{d.m.Gen()}
		if loaded = *costSnapshots - *costSnapshots/appliedShare; keep {
			gens = gens[:0]
			for s := range loaded {
				gens = append(gens, apply(mark(s)))
			}
		}
		c.ok(loadRows(d.m, c.versions(gens)))
	} else {
		for i := range *costChunks {
			if put(i); len(updates) == blockmap.UpdatesMax/4 {
				apply(blockmap.Mark{})
			}
		}
		apply(blockmap.Mark{})
	}
	for s := loaded; s < *costSnapshots; s++ {
		put(0)
		for range *costChunks / overwritten {
			put(c.rng.IntN(*costChunks))
		}
		apply(mark(s))
	}
	c.last = max(c.last, id.Snapshot(*costSnapshots))
}

// versions yields all chunks in the first generation, and for each later one the
// first chunk and others at random, in the order of keys.
func (c *costs) versions(gens []id.Gen) iter.Seq[costRow] {
	return func(yield func(costRow) bool) {
		for i := range *costChunks {
			for g := len(gens) - 1; g >= 0; g-- {
				if i > 0 { // the gaps between events that are independent
					g = max(0, g-int(math.Log(1-c.rng.Float64())/math.Log(1-1./overwritten)))
				}
				if !yield(costRow{c.lba(i), gens[g], c.refs[c.rng.IntN(len(c.refs))]}) {
					return
				}
			}
		}
	}
}

// times collects durations.
type times []time.Duration

func (x times) at(share float64) time.Duration {
	slices.Sort(x)
	return x[int(float64(len(x)-1)*share)]
}

func (x times) mean() time.Duration {
	var sum time.Duration
	for _, d := range x {
		sum += d
	}
	return sum / time.Duration(len(x))
}

func (x times) String() string {
	return fmt.Sprintf("p50 %v, p99 %v, mean %v", x.at(0.5), x.at(0.99), x.mean())
}

// bound fails, if that was asked for, where a figure is out of bounds.
func (c *costs) bound(ok bool, format string, args ...any) {
	c.Helper()
	if !ok && *costStrict {
		c.Errorf(format, args...)
	}
}

// marks times MarkAll, less what the log takes. A write comes before each, and
// rounds are not counted.
func (c *costs) marks() {
	p := make([]byte, 4096)
	var own, all [2]times
	for i := range *costMarks {
		if i%128 == 127 {
			c.ok(c.plain.Checkpoint(c.Context()))
			c.ok(c.snaps.Checkpoint(c.Context()))
		}
		for j, d := range []*Disk{c.plain, c.snaps} {
			c.rng64(p)
			c.ok(d.WriteAt(c.Context(), p, int64(c.lba(c.rng.IntN(*costChunks)))*4096, false))
			c.last++
			before, began := c.node.spent.Load(), time.Now()
			_, err := MarkAll(c.Context(), []MarkRequest{{d, c.last}})
			took := time.Since(began)
			c.ok(err)
			all[j] = append(all[j], took)
			own[j] = append(own[j], took-time.Duration(c.node.spent.Load()-before))
			d.Settled(c.last)
			if i%16 == 15 {
				c.ok(c.round(d))
			}
		}
	}
	c.ok(c.round(c.plain))
	c.ok(c.round(c.snaps))
	c.Logf("snapshot, the server's own time: without others %v; with %d: %v", own[0], *costSnapshots, own[1])
	c.Logf("snapshot, log included: without others %v; with %d: %v", all[0], *costSnapshots, all[1])
	c.bound(own[0].at(0.99) <= time.Millisecond && own[1].at(0.99) <= time.Millisecond, "a snapshot takes more than 1 ms")
}

func (c *costs) rng64(p []byte) {
	for i := 0; i < 64; i += 8 {
		p[i] = byte(c.rng.Uint32())
	}
}

// firstWrites times the first write to a chunk after a snapshot against the next
// write to the same, and the rounds of both.
func (c *costs) firstWrites() {
	const batch = 64
	p := make([]byte, 4096)
	for _, d := range []*Disk{c.plain, c.snaps} {
		var acks, rounds [2]times
		for i := range max(*costMarks/5, 4) {
			if i%32 == 31 { // the results fill the log
				c.ok(c.plain.Checkpoint(c.Context()))
				c.ok(c.snaps.Checkpoint(c.Context()))
			}
			c.last++
			_, err := MarkAll(c.Context(), []MarkRequest{{d, c.last}})
			c.ok(err)
			d.Settled(c.last)
			c.ok(c.round(d))
			for again := range 2 {
				for i := range batch {
					c.rng64(p)
					began := time.Now()
					c.ok(d.WriteAt(c.Context(), p, int64(c.lba(i*(*costChunks/batch)))*4096, false))
					acks[again] = append(acks[again], time.Since(began))
				}
				began := time.Now()
				c.ok(c.round(d))
				rounds[again] = append(rounds[again], time.Since(began))
			}
		}
		ack := float64(acks[0].at(0.5)) / float64(acks[1].at(0.5))
		round := float64(rounds[0].at(0.5)) / float64(rounds[1].at(0.5))
		c.Logf("disk %s: first write after a snapshot %v, next %v: ratio %.2f; rounds of %d: ratio %.2f (%v)",
			d.cfg.Name, acks[0], acks[1], ack, batch, round, rounds[1].at(0.5))
		c.bound(ack > 0.9 && ack < 1.1, "the first write after a snapshot costs %.2f of another", ack)
	}
}

// warm reads chunks of both disks in turns until what maps keep in memory is what
// reads have made it, and as much for the one as for the other: a scan leaves the
// tables of the disk that was scanned last.
func (c *costs) warm() {
	p := make([]byte, 4096)
	for range min(4**costChunks, warmReadsMax) {
		at := int64(c.lba(c.rng.IntN(*costChunks))) * 4096
		c.ok(c.plain.ReadAt(c.Context(), p, at))
		c.ok(c.snaps.ReadAt(c.Context(), p, at))
	}
}

// driveBytes returns what the system has read from drives for this process, 0 if it
// does not say.
func driveBytes() (n int64) {
	content, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(content, []byte("\nread_bytes: "))
	_, _ = fmt.Fscan(bytes.NewReader(after), &n)
	return n
}

// reads compares reads of chunks and of runs, of the disk and of a snapshot.
func (c *costs) reads() {
	for i, run := range []int{1, 1, 256} {
		var x [2]times
		var drive [2]int64
		if i == 1 {
			c.warm()
		}
		p := make([]byte, run*4096)
		for range *costReads {
			at := int64(c.lba(c.rng.IntN(*costChunks/256)*256)) * 4096
			if run == 1 {
				at += int64(c.rng.IntN(256)) * 4096
			}
			first := c.rng.IntN(2) // the second finds the chunk in the processor's cache
			for k := range 2 {
				j := k ^ first
				before, began := driveBytes(), time.Now()
				c.ok([]*Disk{c.plain, c.snaps}[j].ReadAt(c.Context(), p, at))
				x[j] = append(x[j], time.Since(began))
				drive[j] += driveBytes() - before
			}
		}
		ratio := float64(x[0].at(0.5)) / float64(x[1].at(0.5))
		c.Logf("reads of %d KiB%s: without snapshots %v; with %d: %v: speed %.2f; the drive read %d and %d KiB for them",
			run*4, []string{" right after a scan", "", ""}[i], x[0], *costSnapshots, x[1], ratio, drive[0]>>10, drive[1]>>10)
		c.bound(i == 0 || ratio >= 0.8, "reads of %d KiB have %.2f of the speed", run*4, ratio)
	}
	image, err := c.snaps.At(c.Context(), id.Snapshot(1+*costSnapshots/2))
	c.ok(err)
	var x times
	p := make([]byte, 4096)
	for range *costReads {
		at := int64(c.lba(c.rng.IntN(*costChunks))) * 4096
		began := time.Now()
		c.ok(image.ReadAt(c.Context(), p, at))
		x = append(x, time.Since(began))
	}
	c.Logf("reads of 4 KiB of a snapshot in the middle: %v", x)
}

// clones times a clone of a snapshot that is in a checkpoint.
func (c *costs) clones(cache *blockmap.Cache) {
	c.ok(c.snaps.Checkpoint(c.Context()))
	var own, all times
	for n := id.Disk(100); n < 110; n++ {
		before, began := c.node.spent.Load(), time.Now()
		c.snaps.HoldLists()
		value, ok, err := c.snaps.CloneRecord(c.Context(), c.last)
		c.ok(err)
		if !ok {
			c.Fatal("the snapshot is in no checkpoint")
		}
		_, err = c.node.RegistryCommit(c.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: CheckpointKey(n), Value: value}}})
		c.ok(err)
		d := c.openCost(n, cache)
		took := time.Since(began)
		all = append(all, took)
		own = append(own, took-time.Duration(c.node.spent.Load()-before))
		p := make([]byte, 4096)
		c.ok(d.ReadAt(c.Context(), p, int64(c.lba(1))*4096))
		c.ok(d.Close())
	}
	c.Logf("clone of a snapshot in a checkpoint, own time: %v; registry and log included: %v", own, all)
	c.bound(own.at(0.5) <= 10*time.Millisecond, "a clone takes more than 10 ms")
}
