package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/object"
)

const (
	// listsPerCall bounds the lists of one SetLists, and the time that a round's
	// look-ups wait for it.
	listsPerCall = datanode.SegmentsMax
	// describedPerCall bounds them where slots are described: 16 of 2,000 slots are
	// some 2 MB.
	describedPerCall = 16
	// describedPerScan bounds the segments whose slots a pass describes in one
	// scan of the map: 1,024 of 2,000 slots of 40 bytes are 80 MB.
	describedPerScan = 1024
)

// PassReport says what a pass found.
type PassReport struct {
	MappedChunks int64 // of the disk: chunks that are not zeros
	Segments     int   // on which the disk needs something
	Released     int   // segments on which it needs nothing any more
	// Held says that the lists were held (HoldLists) and so nothing was given up.
	Held bool
	// Snapshots says what each snapshot of the disk takes.
	Snapshots map[id.Snapshot]SnapshotUse
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
}

// Pass is the owner's scan: it tells the index which slots the disk needs,
// and so gives up all others. Old versions that neither the disk nor a snapshot
// sees are dropped from the map. A pass that fails part way is repeated from the
// start; what it has done stands.
func (d *Disk) Pass(ctx context.Context, o PassOptions) (*PassReport, error) {
	d.passMu.Lock()
	defer d.passMu.Unlock()
	p, err := d.beginPass(ctx)
	if err != nil {
		return nil, d.outcome(fmt.Errorf("pass of disk %s: %w", d.cfg.Name, err))
	}
	defer d.endPass(p)
	if err := p.run(ctx, o.Describe); err != nil {
		return nil, d.outcome(fmt.Errorf("pass of disk %s: %w", d.cfg.Name, err))
	}
	if err := d.m.Collect(ctx); err != nil {
		return nil, fmt.Errorf("collect old versions of disk %s: %w", d.cfg.Name, err)
	}
	d.stats.passes.Add(1)
	return &p.report, nil
}

// pass is a scan under way.
type pass struct {
	d      *Disk
	snap   *blockmap.Snapshot
	live   map[id.Segment]bitmap
	held   []id.Segment // what the index thinks the disk holds
	report PassReport
}

