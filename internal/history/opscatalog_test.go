package history

import (
	"context"
	"errors"
	"fmt"

	"plinth/internal/host"
)

func (w *world) removeSnapshot() op {
	disk, snap, ok := w.someSnapshot()
	if !ok {
		return w.write()
	}
	done := func() {
		w.tally.Removals++
		delete(w.disks[disk].snaps, snap)
	}
	return op{
		name: fmt.Sprintf("remove %s@%s", disk, snap), done: done,
		mayFail: w.busy,
		do:      func(ctx context.Context) error { return w.life.at(disk).RemoveSnapshot(ctx, disk, snap, true) },
		calls:   changeCalls,
		settle: func(context.Context) error {
			if !w.hasSnapshot(disk, snap) {
				done()
			}
			return nil
		},
	}
}

func (w *world) removeDisk() op {
	if len(w.disks) < 3 {
		return w.newDisk()
	}
	disk := w.someDisk()
	done := func() {
		w.tally.Removals++
		delete(w.disks, disk)
	}
	return op{
		name: "remove disk " + disk, done: done,
		do:    func(ctx context.Context) error { return w.life.at(disk).RemoveDiskWithSnapshots(ctx, disk) },
		calls: changeCalls,
		settle: func(context.Context) error {
			if _, err := w.life.host.Disk(disk); errors.Is(err, host.ErrUnknownDisk) {
				done()
			}
			return nil
		},
	}
}

func (w *world) newDisk() op {
	if len(w.disks) >= disksMax {
		return w.write()
	}
	name, chunks := w.name("d"), w.size()
	done := func() { w.disks[name] = &model{head: &image{chunks, map[int64]chunkOf{}}, snaps: map[string]*image{}} }
	return op{
		name: fmt.Sprintf("create %s of %d chunks", name, chunks), disk: name, end: 1, done: done,
		do: func(ctx context.Context) error {
			_, err := w.life.host.CreateDisk(ctx, host.DiskSpec{Name: name, Bytes: chunks * chunkBytes})
			return err
		},
		calls:  changeCalls,
		settle: func(context.Context) error { return w.settleDisk(name, done) },
	}
}

func (w *world) resize() op {
	disk := w.someDisk()
	d := w.disks[disk]
	chunks := max(d.head.chunks, w.size())
	return op{
		name: fmt.Sprintf("resize %s to %d chunks", disk, chunks), disk: disk, end: nearChunks,
		done: func() { d.head.chunks = chunks },
		do: func(ctx context.Context) error {
			_, err := w.life.at(disk).ResizeDisk(ctx, disk, chunks*chunkBytes)
			return err
		},
		calls: changeCalls,
		settle: func(context.Context) error {
			info, err := w.life.host.Disk(disk)
			if err == nil && info.Bytes == chunks*chunkBytes {
				d.head.chunks = chunks
			}
			return err
		},
	}
}

func (w *world) rename() op {
	disk, to := w.someDisk(), w.name("r")
	done := func() { w.disks[to] = w.disks[disk]; delete(w.disks, disk) }
	if snap, name := "", w.name("s"); w.rng.IntN(2) == 0 {
		var ok bool
		if disk, snap, ok = w.someSnapshot(); !ok {
			return w.write()
		}
		snaps := w.disks[disk].snaps
		done := func() { snaps[name] = snaps[snap]; delete(snaps, snap) }
		return op{
			name: fmt.Sprintf("rename %s@%s to %s", disk, snap, name), done: done,
			do:    func(ctx context.Context) error { return w.life.at(disk).RenameSnapshot(ctx, disk, snap, name) },
			calls: changeCalls,
			settle: func(context.Context) error {
				if w.hasSnapshot(disk, name) {
					done()
				}
				return nil
			},
		}
	}
	return op{
		name: fmt.Sprintf("rename %s to %s", disk, to), disk: to, end: nearChunks, done: done,
		do: func(ctx context.Context) error {
			_, err := w.life.at(disk).RenameDisk(ctx, disk, to)
			return err
		},
		calls:  changeCalls,
		settle: func(context.Context) error { return w.settleDisk(to, done) },
	}
}
