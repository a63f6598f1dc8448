package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

const (
	// layersMax bounds the frozen layers of a disk that MarkAll adds to: each
	// snapshot ends a layer, and a read looks at all of them.
	layersMax = 64
	// layersWaitMax bounds how long MarkAll waits for rounds above that.
	layersWaitMax = 5 * time.Second
	// markWaitMax bounds how long MarkAll holds up writes of the first disks for
	// the last one's turn at its log.
	markWaitMax = 500 * time.Millisecond
	// nudgeTime is after how long who waits for a round asks for it again.
	nudgeTime = time.Second
)

// MarkRequest asks for a snapshot of a disk.
type MarkRequest struct {
	Disk     *Disk
	Snapshot id.Snapshot
}

// MarkAll takes snapshots of different disks at one instant: every write that
// returned before the call is in them, and of writes under way those that one
// instant divides. They are stable at return; the sizes of the disks at that
// instant come back in the order of the requests. Whether a snapshot exists is
// the registry's word: until Settled is called no pass forgets them. After an
// error none of them exists, and what was logged of some is forgotten later.
//
// The instant is when the append locks of all disks are held, so that what
// returned before is in the past of every mark, and what one mark has not got no
// later write of another disk can follow from. It waits for destaging where many
// layers of a disk wait for it. Errors: ErrBusy, ErrClosed, ErrFailed, ctx's.
func MarkAll(ctx context.Context, rs []MarkRequest) ([]int64, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	order := slices.SortedFunc(slices.Values(rs), func(a, b MarkRequest) int { return cmp.Compare(a.Disk.ID(), b.Disk.ID()) })
	for i, r := range order {
		if r.Snapshot == 0 || i > 0 && order[i-1].Disk.ID() == r.Disk.ID() {
			return nil, fmt.Errorf("disk %s twice, or without a number, in one snapshot", r.Disk.cfg.Name)
		}
		if err := r.Disk.enter(0, 0); err != nil {
			return nil, err
		}
		defer r.Disk.leave()
	}
	for _, r := range order {
		if err := r.Disk.awaitLayers(ctx); err != nil {
			return nil, err
		}
	}
	for _, r := range order {
		r.Disk.unsettle(r.Snapshot)
	}
	var group id.Snapshot
	if len(rs) > 1 {
		group = rs[0].Snapshot
	}
	bytes, err := appendMarks(ctx, order, group)
	if err == nil {
		err = syncAll(ctx, order)
	}
	if err == nil {
		err = rs[0].Disk.mayReply()
	}
	if err != nil {
		for _, r := range order {
			r.Disk.Settled(r.Snapshot)
		}
		return nil, err
	}
	failpoint.Reach(failpoint.Mark)
	sizes := make([]int64, len(rs))
	for i, r := range rs {
		sizes[i] = bytes[r.Disk.ID()]
	}
	return sizes, nil
}

// appendMarks appends the marks of disks, in order of their numbers, at one
// instant, and returns their sizes then.
func appendMarks(ctx context.Context, order []MarkRequest, group id.Snapshot) (map[id.Disk]int64, error) {
	wait, cancel := context.WithTimeout(ctx, markWaitMax)
	defer cancel()
	for _, r := range order {
		if err := r.Disk.lockAppend(wait); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
		defer r.Disk.appendMu.Unlock()
	}
	bytes := make(map[id.Disk]int64, len(order))
	for _, r := range order {
		d := r.Disk
		bytes[d.ID()] = d.Size() // which only an append changes
		op := logrec.Op{Type: logrec.TypeSnapshot, Snapshot: r.Snapshot, Group: group}
		c := commit{recs: []pending{{op: op, data: logrec.AppendSnapshot(nil, r.Snapshot, group)}}}
		if err := d.appendBatch([]*commit{&c}, d.appendMark); err != nil {
			return nil, err
		}
	}
	return bytes, nil
}

// lockAppend takes appendMu, ErrBusy if that takes until ctx ends: whoever has it
// may wait long for room in the log. The caller has entered.
func (d *Disk) lockAppend(ctx context.Context) error {
	if d.appendMu.TryLock() {
		return nil
	}
	locked := make(chan struct{})
	d.calls.Add(1) // Close waits for the goroutine, which ends when it has its turn
	go func() {
		defer d.leave()
		d.appendMu.Lock()
		select {
		case locked <- struct{}{}:
		case <-ctx.Done():
			d.appendMu.Unlock()
		}
	}()
	select {
	case <-locked:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("disk %s: its log takes no snapshot for %v: %w", d.cfg.Name, markWaitMax, ErrBusy)
	}
}