// beginPass takes snapshots of the map and of the lists at one instant, when no
// round is between a look-up and its result and no checkpoint between an object
// and its record. From then on registrations are noted.
func (d *Disk) beginPass(ctx context.Context) (p *pass, err error) {
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if err := d.usable(); err != nil {
		return nil, err
	}
	p = &pass{d: d, live: make(map[id.Segment]bitmap)}
	if p.held, err = d.heldSegments(ctx); err != nil {
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
	if p.snap, err = d.m.Snapshot(); err != nil {
		return nil, err
	}
	d.listMu.Lock()
	d.registered = make(map[id.Segment]bitmap)
	d.listMu.Unlock()
	return p, nil
}

func (d *Disk) endPass(p *pass) {
	d.listMu.Lock()
	d.registered = nil
	d.listMu.Unlock()
	p.snap.Close()
}

// heldSegments lists the segments on which the disk holds anything.
func (d *Disk) heldSegments(ctx context.Context) ([]id.Segment, error) {
	var held []id.Segment
	for after := id.Segment(0); ; {
		reply, err := d.pool.Node.ListSegments(ctx, &datanode.ListSegmentsRequest{
			Disk: d.cfg.ID, Epoch: d.cfg.Epoch, After: after,
		})
		if err != nil {
			return nil, err
		}
		held = append(held, reply.Segments...)
		if !reply.More || len(reply.Segments) == 0 {
			return held, nil
		}
		after = held[len(held)-1]
	}
}

func (p *pass) run(ctx context.Context, describe bool) error {
	objects := len(p.live)
	err := p.snap.Scan(ctx, func(_ id.LBA, e blockmap.Entry) error {
		p.report.MappedChunks++
		p.live[e.Ref.Segment] = p.live[e.Ref.Segment].set(e.Ref.Slot)
		return nil
	})
	if err != nil {
		return err
	}
	p.report.Segments = len(p.live) - objects
	segments := slices.Clone(p.held)
	for s := range p.live {
		segments = append(segments, s)
	}
	slices.Sort(segments)
	segments = slices.Compact(segments)
	for _, s := range p.held {
		if p.live[s] == nil {
			p.report.Released++
		}
	}
	if !describe {
		return p.setLists(ctx, segments, nil)
	}
	for window := range slices.Chunk(segments, describedPerScan) {
		slots, err := p.describe(ctx, window)
		if err != nil {
			return err
		}
		if err := p.setLists(ctx, window, slots); err != nil {
			return err
		}
	}
	return nil
}

// describe scans the map again for the slots of some segments, in order.
func (p *pass) describe(ctx context.Context, window []id.Segment) (map[id.Segment][]datanode.SlotEntry, error) {
	slots := make(map[id.Segment][]datanode.SlotEntry, len(window))
	seen := make(map[id.Segment]bitmap, len(window)) // many chunks of the disk may share a slot
	err := p.snap.Scan(ctx, func(_ id.LBA, e blockmap.Entry) error {
		s := e.Ref.Segment
		if s < window[0] || s > window[len(window)-1] {
			return nil
		}
		if seen[s].has(e.Ref.Slot) {
			return nil
		}
		seen[s] = seen[s].set(e.Ref.Slot)
		slots[s] = append(slots[s], datanode.SlotEntry{
			Slot: e.Ref.Slot, Fingerprint: e.Fingerprint, Location: e.Ref.Location, PlainBytes: uint32(p.d.size),
		})
		return nil
	})
	bySlot := func(a, b datanode.SlotEntry) int { return cmp.Compare(a.Slot, b.Slot) }
	for _, list := range slots {
		slices.SortFunc(list, bySlot)
	}
	return slots, err
}

// setLists replaces lists: the live slots of the snapshot and what was
// registered since. listMu is held from reading the one to sending both, so that
// no look-up comes between.
func (p *pass) setLists(ctx context.Context, segments []id.Segment, slots map[id.Segment][]datanode.SlotEntry) error {
	perCall := listsPerCall
	if slots != nil {
		perCall = describedPerCall
	}
	for batch := range slices.Chunk(segments, perCall) {
		if err := p.setBatch(ctx, batch, slots); err != nil {
			return err
		}
	}
	return nil
}

func (p *pass) setBatch(ctx context.Context, batch []id.Segment, slots map[id.Segment][]datanode.SlotEntry) error {
	d := p.d
	d.listMu.Lock()
	defer d.listMu.Unlock()
	d.seq++
	req := &datanode.SetListsRequest{Disk: d.cfg.ID, Epoch: d.cfg.Epoch, Seq: d.seq}
	for _, s := range batch {
		bits := bitmap(nil).or(p.live[s]).or(d.registered[s])
		req.Lists = append(req.Lists, datanode.List{Segment: s, Bits: bits, Slots: slots[s]})
	}
	reply, err := d.pool.Node.SetLists(ctx, req)
	if err != nil {
		return err
	}
	if len(reply.Refused) > 0 { // only another owner can have a newer update
		return fmt.Errorf("%d lists have newer updates, first segment %s: %w", len(reply.Refused), reply.Refused[0], datanode.ErrStaleUpdate)
	}
	return nil
}

// Release gives up everything that a disk which is being removed holds. The disk
// must have been closed; epoch is a newer one, fenced.
func Release(ctx context.Context, node datanode.Node, disk id.Disk, epoch id.Epoch) error {
	d := &Disk{pool: &Pool{Node: node}, cfg: Config{ID: disk, Epoch: epoch}}
	held, err := d.heldSegments(ctx)
	if err != nil {
		return err
	}
	p := &pass{d: d}
	if err := p.setLists(ctx, held, nil); err != nil && !errors.Is(err, datanode.ErrNotFound) {
		return err
	}
	return nil
}
