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

// errHeld ends a pass that may give nothing up.
var errHeld = errors.New("reference lists are held")

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

// state tells the index what the disk needs, segment by segment. Sources of moves
// come first: as long as the disk holds one, the index keeps the copy held too.
func (p *pass) state(ctx context.Context, describe bool, drop map[id.Snapshot]bool) error {
	segments := slices.Clone(p.held)
	for s := range p.live {
		segments = append(segments, s)
	}
	p.moves.sort(segments)
	segments = slices.Compact(segments)
	if p.stuck {
		moving := p.moving()
		segments = slices.DeleteFunc(segments, func(s id.Segment) bool { return moving[s] })
	}
	if !describe {
		return p.setLists(ctx, segments, nil)
	}
	for window := range slices.Chunk(segments, describedPerScan) {
		slots, err := p.describe(ctx, window, drop)
		if err != nil {
			return err
		}
		if err := p.setLists(ctx, window, slots); err != nil {
			return err
		}
	}
	return nil
}

// describe scans the map again for the slots of some segments.
func (p *pass) describe(ctx context.Context, window []id.Segment, drop map[id.Snapshot]bool) (map[id.Segment][]datanode.SlotEntry, error) {
	slots := make(map[id.Segment][]datanode.SlotEntry, len(window))
	seen := make(map[id.Segment]bitmap, len(window)) // many chunks of the disk may share a slot
	for _, s := range window {
		seen[s] = bitmap{}
	}
	_, err := p.snap.ScanKept(ctx, drop, func(v *blockmap.Version) error {
		ref := p.moves.follow(v.Entry.Ref)
		known, wanted := seen[ref.Segment]
		if !wanted || known.has(ref.Slot) {
			return nil
		}
		seen[ref.Segment] = known.set(ref.Slot)
		slots[ref.Segment] = append(slots[ref.Segment], datanode.SlotEntry{
			Slot: ref.Slot, Fingerprint: v.Entry.Fingerprint, Location: ref.Location, PlainBytes: uint32(p.d.size),
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
	if d.holds.Load() > 0 {
		return errHeld
	}
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

// releasesMax bounds how often Release looks again: each time for what moved while
// it gave up the rest.
const releasesMax = 64

// Release gives up everything that a disk which is being removed holds. The disk
// must have been closed; epoch is a newer one, fenced. Chunks that move meanwhile
// become held at their new places, by who held them, so it ends when nothing is.
func Release(ctx context.Context, node datanode.Node, disk id.Disk, epoch id.Epoch) error {
	d := &Disk{pool: &Pool{Node: node}, cfg: Config{ID: disk, Epoch: epoch}}
	p := &pass{d: d}
	for range releasesMax {
		held, err := d.heldSegments(ctx)
		if err != nil || len(held) == 0 {
			return err
		}
		if p.moves, err = readMoves(ctx, node); err != nil {
			return err
		}
		p.moves.sort(held)
		if err := p.setLists(ctx, held, nil); errors.Is(err, datanode.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return fmt.Errorf("disk %d still holds segments after they were given up %d times", disk, releasesMax)
}