// appendMark appends marks, which may use the log's reserve but do not wait for
// room: locks of other disks are held.
func (d *Disk) appendMark(recs []datanode.Record) error {
	_, err := d.pool.Node.Append(d.ctx, &datanode.AppendRequest{
		Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Stream: datanode.Ops, Class: datanode.ClassMark, Records: recs,
	})
	if errors.Is(err, datanode.ErrLogFull) {
		d.pool.Space.opts.Nudge()
		return fmt.Errorf("disk %s: %w: %w", d.cfg.Name, ErrBusy, err)
	}
	return err
}

// syncAll makes the marks stable; one sync of the log serves many disks.
func syncAll(ctx context.Context, order []MarkRequest) error {
	var g errgroup.Group
	for _, r := range order {
		g.Go(func() error { return r.Disk.sync(ctx) })
	}
	return g.Wait()
}

func (d *Disk) unsettle(s id.Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsettled[s] = struct{}{}
}

// Settled says that it is known whether the registry names these snapshots.
func (d *Disk) Settled(s ...id.Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range s {
		delete(d.unsettled, s)
	}
}

// Marked reports whether the disk has the snapshot, in its map or its log. False
// for one that the registry names says that it was lost with the log.
func (d *Disk) Marked(s id.Snapshot) bool {
	d.mu.RLock()
	marked, m := d.markedInLayer(s), d.m // before the map: a layer goes when the map has it
	d.mu.RUnlock()
	return marked || m != nil && m.HasSnapshot(s)
}

// markedInLayer reports whether the write buffer has the snapshot's mark; d.mu is
// held.
func (d *Disk) markedInLayer(s id.Snapshot) bool {
	for _, l := range d.layers {
		if l.mark == (logrec.Mark{Kind: logrec.TypeSnapshot, Snapshot: s}) {
			return true
		}
	}
	return false
}

// Await returns when a snapshot is in the map; it asks for destaging where it is
// only in the log. Errors: ErrNoSnapshot, ErrClosed, ErrFailed, ctx's.
func (d *Disk) Await(ctx context.Context, s id.Snapshot) error {
	_, err := d.await(ctx, s)
	return err
}

func (d *Disk) await(ctx context.Context, s id.Snapshot) (*blockmap.View, error) {
	if err := d.enterRead(); err != nil {
		return nil, err
	}
	defer d.reads.Done()
	for {
		d.mu.RLock()
		waiting, changed, m := d.markedInLayer(s), d.changed, d.m
		d.mu.RUnlock()
		var view *blockmap.View
		err := error(blockmap.ErrNoSnapshot)
		if m != nil {
			view, err = m.At(s)
		}
		switch {
		case err == nil:
			return view, nil
		case !errors.Is(err, blockmap.ErrNoSnapshot):
			return nil, fmt.Errorf("disk %s, snapshot %d: %w", d.cfg.Name, s, err)
		case !waiting:
			return nil, fmt.Errorf("disk %s, snapshot %d is neither in the map nor in the log: %w: %w", d.cfg.Name, s, ErrNoSnapshot, ErrCorrupt)
		}
		if err := d.awaitChange(ctx, changed); err != nil {
			return nil, err
		}
	}
}

// awaitLayers waits while many layers wait for rounds.
func (d *Disk) awaitLayers(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, layersWaitMax)
	defer cancel()
	for {
		d.mu.RLock()
		n, changed := len(d.layers), d.changed
		d.mu.RUnlock()
		if n <= layersMax {
			return nil
		}
		if err := d.awaitChange(wait, changed); err != nil {
			if ctx.Err() == nil && wait.Err() != nil {
				err = fmt.Errorf("disk %s: %d layers wait to be destaged: %w", d.cfg.Name, n, ErrBusy)
			}
			return err
		}
	}
}

// awaitChange asks for a round and waits until something has changed, or for long
// enough to ask again.
func (d *Disk) awaitChange(ctx context.Context, changed chan struct{}) error {
	if err := d.usable(); err != nil {
		return err
	}
	d.pool.Space.opts.Nudge()
	again := time.NewTimer(nudgeTime)
	defer again.Stop()
	select {
	case <-changed:
	case <-again.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
