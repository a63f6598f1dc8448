package history

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/internal/host"
	"plinth/nbd"
)

// op is an operation. If it ends in a crash its outcome is in doubt: what it
// touched is as before, or as after.
type op struct {
	name    string
	do      func(ctx context.Context) error
	done    func()           // changes the model
	mayFail func(error) bool // and then nothing has changed
	weak    bool             // not stable when it returns
	calls   []string         // to crash at; none: it does not crash

	// What it touches: chunks of a disk, each on its own, or after a crash
	// whatever settle finds.
	disk       string
	first, end int64
	settle     func(ctx context.Context) error
}

// draw returns a random operation that the model allows.
func (w *world) draw(n int) op {
	quiet := op{done: func() {}, calls: sweepCalls}
	if w.life.other != nil && w.rng.IntN(8) == 0 {
		return w.move()
	}
	switch r := w.rng.IntN(100); {
	case r < 38:
		return w.write()
	case r < 44:
		return w.zero()
	case r < 50:
		return w.trim()
	case r < 60:
		return w.snapshot(1 + w.rng.IntN(3))
	case r < 64:
		return w.rollback()
	case r < 68:
		return w.clone()
	case r < 72:
		return w.removeSnapshot()
	case r < 74:
		return w.removeDisk()
	case r < 76:
		return w.newDisk()
	case r < 78:
		return w.resize()
	case r < 80:
		return w.rename()
	case r < 85:
		return w.work(0)
	case r < 90:
		return w.work(1)
	case r < 95:
		return w.work(2)
	case r < 96:
		quiet.name, quiet.do = "sweep and verify", func(ctx context.Context) error {
			// An index that is being rebuilt does not know yet what disks hold.
			if err := w.life.host.Sweep(ctx); err != nil {
				return err
			}
			return w.verify(ctx, false)
		}
	case r < 98:
		return op{name: "restart", do: func(context.Context) error { return w.restart() }, done: func() {}}
	default:
		return op{name: "lists again", do: w.listsAgain, done: func() {}}
	}
	return quiet
}

// work is what the background does, too: the model does not notice.
func (w *world) work(n int) op {
	o := op{done: func() {}, calls: destageCalls}
	switch n {
	case 0:
		o.name, o.do = "quiesce", func(ctx context.Context) error { return w.life.host.Quiesce(ctx) }
	case 1:
		o.name, o.do, o.calls = "sweep", func(ctx context.Context) error { return w.life.host.Sweep(ctx) }, sweepCalls
	default:
		o.name, o.do, o.calls = "reclaim", w.reclaim, sweepCalls
	}
	return o
}

// mutate returns an operation on chunks of a disk.
func (w *world) mutate(kind, disk string, first int64, to map[int64]chunkOf, end int64, do func(nbd.Device) error) op {
	d := w.disks[disk]
	after := d.head.clone()
	for lba, c := range to {
		after.set(lba, c)
	}
	return op{
		name: fmt.Sprintf("%s %s, chunks %d to %d", kind, disk, first, end), disk: disk, first: first, end: min(end, first+2*nearChunks), weak: true, calls: []string{"Append", "Append", "Sync", "WriteFragments", "Publish", "TrimLog"},
		do:   func(context.Context) error { return w.life.with(disk, do) },
		done: func() { d.head = after },
		mayFail: func(err error) bool {
			if errors.Is(err, nbd.ErrNoSpace) {
				w.tally.Full++
				// Some of it may have been written.
				return w.settleChunks(disk, d, after) == nil
			}
			return false
		},
		settle: func(context.Context) error { return w.settleChunks(disk, d, after) },
	}
}

// somewhere draws a run of chunks that may hold data.
func (w *world) somewhere(disk string, most int) (first, end int64) {
	places := w.disks[disk].head.places()
	at := w.rng.IntN(len(places))
	first, end = places[at], places[at]+1
	for n := w.rng.IntN(most); n > 0 && at+1 < len(places) && places[at+1] == end; n-- {
		at++
		end++
	}
	return first, end
}

func (w *world) write() op {
	disk := w.someDisk()
	first, end := w.somewhere(disk, 8)
	to := map[int64]chunkOf{}
	if w.rng.IntN(3) == 0 { // a part of a chunk
		end = first + 1
		c := w.disks[disk].head.at[first]
		from := w.rng.IntN(chunkSectors)
		n := 1 + w.rng.IntN(chunkSectors-from)
		with := uint8(w.rng.IntN(contents + 1))
		for i := from; i < from+n; i++ {
			c[i] = with
		}
		to[first] = c
		b := c.bytes()[from*sectorBytes : (from+n)*sectorBytes]
		return w.mutate("part of", disk, first, to, end, func(d nbd.Device) error {
			return d.WriteAt(context.Background(), b, first*chunkBytes+int64(from*sectorBytes), false)
		})
	}
	var b []byte
	for lba := first; lba < end; lba++ {
		c := whole(uint8(w.rng.IntN(contents + 1)))
		to[lba] = c
		b = append(b, c.bytes()...)
	}
	fua := w.rng.IntN(4) == 0
	return w.mutate("write", disk, first, to, end, func(d nbd.Device) error {
		return d.WriteAt(context.Background(), b, first*chunkBytes, fua)
	})
}

