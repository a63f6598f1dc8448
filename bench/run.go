package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Target is a block device under test. All methods may be called concurrently;
// offsets and lengths are bytes.
type Target interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Flush returns when every write completed before it is on stable media.
	Flush(ctx context.Context) error
}

// ErrMismatch is wrapped when Verify has read other bytes than were written.
var ErrMismatch = errors.New("read other bytes than were written")

// Run does cfg's operations and returns what they took. Job j uses
// targets[j mod n], of which there is one at least: several are several
// connections to one device. It blocks for the run time, what Fill and Verify
// take beside it, and a flush at the end. Errors: of the configuration, of the
// first operation that fails, ErrMismatch, the context's.
func Run(ctx context.Context, cfg Config, targets ...Target) (*Result, error) {
	if len(targets) == 0 {
		return nil, errors.New("bench: no target")
	}
	cfg, err := cfg.withDefaults(targets[0].Size())
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	r := &run{cfg: cfg, targets: targets, content: content{cfg.Seed, cfg.Compressible, cfg.Dedupe}}
	if cfg.Verify {
		r.versions = make([]atomic.Uint32, cfg.Bytes/int64(cfg.BlockBytes))
	}
	if cfg.Fill {
		if err := r.fill(ctx); err != nil {
			return nil, err
		}
	}
	res, err := r.measure(ctx)
	if err == nil && cfg.Verify {
		res.VerifiedBlocks, err = r.verify(ctx)
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// run is one Run.
type run struct {
	cfg     Config
	targets []Target
	content content
	// versions says per block how often it was written; busy while a worker has
	// the block. nil without Verify.
	versions []atomic.Uint32
	streams  uint64 // of random numbers, handed out: no two workers make the same content
}

const busy = 1 << 31

// job is a stream of operations on blocks [first, first+blocks).
type job struct {
	*run
	target Target
	first  int64
	blocks int64
	end    time.Time // zero: after as many operations as blocks
	next   atomic.Int64
	writes atomic.Int64
}

// worker has one operation of a job in flight.
type worker struct {
	*job
	rng          *rand.Rand
	buf, want    []byte // of a block; want with Verify
	reads, sends histogram
	flushes      histogram
}

func (r *run) workers(end time.Time) []*worker {
	var all []*worker
	for j := range r.cfg.Jobs {
		share := r.cfg.share()
		jb := &job{run: r, target: r.targets[j%len(r.targets)], first: int64(j) * share, blocks: share, end: end}
		for range r.cfg.Depth {
			w := &worker{job: jb, rng: rand.New(rand.NewPCG(r.cfg.Seed, r.streams)), buf: make([]byte, r.cfg.BlockBytes)}
			r.streams++
			if r.cfg.Verify {
				w.want = make([]byte, r.cfg.BlockBytes)
			}
			all = append(all, w)
		}
	}
	return all
}

// each runs f for all workers at once.
func each(ctx context.Context, all []*worker, f func(context.Context, *worker) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range all {
		g.Go(func() error { return f(ctx, w) })
	}
	return g.Wait()
}

func (r *run) measure(ctx context.Context) (*Result, error) {
	cpu, start := cpuTime(), time.Now()
	var end time.Time
	if !r.cfg.Once {
		end = start.Add(r.cfg.Runtime)
	}
	all := r.workers(end)
	err := each(ctx, all, func(ctx context.Context, w *worker) error { return w.loop(ctx) })
	if err != nil {
		return nil, err
	}
	elapsed := time.Since(start)
	cpu = cpuTime() - cpu
	var reads, sends, flushes histogram
	for _, w := range all {
		reads.merge(&w.reads)
		sends.merge(&w.sends)
		flushes.merge(&w.flushes)
	}
	res := &Result{Config: r.cfg, Seconds: elapsed.Seconds()}
	res.Read = newOps(&reads, elapsed, r.cfg.BlockBytes)
	res.Write = newOps(&sends, elapsed, r.cfg.BlockBytes)
	res.Flush = newOps(&flushes, elapsed, 0)
	if n := reads.n + sends.n; n > 0 {
		res.CPUMicrosPerOp = float64(cpu.Nanoseconds()) / 1e3 / float64(n)
	}
	if sends.n > 0 {
		start = time.Now()
		if err := r.targets[0].Flush(ctx); err != nil {
			return nil, fmt.Errorf("flush: %w", err)
		}
		res.LastFlushSeconds = time.Since(start).Seconds()
	}
	return res, nil
}

// loop does operations until it is time.
func (w *worker) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		i := w.next.Add(1) - 1
		if w.cfg.Once && i >= w.blocks || !w.cfg.Once && !time.Now().Before(w.end) {
			return nil
		}
		block := w.first + i%w.blocks
		if w.cfg.Workload.random() {
			block = w.first + w.rng.Int64N(w.blocks)
		}
		if err := w.operate(ctx, block, w.isRead()); err != nil {
			return err
		}
		// A target in this process may never block. Without this one worker
		// would go on for a time slice of 10 ms while all others wait.
		runtime.Gosched()
	}
	return ctx.Err()
}

