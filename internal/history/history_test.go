package history

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/internal/host"
	"plinth/internal/vfsx/crashfs"
)

var (
	histories  = flag.Int("histories", 500, "random histories of TestSimHistories")
	firstSeed  = flag.Uint64("history-seed", 0, "of the first one; 0: draw one")
	historyDir = flag.String("history-dir", "", "where the run is kept, to go on; empty: nowhere")
	twoHosts   = flag.Int("history-two", 6, "histories of TestSimTwoHosts")
	most       = flag.Int("history-most", 0, "how many of them this process goes through at most, as what an opening leaves that met a crash stays in memory, 3 MB a history; 0: all")
	opsWanted  = flag.Int("history-ops", 200, "operations of each")
	verbose    = flag.Bool("history-log", false, "with -v: what data node and host log")
)

const (
	disksMax = 5
	snapsMax = 6
	// wholePeriod is after how many operations everything is read.
	wholePeriod = 20
	// crashPeriod is after how many, about, one meets a crash, one loses an answer, one is
	// taken over from, and one is a pass beside writes.
	crashPeriod = 40
)

// world is a history under way.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	seed  uint64
	tally *tally
	clock *clock
	two   bool // hosts
	plan  *plan
	life  *pool
	disks map[string]*model
	names int
	trail []string // the last operations
}

// note keeps what was done, for the report of a failure.
func (w *world) note(format string, args ...any) {
	w.trail = append(w.trail, fmt.Sprintf(format, args...))
}

func (w *world) tail() string {
	out := ""
	for _, line := range w.trail[max(0, len(w.trail)-60):] {
		out += line + "\n"
	}
	return out
}

func (w *world) run() (err error) {
	ctx := context.Background()
	fs := crashfs.New()
	fs.Order("index") // Pebble
	w.plan = newPlan(w.t, w.rng, w.clock)
	w.plan.two = w.two
	if err := w.plan.create(ctx, fs); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	w.disks = map[string]*model{}
	if w.life, err = w.plan.open(fs, false); err != nil {
		return err
	}
	for range 3 {
		if err := w.createDisk(ctx); err != nil {
			return errors.Join(err, w.life.close())
		}
	}
	for n := range *opsWanted {
		if err := w.step(ctx, n); err != nil {
			return errors.Join(fmt.Errorf("operation %d: %w", n, err), w.life.close())
		}
	}
	w.tally.Histories++
	return errors.Join(w.end(ctx), w.life.close())
}

func (w *world) step(ctx context.Context, n int) error {
	w.tally.Ops++
	if w.life.other != nil && w.rng.IntN(2) == 0 {
		w.life.swap()
	}
	o := w.draw(n)
	var err error
	switch w.rng.IntN(crashPeriod) {
	case 0:
		err = w.crashIn(ctx, o)
	case 1:
		err = w.loseIn(ctx, o)
	case 2:
		err = w.takeOver(ctx)
	case 3:
		err = w.beside(ctx)
	default:
		err = w.do(ctx, o)
	}
	if err == nil && n%wholePeriod == wholePeriod-1 {
		err = w.compare()
	}
	return err
}

// do carries an operation out, in the pool and then in the model.
func (w *world) do(ctx context.Context, o op) error {
	w.note("%s", o.name)
	ctx, cancel := w.clock.within(ctx, callTimeMax)
	defer cancel()
	if err := o.do(ctx); err != nil {
		if o.mayFail != nil && o.mayFail(err) {
			w.note("  refused: %v", err)
			return nil
		}
		return errors.Join(fmt.Errorf("%s: %w", o.name, err), context.Cause(ctx))
	}
	o.done()
	return w.look(o)
}

// look reads what an operation touched.
func (w *world) look(o op) error {
	d := w.disks[o.disk]
	if d == nil {
		return nil
	}
	if err := w.life.compare(o.disk, d.head, o.first, o.end); err != nil {
		return fmt.Errorf("after %s: %w", o.name, err)
	}
	return nil
}

