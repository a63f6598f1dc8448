package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Scaling says how plinth alone does with more of what there can be more of.
type Scaling struct {
	Loads []LoadPoint
	Sizes []SizePoint
	// DiskBytes is the memory that an idle disk takes, averaged over the most there are.
	DiskBytes int64
}

// LoadPoint is a number of disks under a depth of operations each.
type LoadPoint struct {
	Disks, Depth int
	Read, Write  Sample
}

// SizePoint is a disk of a size, written and read all over.
type SizePoint struct {
	Bytes       int64
	Read, Write Sample
}

var (
	// scaleDisks are the numbers of disks, scaleDepths the operations in flight on
	// each.
	scaleDisks  = []int{1, 2, 8, 32}
	scaleDepths = []int{1, 8, 64}
	scaleSizes  = []int64{1 << 30, 100 << 30, 10 << 40}
)

// scaleInFlightMax bounds operations in flight over all disks.
const scaleInFlightMax = 256

// Scale measures plinth with 1 to 32 disks, 1 to 64 operations in flight on
// each, and disks of 1 GiB to 10 TiB. cfg.DiskBytes, written before, are shared
// by the disks.
func Scale(ctx context.Context, cfg Config) (out *Scaling, err error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	r := &run{Config: c, res: &Results{}, began: time.Now(), alive: map[string]*serving{}}
	defer func() { err = errors.Join(err, r.stopAll()) }()
	v, err := start(ctx, &r.Config, &Servers[0])
	if err != nil {
		return nil, err
	}
	r.alive[v.Name] = v
	out = &Scaling{}
	if err := r.scaleMemory(ctx, v, out); err != nil {
		return nil, err
	}
	disks := v.disks
	if err := r.scaleSizes(ctx, v, out); err != nil {
		return nil, err
	}
	return out, r.scaleLoads(ctx, v, disks, out)
}

// scaleMemory makes the disks of scaleLoads while the process has done nothing
// else, whose memory would come and go meanwhile.
func (r *run) scaleMemory(ctx context.Context, v *serving, out *Scaling) error {
	most := scaleDisks[len(scaleDisks)-1]
	before, _, err := v.memory()
	if err != nil {
		return err
	}
	v.disks = nil
	for i := range most {
		if err := v.createDisk(ctx, fmt.Sprint("disk", i), r.scaleBytes()); err != nil {
			return err
		}
	}
	after, _, err := v.memory()
	out.DiskBytes = (after - before) / int64(most)
	return err
}

// scaleBytes is the size of each of the most disks.
func (r *run) scaleBytes() int64 {
	return max(r.DiskBytes/int64(scaleDisks[len(scaleDisks)-1]), 1<<20)
}

// scaleSizes writes and reads at random all over disks of growing size.
func (r *run) scaleSizes(ctx context.Context, v *serving, out *Scaling) error {
	for i, bytes := range scaleSizes {
		v.disks = nil
		if err := v.createDisk(ctx, fmt.Sprint("size", i), bytes); err != nil {
			return err
		}
		p := SizePoint{Bytes: bytes}
		if err := r.both(ctx, v, bytes, 32, &p.Read, &p.Write); err != nil {
			return err
		}
		out.Sizes = append(out.Sizes, p)
	}
	return nil
}

func (r *run) scaleLoads(ctx context.Context, v *serving, all [][]string, out *Scaling) error {
	bytes := r.scaleBytes()
	v.disks = all
	c := r.Config
	c.DiskBytes = bytes
	if _, err := v.runFio(ctx, &c, &Row{}, "--rw=write", "--bs=1m", "--iodepth=1"); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	for _, disks := range scaleDisks {
		for _, depth := range scaleDepths {
			if disks*depth > scaleInFlightMax {
				continue
			}
			v.disks = all[:disks]
			p := LoadPoint{Disks: disks, Depth: depth}
			if err := r.both(ctx, v, bytes, depth, &p.Read, &p.Write); err != nil {
				return err
			}
			out.Loads = append(out.Loads, p)
		}
	}
	return nil
}

// both writes and then reads the server's disks at random.
func (r *run) both(ctx context.Context, v *serving, bytes int64, depth int, read, write *Sample) error {
	at := *r
	at.DiskBytes = bytes
	for _, x := range []struct {
		row Row
		out *Sample
	}{
		{Row{OpBytes: 4096, Writes: true, Args: []string{"--rw=randwrite", "--bs=4k"}}, write},
		{Row{OpBytes: 4096, Args: []string{"--rw=randread", "--bs=4k"}}, read},
	} {
		x.row.Args = append(x.row.Args, fmt.Sprint("--iodepth=", depth))
		s, err := at.sample(ctx, v, &x.row)
		if err != nil {
			return err
		}
		*x.out = *s
		fmt.Fprintf(r.Progress, "%4.0f s  %2d disks of %d MiB, depth %2d: %s %8.0f IOPS  CPU %6.1f µs  load %s\n",
			time.Since(r.began).Seconds(), len(v.disks), bytes>>20, depth, x.row.Args[0], s.IOPS, s.CPU, load())
	}
	return nil
}

// WriteText writes the figures as Markdown.
func (s *Scaling) WriteText(out io.Writer) error {
	w := &errWriter{w: out}
	const columns = " read IOPS | p50 µs | p99 µs | CPU µs | write IOPS | p50 µs | p99 µs | CPU µs | memory MiB |\n"
	w.printf("| disk |%s|---|---|---|---|---|---|---|---|---|---|\n", columns)
	for _, p := range s.Sizes {
		w.printf("| %d GiB |", p.Bytes>>30)
		writePoint(w, &p.Read, &p.Write)
	}
	w.printf("\n| disks | depth |%s|---|---|---|---|---|---|---|---|---|---|---|\n", columns)
	for _, p := range s.Loads {
		w.printf("| %d | %d |", p.Disks, p.Depth)
		writePoint(w, &p.Read, &p.Write)
	}
	w.printf("\nA new disk takes %d KiB of memory.\n", s.DiskBytes>>10)
	return w.err
}

func writePoint(w *errWriter, read, write *Sample) {
	for _, s := range []*Sample{read, write} {
		w.printf(" %s | %s | %s | %s |", number(s.IOPS), number(s.P50), number(s.P99), number(s.CPU))
	}
	w.printf(" %d |\n", max(read.ResidentBytes, write.ResidentBytes)>>20)
}