func (w *worker) isRead() bool {
	switch w.cfg.Workload {
	case Read, RandRead:
		return true
	case Write, RandWrite:
		return false
	}
	return w.rng.IntN(100) < w.cfg.ReadPercent
}

// operate reads or writes one block. With Verify, a block has one operation at
// a time.
func (w *worker) operate(ctx context.Context, block int64, read bool) error {
	key, version := w.rng.Uint64(), uint32(0)
	if w.versions != nil {
		for version = w.claim(block); version == busy; version = w.claim(block) {
			runtime.Gosched()
		}
		if !read {
			version++
		}
		defer w.versions[block].Store(version)
		key = blockKey(block, version)
	}
	off := block * int64(w.cfg.BlockBytes)
	if read {
		start := time.Now()
		if err := w.target.ReadAt(ctx, w.buf, off); err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		w.reads.add(time.Since(start))
		if version == 0 {
			return nil
		}
		return w.compare(off, key)
	}
	w.content.fill(w.buf, key)
	start := time.Now()
	if err := w.target.WriteAt(ctx, w.buf, off, w.cfg.FUA); err != nil {
		return fmt.Errorf("write at %d: %w", off, err)
	}
	w.sends.add(time.Since(start))
	if n := w.cfg.FlushEvery; n > 0 && w.writes.Add(1)%int64(n) == 0 {
		start = time.Now()
		if err := w.target.Flush(ctx); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		w.flushes.add(time.Since(start))
	}
	return nil
}

// claim takes a block and returns its version, or busy if another has it.
func (w *worker) claim(block int64) uint32 {
	v := w.versions[block].Load()
	if v&busy != 0 || !w.versions[block].CompareAndSwap(v, v|busy) {
		return busy
	}
	return v
}

func blockKey(block int64, version uint32) uint64 { return mix(uint64(block)) + uint64(version) }

// compare checks the block just read against the content of that key.
func (w *worker) compare(off int64, key uint64) error {
	w.content.fill(w.want, key)
	for i := range w.buf {
		if w.buf[i] != w.want[i] {
			return fmt.Errorf("block at %d, byte %d: %w (seed %d)", off, i, ErrMismatch, w.cfg.Seed)
		}
	}
	return nil
}

// fill writes every block once, in order.
func (r *run) fill(ctx context.Context) error {
	err := each(ctx, r.workers(time.Time{}), func(ctx context.Context, w *worker) error {
		for i := w.next.Add(1) - 1; i < w.blocks; i = w.next.Add(1) - 1 {
			if err := w.operate(ctx, w.first+i, false); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	if err := r.targets[0].Flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if r.cfg.Settle != nil {
		return r.cfg.Settle(ctx)
	}
	return nil
}

// verify reads every block that was written, and returns how many.
func (r *run) verify(ctx context.Context) (int64, error) {
	var n atomic.Int64
	err := each(ctx, r.workers(time.Time{}), func(ctx context.Context, w *worker) error {
		for i := w.next.Add(1) - 1; i < w.blocks; i = w.next.Add(1) - 1 {
			if r.versions[w.first+i].Load() == 0 {
				continue
			}
			if err := w.operate(ctx, w.first+i, true); err != nil {
				return err
			}
			n.Add(1)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("verify: %w", err)
	}
	return n.Load(), nil
}
