package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/failpoint"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// patchesPerStep is how many patches are one record and one batch of the map.
const patchesPerStep = logrec.PatchesMax

const _ = uint(blockmap.PatchesMax - patchesPerStep)

// moves says where chunks went: slots of segments that are being emptied, each in
// the order of the slots.
type moves map[id.Segment][]datanode.SlotMove

// readMoves asks the index for all of them. What it tells page by page need not
// be of one instant: a disk that knows a part of the moves to a segment names its
// copies incompletely, and the index keeps the others held as long as it holds
// their sources.
func readMoves(ctx context.Context, node datanode.IndexNode) (moves, error) {
	m := make(moves)
	for after := id.Segment(0); ; {
		reply, err := node.Forwards(ctx, &datanode.ForwardsRequest{After: after})
		if err != nil {
			return nil, fmt.Errorf("ask what has moved: %w", err)
		}
		for _, f := range reply.Forwards {
			m[f.From] = f.Moves
			after = f.From
		}
		if !reply.More || len(reply.Forwards) == 0 {
			return m, nil
		}
	}
}

// follow returns where the chunk at ref is: ref itself where it has not moved. A
// copy may have moved on; segments are emptied into newer ones, so that ends.
func (m moves) follow(ref id.Ref) id.Ref {
	for range len(m) {
		list := m[ref.Segment]
		i, ok := slices.BinarySearchFunc(list, ref.Slot, func(v datanode.SlotMove, s id.Slot) int { return cmp.Compare(v.Slot, s) })
		if !ok {
			break
		}
		ref = list[i].To
	}
	return ref
}

// sort orders segments: those that chunks move out of, then the others.
func (m moves) sort(segments []id.Segment) {
	slices.SortFunc(segments, func(a, b id.Segment) int {
		if from := len(m[a]) > 0; from != (len(m[b]) > 0) {
			if from {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, b)
	})
}

// moving returns the segments that chunks move from and to: those that the index
// knows of, and those that patches without a checkpoint were about, if it has
// forgotten.
func (p *pass) moving() map[id.Segment]bool {
	p.d.destageMu.Lock()
	out := maps.Clone(p.d.unsaved)
	p.d.destageMu.Unlock()
	for from, list := range p.moves {
		out[from] = true
		for _, m := range list {
			out[m.To.Segment] = true
		}
	}
	return out
}

// patch makes the map name the new places of what was found to have moved, as far
// as it still names the old ones: a result of its own, stable before it is
// applied. No round is under way meanwhile.
func (p *pass) patch(ctx context.Context) error {
	d := p.d
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	var patches []logrec.Patch
	for _, q := range p.moved {
		e, ok, err := d.m.Get(q.LBA, q.Gen)
		if err != nil {
			return err
		}
		if ok && e.Ref.Segment == q.From.Segment && e.Ref.Slot == q.From.Slot {
			patches = append(patches, logrec.Patch{LBA: q.LBA, Gen: q.Gen, Segment: q.From.Segment, Slot: q.From.Slot, To: q.To})
		}
	}
	p.moved = p.moved[:0]
	if len(patches) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // as with a result
	next := d.state
	var err error
	if next.result, next.resultMAC, err = d.appendGroup(ctx, []datanode.Record{{Type: uint8(logrec.TypePatch), Data: logrec.AppendPatches(nil, patches)}}); err != nil {
		return err
	}
	if err := d.applyPatches(patches, next); err != nil {
		return d.fail(err)
	}
	d.state = next
	d.stats.patched.Add(int64(len(patches)))
	failpoint.Reach(failpoint.Patched)
	return nil
}

// checkpointPatches makes a checkpoint if the newest has not got all patches.
// Until it has, it names places of which a pass must not give up any: a clone may
// begin with it, and it is what is left if the log is lost. stuck says that there
// is no room for one.
func (d *Disk) checkpointPatches(ctx context.Context) (stuck bool, err error) {
	if d.patchesSaved() {
		return false, nil
	}
	if err := d.Checkpoint(ctx); errors.Is(err, datanode.ErrNoSpace) {
		d.pool.Logger.Warn("no room for the checkpoint that moved chunks need", "disk", d.cfg.Name, "err", err)
		return true, nil
	} else if err != nil {
		return false, err
	}
	d.patchesSaved()
	return false, nil
}

// patchesSaved reports whether the newest checkpoint has all patches, of which
// then nothing need be remembered.
func (d *Disk) patchesSaved() bool {
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	if d.patched > d.checkpoint.result {
		return false
	}
	clear(d.unsaved)
	return true
}
