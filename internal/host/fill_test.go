package host_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/reclaim"
	"plinth/internal/reclaim/reclaimtest"
	"plinth/internal/stripe"
	"plinth/nbd"
)

var (
	fillMiB    = flag.Int("fill-mib", 32, "size of each of ten spindles")
	fillLive   = flag.Int("fill-live", 80, "percent of what is left after the reserves that lives")
	fillSkewed = flag.Bool("fill-skewed", false, "nine in ten writes go to one in ten chunks")
	fillTimes  = flag.Float64("fill-times", 0.6, "how often everything is written over")
	fillRate   = flag.Int("fill-rate", 0, "MiB/s that are written at most; 0: no limit")
	fillSnaps  = flag.Int("fill-snaps", 100, "snapshots while everything is written over once")
	fillMax    = flag.Float64("fill-max", 0, "the greatest amplification; 0: none")
	fillRatio  = flag.Float64("fill-ratio", 0, "the same, in times of the greedy cleaner's")
	fillRise   = flag.Float64("fill-rise", 0, "the greatest p99 of writes beside reclaim, in times of that without; 0: none")
)

const (
	sealedBytes = chunkBytes + 48 // of a chunk that does not compress
	snapsKept   = 4
)

// fill is a pool that is nearly full, and a greedy cleaner that sees the same
// writes.
type fill struct {
	*site
	lbas   int
	greedy *reclaimtest.Greedy
	rng    *rand.Rand
	buf    []byte
	snaps  []string
	taken  int
	begun  time.Time
	paid   int64 // bytes
	// cleaning: a segment is being emptied, or has been and waits to be freed.
	cleaning atomic.Bool
}

// newFill makes the pool, and the disk as large as it may be: what is kept for
// reclaim, what the agent reserves at most and what maps take are taken off before
// the share that lives is.
func newFill(t *testing.T) *fill {
	t.Helper()
	opts := siteOptions(t)
	opts.Node = shelf.Options{Spindles: 10, LogBytes: 16 << 20, SpindleBytes: int64(*fillMiB) << 20}
	opts.Geometry = stripe.Geometry{K: 8, M: 2}
	opts.Host = host.Options{
		DestageInterval: 200 * time.Millisecond, IdleTime: 2 * time.Second, BufferBytesMax: 4 << 20,
		CheckpointUpdates: 1 << 16,
	}
	f := &fill{site: openSite(t, opts), rng: rand.New(rand.NewPCG(1, 2)), buf: make([]byte, chunkBytes)}
	st, err := f.Node.Status(t.Context())
	f.ok(err)
	kept := st.SpareBytes - st.FreeBytes
	reserve := (opts.Host.BufferBytesMax+opts.Host.BufferBytesMax/8)*10/8 + 8*10*4*4096
	perSegment := (8 << 20) / sealedBytes
	// Maps take some 65 bytes for each of these, parity included.
	maps := st.SpareBytes / (sealedBytes * 10 / 8) * int64(*fillLive) / 100 * 65
	kept = max(kept, reclaim.Keep(maps, st.SpareBytes))
	usable := st.SpareBytes - kept - reserve - maps
	segments := int(usable / (10 * (1<<20 + 4096)))
	f.lbas = segments * perSegment * *fillLive / 100 * 100 / (100 + 100*snapsKept/max(*fillSnaps, 1))
	if *fillSnaps == 0 {
		f.lbas = segments * perSegment * *fillLive / 100
	}
	f.greedy = reclaimtest.NewGreedy(segments, perSegment, f.lbas, 2)
	t.Logf("%d MiB, %d kept for reclaim, %d reserved by the agent: %d segments, %d chunks live at %d %%",
		st.SpareBytes>>20, kept>>20, reserve>>20, segments, f.lbas, *fillLive)
	_, err = f.Host.CreateDisk(t.Context(), host.DiskSpec{Name: "vm", Bytes: int64(f.lbas) * chunkBytes})
	f.ok(err)
	return f
}

// write stores new content, and returns how long that took.
func (f *fill) write(d nbd.Device, lba int) time.Duration {
	f.Helper()
	scribble(f.rng.Uint64(), f.buf)
	if f.paid += chunkBytes; *fillRate > 0 {
		due := f.begun.Add(time.Duration(f.paid) * time.Second / time.Duration(*fillRate<<20))
		time.Sleep(time.Until(due))
	}
	began := time.Now()
	if err := d.WriteAt(f.Context(), f.buf, int64(lba)*chunkBytes, false); err != nil {
		f.Fatalf("a write of a pool that is not full: %v\n%s", err, f.describe())
	}
	took := time.Since(began)
	if !f.greedy.Write(lba) {
		f.Fatal("the greedy cleaner's pool is full")
	}
	return took
}

// describe says what is stored, for who wonders why nothing is free.
func (f *fill) describe() string {
	f.Helper()
	st, err := f.Node.Status(f.Context())
	f.ok(err)
	reply, err := f.Node.Usage(f.Context(), &datanode.UsageRequest{})
	f.ok(err)
	out := fmt.Sprintf("free %d, spare %d, reserved %d", st.FreeBytes, st.SpareBytes, st.ReservedBytes)
	for _, kind := range []datanode.Kind{datanode.KindChunks, datanode.KindObject} {
		for state := datanode.StateLive; state <= datanode.StateDeleting; state++ {
			var count, stored, live int64
			for _, u := range reply.Segments {
				if u.Kind == kind && u.State == state {
					count++
					stored += u.StoredBytes
					live += u.SealedBytes * int64(u.LiveSlots) / int64(max(u.Slots, 1)) * 10 / 8
				}
			}
			if count > 0 {
				out += fmt.Sprintf("\nkind %d, state %d: %d segments, %d bytes, %d of live ones", kind, state, count, stored, live)
			}
		}
	}
	return out
}

