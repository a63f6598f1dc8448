package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/vfsx/crashfs"
	"plinth/nbd"
)

// load writes until the file system has crashed, or for a moment. It returns
// then; wait returns when the writers have ended, which they do when the site
// closes, with what one of them said before the crash.
func (c *chain) load(dev nbd.Device, h *host.Host) (wait func() error) {
	ctx, cancel := context.WithTimeout(context.Background(), powerTimeMax)
	snapshot := c.besides(ctx, h)
	writers := 1 + c.rng.IntN(powerRegions)
	errs := make([]error, writers)
	var running sync.WaitGroup
	for i, region := range c.rng.Perm(powerRegions)[:writers] {
		w := &writer{chain: c, fs: c.fs, dev: dev, region: region, rng: rand.New(rand.NewPCG(c.rng.Uint64(), 0))}
		running.Go(func() {
			for ctx.Err() == nil {
				err := w.step(ctx)
				c.tally.ops.Add(1)
				if err == nil {
					continue
				}
				if !w.fs.Crashed() && ctx.Err() == nil {
					errs[i] = err
				}
				return
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		running.Wait()
	}()
	var stall error
	last, since := c.seq.Load(), time.Now()
	for alive := true; alive && ctx.Err() == nil && !c.fs.Crashed(); {
		select {
		case <-ended:
			alive = false
		case <-time.After(time.Millisecond):
		}
		if now := c.seq.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > powerStallMax && !c.fs.Crashed() {
			stall = fmt.Errorf("no write has begun for %v, and nothing has crashed:\n%s", powerStallMax, stacks())
			break
		}
	}
	return func() error {
		cancel()
		<-ended
		return errors.Join(append(errs, stall, <-snapshot)...)
	}
}

// writer writes to one region.
type writer struct {
	*chain
	fs     *crashfs.FS // that of this life
	dev    nbd.Device
	region int
	rng    *rand.Rand // its own: chain's is for the one who runs the chain
}

func (w *writer) step(ctx context.Context) error {
	n := 1 + w.rng.Int64N(24)
	if w.rng.IntN(16) == 0 {
		n = 1 + w.rng.Int64N(powerRegionSectors)
	}
	first := w.rng.Int64N(powerRegionSectors - n + 1)
	if w.rng.IntN(2) == 0 {
		first, n = first/chunkSectors*chunkSectors, (n+chunkSectors-1)/chunkSectors*chunkSectors
		n = min(n, powerRegionSectors-first)
	}
	fua := w.rng.IntN(12) == 0
	off := (int64(w.region)*powerRegionSectors + first) * sectorBytes
	switch k := w.rng.IntN(16); {
	case k == 0:
		done := w.history.flush()
		err := w.dev.Flush(ctx)
		if err == nil {
			done()
		}
		return err
	case k == 1:
		return w.read(ctx, first, n)
	case k == 2:
		return w.change([]effect{{first: first, n: n}}, fua, func() error {
			return w.dev.Zero(ctx, off, n*sectorBytes, true, fua)
		})
	case k == 3:
		from, end := (first+chunkSectors-1)/chunkSectors*chunkSectors, (first+n)/chunkSectors*chunkSectors
		var records []effect
		if from < end {
			records = []effect{{first: from, n: end - from}}
		}
		return w.change(records, fua, func() error { return w.dev.Trim(ctx, off, n*sectorBytes, fua) })
	}
	seq := w.seq.Add(1)
	p := make([]byte, n*sectorBytes)
	fillSectors(p, off/sectorBytes, seq)
	return w.change(records(first, n, seq), fua, func() error { return w.dev.WriteAt(ctx, p, off, fua) })
}

// records returns the records of a write: a part at each end, and between them a
// run of whole chunks, which is short enough for one.
func records(first, n int64, seq uint64) (out []effect) {
	for n > 0 {
		k := min(n, chunkSectors-first%chunkSectors)
		if k == chunkSectors {
			k = n / chunkSectors * chunkSectors
		}
		out = append(out, effect{first: first, n: k, seq: seq})
		first, n = first+k, n-k
	}
	return out
}

func (w *writer) change(records []effect, fua bool, call func() error) error {
	from := w.history.begin(w.region, records)
	err := call()
	switch {
	case err == nil:
		w.history.end(w.region, from, fua)
	case errors.Is(err, disk.ErrNoSpace) && !w.fs.Crashed(): // then nothing of it is in the log
		w.history.drop(w.region, from)
		w.tally.full.Add(1)
		return nil
	}
	return err
}

func (w *writer) read(ctx context.Context, first, n int64) error {
	p := make([]byte, n*sectorBytes)
	start := int64(w.region)*powerRegionSectors + first
	if err := w.dev.ReadAt(ctx, p, start*sectorBytes); err != nil {
		return err
	}
	now := w.history.regions[w.region].now // only this writer changes it
	for i := range n {
		seq, err := parseSector(p[i*sectorBytes:(i+1)*sectorBytes], start+i)
		if err == nil && seq != now[first+i] {
			err = fmt.Errorf("it is of write %d, not %d", seq, now[first+i])
		}
		if err != nil {
			return fmt.Errorf("while it runs, sector %d: %w", start+i, err)
		}
	}
	return nil
}
