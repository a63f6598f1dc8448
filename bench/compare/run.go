package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// cell is what is still to be measured.
type cell struct {
	round int
	row   *Row
	*Server
}

// Run measures every cell that the file of results does not have, and returns
// all samples. It blocks for the run times, and some seconds for each server.
func Run(ctx context.Context, cfg Config) (res *Results, err error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	if res, err = Load(c.Results); err != nil {
		return nil, err
	}
	todo := c.cells(res)
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(c.Dir)) }()
	r := &run{Config: c, res: res, began: time.Now(), alive: map[string]*serving{}}
	defer func() { err = errors.Join(err, r.stopAll()) }()
	for i, next := range todo {
		if c.Budget > 0 && time.Since(r.began)+r.longest(next) > c.Budget {
			res.Left = len(todo) - i
			break
		}
		if err := r.measure(ctx, next); err != nil {
			return nil, fmt.Errorf("%s on %s: %w", next.row.Name, next.Name, err)
		}
	}
	return res, nil
}

// cells lists what is to be done: servers take turns within rows within rounds.
func (c *Config) cells(have *Results) []cell {
	var todo []cell
	for round := 1; round <= c.Rounds; round++ {
		for i := range Rows {
			row := &Rows[i]
			for j := range Servers {
				s := &Servers[j]
				if row.has(s) && chosen(c.Rows, row.Name) && chosen(c.Servers, s.Name) && have.find(row.Name, s.Name, round) == nil {
					todo = append(todo, cell{round, row, s})
				}
			}
		}
	}
	return todo
}

// run is one Run.
type run struct {
	Config
	res   *Results
	began time.Time
	alive map[string]*serving
}

func (r *run) runtime(row *Row) time.Duration {
	if row.Sustained {
		return r.SustainedRuntime
	}
	return r.Runtime
}

// longest is about what a cell takes: plinth has to destage what was written, and
// a new server's disk to be filled, at some 300 MB/s.
func (r *run) longest(c cell) time.Duration {
	d := 2 * r.runtime(c.row)
	if r.alive[c.Name] == nil {
		d += time.Duration(r.DiskBytes * int64(time.Second) / 300e6)
	}
	return d
}

func (r *run) measure(ctx context.Context, c cell) error {
	v, err := r.turn(ctx, c.Server)
	if err != nil {
		return err
	}
	if !c.row.Writes && v.cold && v.api != nil {
		if err := r.warm(ctx, v); err != nil {
			return err
		}
	}
	v.cold = c.row.Writes
	s, err := r.sample(ctx, v, c.row)
	if err != nil {
		return err
	}
	s.Row, s.Server, s.Round = c.row.Name, c.Name, c.round
	if err := r.res.add(r.Results, s); err != nil {
		return err
	}
	fmt.Fprintf(r.Progress, "%4.0f s  round %d  %-10s  %-13s  %8.0f IOPS  %7.1f MB/s  p99 %7.0f µs  CPU %7.1f µs  load %s\n",
		time.Since(r.began).Seconds(), c.round, c.row.Name, c.Name, s.IOPS, s.MBps, s.P99, s.CPU, load())
	if c.row.Writes {
		if err := v.writeBack(); err != nil {
			return err
		}
	}
	return v.pause()
}

// turn returns the server, running, with its disk written.
func (r *run) turn(ctx context.Context, s *Server) (*serving, error) {
	if v := r.alive[s.Name]; v != nil {
		return v, v.resume()
	}
	v, err := start(ctx, &r.Config, s)
	if err != nil {
		return nil, err
	}
	r.alive[s.Name], v.cold = v, true
	if _, err := v.runFio(ctx, &r.Config, &Row{}, "--rw=write", "--bs=1m", "--iodepth=4"); err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	return v, errors.Join(v.settle(ctx), v.writeBack())
}

// warm reads every block twice, at random, so that what holds what is read more
// than once does hold it. The page cache, which serves the others, has what they wrote.
func (r *run) warm(ctx context.Context, v *serving) error {
	if _, err := v.runFio(ctx, &r.Config, &Row{}, "--rw=randread", "--bs=64k", "--iodepth=8", "--loops=2"); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

func (r *run) sample(ctx context.Context, v *serving, row *Row) (*Sample, error) {
	before, err := v.cpu()
	if err != nil {
		return nil, err
	}
	counted, err := v.counts(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.load(ctx, v, row)
	if err != nil {
		return nil, err
	}
	if row.Writes {
		if err := v.settle(ctx); err != nil {
			return nil, err
		}
	}
	after, err := v.cpu()
	if err != nil {
		return nil, err
	}
	s.CPU = (after - before).Seconds() * 1e6 / float64(s.Ops)
	if _, s.ResidentBytes, err = v.memory(); err != nil {
		return nil, err
	}
	end, err := v.counts(ctx)
	if err != nil {
		return nil, err
	}
	if row.Writes && v.api != nil {
		s.LogBytes, s.LogSize = end.logged-counted.logged, r.LogBytes
	}
	found := counts{ram: end.ram - counted.ram, flash: end.flash - counted.flash, below: end.below - counted.below}
	if all := float64(found.ram + found.flash + found.below); all > 0 && !row.Writes {
		s.FromRAM, s.FromFlash = float64(found.ram)/all, float64(found.flash)/all
	}
	return s, nil
}

// load runs the row's operations.
func (r *run) load(ctx context.Context, v *serving, row *Row) (*Sample, error) {
	if row.FUA && v.cmd != nil {
		return v.runFUA(ctx, &r.Config, row, r.runtime(row))
	}
	args := append([]string{"--norandommap", "--time_based", fmt.Sprintf("--runtime=%dms", r.runtime(row).Milliseconds())}, row.Args...)
	if row.Durable {
		args = append(args, v.everyFlush())
	}
	return v.runFio(ctx, &r.Config, row, args...)
}

// everyFlush is the argument by which fio waits after each write until it is
// stable.
func (v *serving) everyFlush() string {
	if v.cmd == nil {
		return "--fdatasync=1"
	}
	return "--fsync=1"
}

func (r *run) stopAll() error {
	var errs []error
	for _, v := range r.alive {
		errs = append(errs, v.stop())
	}
	return errors.Join(errs...)
}

// load is the machine's load of the last minute, so that a reader sees what else
// ran.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	text, _, _ := strings.Cut(string(b), " ")
	return text
}
