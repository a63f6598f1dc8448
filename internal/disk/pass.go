package disk

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"plinth/blockmap"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/object"
)

// PassReport says what a pass found.
type PassReport struct {
	MappedChunks int64 // of the disk: chunks that are not zeros
	Segments     int   // on which the disk needs something
	Released     int   // segments on which it needs nothing any more
	// Held says that the pass was not a whole one: the lists were held (HoldLists),
	// or the disk is a clone without a checkpoint, and nothing was stated or given
	// up; or there was no room for the checkpoint that moved chunks need, and
	// nothing was of the segments that they moved from and to.
	Held bool
	// Snapshots says what each snapshot of the disk takes.
	Snapshots map[id.Snapshot]SnapshotUse
	// RehomedChunks were stored anew elsewhere, of RehomedBytes, sealed. LeftChunks were
	// to be, and there was no room, or they cannot be read.
	RehomedChunks, RehomedBytes, LeftChunks int64
}

// SnapshotUse is what a snapshot takes, as of a pass.
type SnapshotUse struct {
	MappedChunks int64 // that are not zeros
	OnlyChunks   int64 // of these, versions that nothing but it sees
	OnlyBytes    int64 // of these, sealed: removing it frees no more than that
}

// Existing returns the snapshots of a disk that exist: those that the registry
// names, as such or as the base of another disk. All else of the disk's map is
// forgotten. It is asked after the map was looked at, and not kept.
type Existing func(ctx context.Context) (map[id.Snapshot]bool, error)

// PassOptions says how a pass goes.
type PassOptions struct {
	// Describe tells the index fingerprints and places too: one that was lost
	// fills up again.
	Describe bool
	// Exists is asked which snapshots to keep; nil keeps all.
	Exists Existing
	// Pace is called every few thousand rows of the map and may wait; nil: full
	// speed.
	Pace func(ctx context.Context, rows int) error
	// Leaves, if not nil, tells of which segments chunks are to be stored anew elsewhere,
	// Room bytes of them at most. Rehomed is called after some of them were, with their
	// bytes, and may wait; nil: full speed.
	Leaves  func(id.Segment) bool
	Room    int64
	Rehomed func(ctx context.Context, bytes int64) error
}

// Pass is the owner's scan: it tells the index which slots the disk needs, and so
// gives up all others. Old versions that neither the disk nor a snapshot sees are
// dropped from the map. Chunks that reclaim has moved are followed: the map names
// their new places, a checkpoint makes that durable, and only then the old ones
// are given up. A pass that fails part way is repeated from the start; what it
// has done stands. Close ends it with ErrClosed.
func (d *Disk) Pass(ctx context.Context, o PassOptions) (*PassReport, error) {
	d.passMu.Lock()
	defer d.passMu.Unlock()
	ctx, cancel := context.WithCancel(ctx) // Close does not wait for a long scan
	defer cancel()
	defer context.AfterFunc(d.ctx, cancel)()
	report, err := d.pass(ctx, o)
	if err != nil && d.ctx.Err() != nil {
		err = ErrClosed
	}
	if err != nil {
		return nil, d.outcome(fmt.Errorf("pass of disk %s: %w", d.cfg.Name, err))
	}
	if !report.Held {
		d.stats.passes.Add(1)
	}
	return report, nil
}

func (d *Disk) pass(ctx context.Context, o PassOptions) (*PassReport, error) {
	if !d.hasMap() { // and so neither lists nor a checkpoint
		return &PassReport{Held: true}, nil
	}
	// Patches of an earlier pass, or of replay: the newest checkpoint may name
	// places that this pass gives up.
	stuck, err := d.checkpointPatches(ctx)
	if err != nil {
		return nil, err
	}
	p, err := d.beginPass(ctx)
	if err != nil {
		return nil, err
	}
	defer d.endPass(p)
	p.stuck, p.o, p.room = stuck, o, o.Room
	err = p.run(ctx, o)
	p.report.Held = p.stuck || errors.Is(err, errHeld)
	if errors.Is(err, errHeld) {
		err = nil
	}
	if err == nil && !p.report.Held {
		d.replacedPassed.Store(p.replaced)
	}
	return &p.report, err
}

// pass is a scan under way.
type pass struct {
	d         *Disk
	o         PassOptions
	snap      *blockmap.Snapshot
	marks     []blockmap.SnapshotRow   // of the map that is scanned
	unsettled map[id.Snapshot]struct{} // after it was looked at
	moves     moves
	moved     []blockmap.Patch // found, not yet in the map
	live      map[id.Segment]bitmap
	held      []id.Segment // what the index thinks the disk holds
	// stuck says that there is no room for the checkpoint that patches need. The
	// pass patches nothing more, and says nothing of what moves from or to, so that
	// the newest checkpoint stays whole; what died elsewhere makes room.
	stuck  bool
	report PassReport
	// replaced counts the checkpoints that lay poorly and were replaced before.
	replaced int64

	leaving      []rehome // found, not yet stored anew
	leavingBytes int64
	room         int64 // for what is
}