func (w *world) zero() op {
	disk := w.someDisk()
	first, end := w.somewhere(disk, 8)
	to := map[int64]chunkOf{}
	for lba := first; lba < end; lba++ {
		to[lba] = chunkOf{}
	}
	return w.mutate("zero", disk, first, to, end, func(d nbd.Device) error {
		return d.Zero(context.Background(), first*chunkBytes, (end-first)*chunkBytes, w.rng.IntN(2) == 0, false)
	})
}

// trim trims a few chunks, or all from one to another, which may be far.
func (w *world) trim() op {
	disk := w.someDisk()
	first, end := w.somewhere(disk, 8)
	if places := w.disks[disk].head.places(); w.rng.IntN(2) == 0 {
		end = max(end, places[w.rng.IntN(len(places))]+1)
	}
	to := map[int64]chunkOf{}
	for lba := range w.disks[disk].head.at {
		if first <= lba && lba < end {
			to[lba] = chunkOf{}
		}
	}
	return w.mutate("trim", disk, first, to, end, func(d nbd.Device) error {
		return d.Trim(context.Background(), first*chunkBytes, (end-first)*chunkBytes, false)
	})
}

// snapshot takes one of some disks, at one instant.
func (w *world) snapshot(n int) op {
	all := slices.Sorted(maps.Keys(w.disks))
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = slices.DeleteFunc(all, func(name string) bool { return len(w.disks[name].snaps) >= snapsMax })
	if len(all) > 0 { // of one host
		at := w.life.at(all[0])
		all = slices.DeleteFunc(all, func(name string) bool { return w.life.at(name) != at })
	}
	all = all[:min(n, len(all))]
	if len(all) == 0 {
		return w.removeSnapshot()
	}
	name := w.name("s")
	spec := host.SnapshotSpec{Disks: all, Name: name, Labels: map[string]string{"n": name}}
	done := func() {
		w.tally.Snapshots += int64(len(all))
		for _, disk := range all {
			w.disks[disk].snaps[name] = w.disks[disk].head.clone()
		}
	}
	return op{
		name: fmt.Sprintf("snapshot %v@%s", all, name), done: done,
		mayFail: w.busy,
		do: func(ctx context.Context) error {
			_, err := w.life.at(all[0]).CreateSnapshots(ctx, spec)
			return err
		},
		calls: changeCalls,
		settle: func(context.Context) error {
			n := 0
			for _, disk := range all {
				if w.hasSnapshot(disk, name) {
					n++
				}
			}
			if n == len(all) {
				done()
			} else if n > 0 {
				return fmt.Errorf("%d of %v have snapshot %s", n, all, name)
			}
			return nil
		},
	}
}

func (w *world) hasSnapshot(disk, name string) bool {
	infos, err := w.life.at(disk).Snapshots(disk)
	return err == nil && slices.ContainsFunc(infos, func(s host.SnapshotInfo) bool { return s.Name == name })
}

// busy is true of errors that any change may meet.
func (w *world) busy(err error) bool {
	if errors.Is(err, host.ErrBusy) {
		w.tally.Refused++
		return true
	}
	return false
}

func (w *world) rollback() op {
	disk, snap, ok := w.someSnapshot()
	if !ok {
		return w.write()
	}
	d := w.disks[disk]
	done := func() {
		w.tally.Rollbacks++
		d.head = d.snaps[snap].clone()
	}
	return op{
		name: fmt.Sprintf("roll %s back to %s", disk, snap), disk: disk, end: nearChunks, done: done,
		mayFail: w.busy,
		do: func(ctx context.Context) error {
			_, err := w.life.at(disk).Rollback(ctx, disk, snap)
			return err
		},
		calls: changeCalls,
		settle: func(context.Context) error {
			before := w.life.whole(disk, d.head)
			if before == nil {
				return nil
			}
			done()
			if err := w.life.whole(disk, d.head); err != nil {
				return errors.Join(before, err)
			}
			return nil
		},
	}
}

func (w *world) clone() op {
	disk, snap, ok := w.someSnapshot()
	if !ok || len(w.disks) >= disksMax {
		return w.removeDisk()
	}
	name := w.name("c")
	from := w.disks[disk].snaps[snap].clone()
	done := func() {
		w.tally.Clones++
		w.disks[name] = &model{head: from, snaps: map[string]*image{}}
	}
	return op{
		name: fmt.Sprintf("clone %s@%s as %s", disk, snap, name), disk: name, end: nearChunks, done: done,
		mayFail: w.busy,
		do: func(ctx context.Context) error {
			_, err := w.life.at(disk).Clone(ctx, disk, snap, name)
			return err
		},
		calls:  changeCalls,
		settle: func(context.Context) error { return w.settleDisk(name, done) },
	}
}

// settleDisk calls there if a disk exists.
func (w *world) settleDisk(name string, there func()) error {
	_, err := w.life.host.Disk(name)
	switch {
	case err == nil:
		there()
	case !errors.Is(err, host.ErrUnknownDisk):
		return err
	}
	return nil
}