// compare reads every disk and snapshot as a whole.
func (w *world) compare() error {
	for _, name := range slices.Sorted(maps.Keys(w.disks)) {
		d := w.disks[name]
		if err := w.life.whole(name, d.head); err != nil {
			return err
		}
		infos, err := w.life.at(name).Snapshots(name)
		if err != nil || len(infos) != len(d.snaps) {
			return fmt.Errorf("disk %s has snapshots %v, want %d: %w", name, infos, len(d.snaps), err)
		}
		for _, s := range infos {
			i := d.snaps[s.Name]
			if i == nil || s.State != "ok" || s.Bytes != i.chunks*chunkBytes {
				return fmt.Errorf("disk %s has snapshot %+v", name, s)
			}
			if err := w.life.whole(name+"@"+s.Name, i); err != nil {
				return err
			}
		}
	}
	return w.diff()
}

// diff compares what is said to have changed between two snapshots.
func (w *world) diff() error {
	name := w.someDisk()
	d := w.disks[name]
	infos, err := w.life.at(name).Snapshots(name)
	if err != nil || len(infos) < 2 {
		return err
	}
	var all []string // in order of time
	for _, s := range infos {
		all = append(all, s.Name)
	}
	n := w.rng.IntN(len(all) - 1)
	from, to := d.snaps[all[n]], d.snaps[all[n+1]]
	changed := map[int64]bool{}
	for off := int64(0); ; {
		r, err := w.life.at(name).Diff(context.Background(), name, all[n], all[n+1], off, 3)
		if err != nil {
			return fmt.Errorf("diff of %s from %s to %s: %w", name, all[n], all[n+1], err)
		}
		for _, x := range r.Extents {
			for lba := x.Offset / chunkBytes; lba*chunkBytes < x.Offset+x.Length; lba++ {
				changed[lba] = true
			}
		}
		if off = r.Next; off == 0 {
			break
		}
	}
	for _, lba := range to.places() {
		if want := from.at[lba] != to.at[lba]; changed[lba] != want {
			return fmt.Errorf("%s: chunk %d changed from %s to %s: %v, want %v", name, lba, all[n], all[n+1], changed[lba], want)
		}
		delete(changed, lba)
	}
	if len(changed) > 0 {
		return fmt.Errorf("%s: chunks %v changed from %s to %s, and were never written", name, changed, all[n], all[n+1])
	}
	return nil
}

func (w *world) someDisk() string {
	all := slices.Sorted(maps.Keys(w.disks))
	return all[w.rng.IntN(len(all))]
}

// someSnapshot returns a disk with a snapshot of it; false if there is none.
func (w *world) someSnapshot() (disk, snap string, ok bool) {
	var all [][2]string
	for _, name := range slices.Sorted(maps.Keys(w.disks)) {
		for _, s := range slices.Sorted(maps.Keys(w.disks[name].snaps)) {
			all = append(all, [2]string{name, s})
		}
	}
	if len(all) == 0 {
		return "", "", false
	}
	one := all[w.rng.IntN(len(all))]
	return one[0], one[1], true
}

// name returns a new name; they rise.
func (w *world) name(kind string) string {
	w.names++
	return fmt.Sprintf("%s%04d", kind, w.names)
}

func (w *world) createDisk(ctx context.Context) error {
	name, chunks := w.name("d"), w.size()
	if _, err := w.life.host.CreateDisk(ctx, host.DiskSpec{Name: name, Bytes: chunks * chunkBytes}); err != nil {
		return fmt.Errorf("create disk %s: %w", name, err)
	}
	w.disks[name] = &model{head: &image{chunks, map[int64]chunkOf{}}, snaps: map[string]*image{}}
	return nil
}

// size draws one for a disk, in chunks.
func (w *world) size() int64 {
	if w.rng.IntN(3) == 0 {
		return far + 1 + w.rng.Int64N(farChunks+4)
	}
	return 4 + w.rng.Int64N(nearChunks)
}