// beginPass takes snapshots of the map and of the lists at one instant, when no
// round is between a look-up and its result and no checkpoint between an object
// and its record. From then on registrations are noted.
//
// The order matters. A forward makes this disk hold the copy. One that comes
// after the lists were read is of a segment that the pass does not name, unless
// it is among the forwards, which are read later; so no pass gives up a copy of
// which it does not know. The map comes last: what it names that moved before has
// its forward.
func (d *Disk) beginPass(ctx context.Context) (p *pass, err error) {
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil {
		return nil, err
	}
	p = &pass{d: d, live: make(map[id.Segment]bitmap), replaced: d.replaced.Load()}
	if p.held, err = d.heldSegments(ctx); err != nil {
		return nil, err
	}
	if p.moves, err = readMoves(ctx, d.pool.Node); err != nil {
		return nil, err
	}
	for _, objects := range [][]blockmap.Object{d.checkpointObjects(), d.m.Objects()} {
		for _, o := range objects {
			segments, err := object.Segments(o)
			if err != nil {
				return nil, err
			}
			for _, s := range segments {
				p.live[s] = p.live[s].set(0)
			}
		}
	}
	if p.snap, p.marks, p.unsettled, err = d.snapshotMap(); err != nil {
		return nil, err
	}
	d.listMu.Lock()
	d.registered = make(map[id.Segment]bitmap)
	d.listMu.Unlock()
	return p, nil
}

// snapshotMap returns the map as of now, its snapshots, and those of them, or
// later ones, of which it is not known whether they exist. destageMu is held.
func (d *Disk) snapshotMap() (*blockmap.Snapshot, []blockmap.SnapshotRow, map[id.Snapshot]struct{}, error) {
	marks := d.m.Snapshots()
	snap, err := d.m.Snapshot()
	if err != nil {
		return nil, nil, nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return snap, marks, maps.Clone(d.unsettled), nil
}

// forgotten returns the snapshots among marks that do not exist. The order is
// what makes it right: the map was looked at first, then who is unsettled, and
// the registry is asked last. A snapshot of the map whose row is to come is
// unsettled, and one that is settled has its row, or never will.
func forgotten(ctx context.Context, marks []blockmap.SnapshotRow, unsettled map[id.Snapshot]struct{}, exists Existing) (map[id.Snapshot]bool, error) {
	if exists == nil || len(marks) == 0 {
		return nil, nil
	}
	there, err := exists(ctx)
	if err != nil {
		return nil, fmt.Errorf("which snapshots exist: %w", err)
	}
	drop := make(map[id.Snapshot]bool)
	for _, m := range marks {
		if _, ok := unsettled[m.ID]; !ok && !there[m.ID] {
			drop[m.ID] = true
		}
	}
	return drop, nil
}

func (d *Disk) endPass(p *pass) {
	d.listMu.Lock()
	d.registered = nil
	d.listMu.Unlock()
	p.snap.Close()
}

func (p *pass) run(ctx context.Context, o PassOptions) error {
	drop, err := forgotten(ctx, p.marks, p.unsettled, o.Exists)
	if err != nil {
		return err
	}
	objects := len(p.live)
	swept, err := p.snap.Sweep(ctx, drop, o.Pace, func(v *blockmap.Version) error { return p.version(ctx, v) })
	if err == nil {
		err = p.rehome(ctx)
	}
	if err == nil {
		err = p.patch(ctx)
	}
	if err == nil && !p.stuck {
		p.stuck, err = p.d.checkpointPatches(ctx)
	}
	if err != nil {
		return err
	}
	p.report.MappedChunks, p.report.Segments = swept.Head, len(p.live)-objects
	p.report.Snapshots = make(map[id.Snapshot]SnapshotUse, len(swept.Snapshots))
	for s, u := range swept.Snapshots {
		p.report.Snapshots[s] = SnapshotUse{MappedChunks: u.Mapped, OnlyChunks: u.OnlyMapped, OnlyBytes: u.OnlyBytes}
	}
	for _, s := range p.held {
		if p.live[s] == nil {
			p.report.Released++
		}
	}
	if err := p.state(ctx, o.Describe, drop); err != nil {
		return err
	}
	failpoint.Reach(failpoint.Cleared)
	return nil
}

// version notes what somebody sees: where it is, or where it has gone.
func (p *pass) version(ctx context.Context, v *blockmap.Version) error {
	ref := v.Entry.Ref
	if !p.stuck {
		ref = p.moves.follow(ref)
	}
	if p.leaves(ref.Segment) {
		return p.leave(ctx, rehome{v.LBA, v.Gen, v.Entry.Fingerprint, v.Entry.Ref, ref})
	}
	p.live[ref.Segment] = p.live[ref.Segment].set(ref.Slot)
	if ref == v.Entry.Ref {
		return nil
	}
	p.moved = append(p.moved, blockmap.Patch{LBA: v.LBA, Gen: v.Gen, From: v.Entry.Ref, To: ref})
	if len(p.moved) < patchesPerStep {
		return nil
	}
	return p.patch(ctx)
}