// watch keeps f.cleaning until done is closed.
func (f *fill) watch(done chan struct{}) {
	ticker := time.NewTicker(20 * time.Millisecond) // a cycle takes some times as long
	defer ticker.Stop()
	for {
		reply, err := f.Node.Usage(f.Context(), &datanode.UsageRequest{})
		if err != nil {
			f.Error(err)
			return
		}
		f.cleaning.Store(slices.ContainsFunc(reply.Segments, func(u datanode.SegmentUse) bool {
			return u.State == datanode.StateCondemned || u.State == datanode.StateForwarded
		}))
		select {
		case <-ticker.C:
		case <-done:
			return
		}
	}
}

// snapshot makes a snapshot and removes the oldest beyond those that are kept.
func (f *fill) snapshot() {
	f.Helper()
	name := fmt.Sprintf("s%d", f.taken)
	f.taken++
	_, err := f.Host.CreateSnapshots(f.Context(), host.SnapshotSpec{Disks: []string{"vm"}, Name: name})
	f.ok(err)
	f.greedy.Snapshot()
	if f.snaps = append(f.snaps, name); len(f.snaps) > snapsKept {
		f.ok(f.Host.RemoveSnapshot(f.Context(), "vm", f.snaps[0], false))
		f.snaps = f.snaps[1:]
		f.greedy.Drop()
	}
}

// stored returns how many chunks the user's writes and reclaim have stored.
func (f *fill) stored() (user, moved int64) {
	f.Helper()
	info, err := f.Host.Disk("vm")
	f.ok(err)
	return info.Stats.DedupeMisses, f.Host.Reclaimed().MovedChunks
}

// TestSimFill fills a pool nearly and writes over it at random, while snapshots
// come and go: no write fails for lack of space. With -fill-max and
// -fill-ratio what reclaim writes is bounded; see the recipe fill.
func TestSimFill(t *testing.T) {
	f := newFill(t)
	f.ok(f.device("vm", func(d nbd.Device) error {
		for lba := range f.lbas {
			f.write(d, lba)
		}
		f.ok(f.Host.Quiesce(t.Context()))
		total := int(*fillTimes * float64(f.lbas))
		every := 0
		if *fillSnaps > 0 {
			every = max(f.lbas / *fillSnaps, 1)
		}
		var user, moved int64
		var calm, busy []time.Duration // without a cycle under way, and beside one
		done := make(chan struct{})
		var watching sync.WaitGroup
		watching.Go(func() { f.watch(done) })
		f.begun, f.paid = time.Now(), 0
		for i := range total {
			if i == total/2 {
				user, moved = f.stored()
				f.greedy.Reset()
			}
			if every > 0 && i%every == 0 {
				f.snapshot()
			}
			lba := f.rng.IntN(f.lbas)
			if hot := f.lbas / 10; *fillSkewed && f.rng.IntN(10) > 0 {
				lba = f.rng.IntN(hot)
			} else if *fillSkewed {
				lba = hot + f.rng.IntN(f.lbas-hot)
			}
			if took := f.write(d, lba); f.cleaning.Load() {
				busy = append(busy, took)
			} else {
				calm = append(calm, took)
			}
		}
		took := time.Since(f.begun)
		close(done)
		watching.Wait()
		nowUser, nowMoved := f.stored()
		amplification := float64(nowUser-user+nowMoved-moved) / float64(nowUser-user)
		t.Logf("%d writes in %v, %.1f MiB/s, %d cycles", total, took.Round(time.Second),
			float64(total)*chunkBytes/(1<<20)/took.Seconds(), f.Host.Reclaimed().Cycles)
		t.Logf("amplification %.2f, greedy %.2f: %.2f times", amplification, f.greedy.Amplification(), amplification/f.greedy.Amplification())
		t.Logf("writes without reclaim: %s; beside it: %s", quantiles(calm), quantiles(busy))
		if *fillRise > 0 {
			if len(calm) == 0 || len(busy) == 0 {
				t.Fatalf("%d writes without reclaim, %d beside it: both are wanted", len(calm), len(busy))
			}
			if rise := float64(quantile(busy, 0.99)) / float64(quantile(calm, 0.99)); rise > *fillRise {
				t.Errorf("beside reclaim p99 is %.2f times that without, want at most %.2f", rise, *fillRise)
			}
		}
		for _, most := range []float64{*fillMax, *fillRatio * f.greedy.Amplification()} {
			if most > 0 && amplification > most {
				t.Errorf("amplification %.2f, want at most %.2f", amplification, most)
			}
		}
		return nil
	}))
	f.full()
	f.strict()
}

// quantiles sorts d.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	slices.Sort(d)
	return fmt.Sprintf("%d, p50 %v, p99 %v, p99.9 %v, max %v", len(d), quantile(d, 0.5), quantile(d, 0.99), quantile(d, 0.999), quantile(d, 1))
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}
