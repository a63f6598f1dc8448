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
	var group id.Snapshot
	if len(rs) > 1 {
		group = rs[0].Snapshot
	}
	h, err := hold(ctx, rs, group, false)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	return h.Bytes, h.stable(ctx)
}

// HoldAll is MarkAll for disks of a group of which others have other owners: the
// disks take no operation after their marks until Release or Abandon, which are due
// when the group's outcome is known. So nobody sees, by an answer or a read, what is
// not in a snapshot of the group before all of its marks are there. Reads go on. A disk that
// has the mark already, of an earlier owner, is an error.
func HoldAll(ctx context.Context, rs []MarkRequest, group id.Snapshot) (*Held, error) {
	h, err := hold(ctx, rs, group, true)
	if err != nil {
		return nil, err
	}
	if err := h.stable(ctx); err != nil {
		h.Release()
		return nil, err
	}
	return h, nil
}

// Held is disks that have been marked.
type Held struct {
	Bytes []int64 // sizes of the disks at their marks, in the order of the requests

	order           []MarkRequest // by rising numbers of disks
	entered, locked int           // of order: that have a call, and whose appendMu is held
	up              chan struct{} // Disk.held of all; nil: none is held up
}

// holdUp has the disks, whose appendMu are held, take nothing more.
func (h *Held) holdUp() {
	h.up = make(chan struct{})
	for _, r := range h.order {
		r.Disk.held = h.up
	}
}

func (h *Held) unlock() {
	for _, r := range h.order[:h.locked] {
		r.Disk.appendMu.Unlock()
	}
	h.locked = 0
}

// Release lets the disks go on.
func (h *Held) Release() {
	h.unlock()
	if h.up != nil {
		for _, r := range h.order {
			r.Disk.appendMu.Lock()
			r.Disk.held = nil
			r.Disk.appendMu.Unlock()
		}
		close(h.up)
		h.up = nil
	}
	for _, r := range h.order[:h.entered] {
		r.Disk.leave()
	}
	h.entered = 0
}

// Abandon has the disks serve no more, as ErrClosed: the group's outcome is not
// known, and whoever opens them next finds it out.
func (h *Held) Abandon() {
	for _, r := range h.order {
		_ = r.Disk.fail(fmt.Errorf("what came of snapshot %d is not known: %w", r.Snapshot, ErrClosed))
	}
	h.Release()
}

func (h *Held) settled() {
	for _, r := range h.order {
		r.Disk.Settled(r.Snapshot)
	}
}

// hold marks disks at one instant, and with up holds them up from then on. No pass
// forgets the marks.
func hold(ctx context.Context, rs []MarkRequest, group id.Snapshot, up bool) (_ *Held, err error) {
	h := &Held{order: slices.SortedFunc(slices.Values(rs), func(a, b MarkRequest) int { return cmp.Compare(a.Disk.ID(), b.Disk.ID()) })}
	defer func() {
		if err != nil {
			h.Release()
		}
	}()
	for i, r := range h.order {
		if r.Snapshot == 0 || i > 0 && h.order[i-1].Disk.ID() == r.Disk.ID() {
			return nil, fmt.Errorf("disk %s twice, or without a number, in one snapshot", r.Disk.cfg.Name)
		}
		if err := r.Disk.enter(0, 0); err != nil {
			return nil, err
		}
		h.entered++
	}
	for _, r := range h.order {
		if err := r.Disk.awaitLayers(ctx); err != nil {
			return nil, err
		}
	}
	for _, r := range h.order {
		r.Disk.unsettle(r.Snapshot)
	}
	bytes, err := h.appendMarks(ctx, group)
	if err != nil {
		h.settled()
		return nil, err
	}
	for _, r := range rs {
		h.Bytes = append(h.Bytes, bytes[r.Disk.ID()])
	}
	if up {
		h.holdUp()
	}
	h.unlock()
	return h, nil
}

// stable makes the marks stable. After an error there are none.
func (h *Held) stable(ctx context.Context) error {
	err := syncAll(ctx, h.order)
	for _, r := range h.order {
		if err == nil {
			err = r.Disk.mayReply()
		}
	}
	if err != nil {
		h.settled()
		return err
	}
	failpoint.Reach(failpoint.Mark)
	return nil
}

// appendMarks takes the append locks of the disks, in order of their numbers, and
// appends the marks. It returns the disks' sizes then.
func (h *Held) appendMarks(ctx context.Context, group id.Snapshot) (map[id.Disk]int64, error) {
	wait, cancel := context.WithTimeout(ctx, markWaitMax)
	defer cancel()
	for _, r := range h.order {
		if err := r.Disk.lockAppend(wait); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
		h.locked++
	}
	bytes := make(map[id.Disk]int64, len(h.order))
	for _, r := range h.order {
		d := r.Disk
		if d.Marked(r.Snapshot) {
			return nil, fmt.Errorf("disk %s has the mark of snapshot %d already", d.cfg.Name, r.Snapshot)
		}
		bytes[d.ID()] = d.Size() // which only an append changes
		op := logrec.Op{Type: logrec.TypeSnapshot, Snapshot: r.Snapshot, Group: group}
		c := commit{recs: []pending{{op: op, data: logrec.AppendSnapshot(nil, r.Snapshot, group)}}}
		if err := d.appendBatch([]*commit{&c}, d.appendMark); err != nil {
			return nil, err
		}
	}
	return bytes, nil
}

// lockAppend takes appendMu of a disk that is not held up, ErrBusy if that takes until
// ctx ends: whoever has it may wait long for room in the log. The caller has entered.
func (d *Disk) lockAppend(ctx context.Context) error {
	for {
		if err := d.lockTurn(ctx); err != nil {
			return err
		}
		held := d.held
		if held == nil {
			return nil
		}
		d.appendMu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return d.takesNoMark()
		}
	}
}

func (d *Disk) takesNoMark() error {
	return fmt.Errorf("disk %s: its log takes no snapshot for %v: %w", d.cfg.Name, markWaitMax, ErrBusy)
}

// lockTurn takes appendMu.
func (d *Disk) lockTurn(ctx context.Context) error {
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
		return d.takesNoMark()
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
