package disk

import (
	"context"
	"fmt"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// resultReplay is what replay of the results remembers between records.
type resultReplay struct {
	d     *Disk
	last  state          // after the record before this one
	group *logrec.Result // the first records of a result, of this owner:
	epoch id.Epoch
}

// replayResults applies what the checkpoint does not have: results and patches.
// A result of several records of which an owner appended only the first is
// discarded: it is recognised by the next record's epoch, or by the end.
func (d *Disk) replayResults(ctx context.Context) error {
	r := resultReplay{d: d, last: d.state}
	err := d.eachRecord(ctx, datanode.Results, d.state.result+1, d.results, r.record)
	applied := d.state.result
	// Positions continue behind a discarded group; the next result covers it.
	d.state.result, d.state.resultMAC = r.last.result, r.last.resultMAC
	if err != nil || d.state.result == applied {
		return err
	}
	// So does a checkpoint: in a full log the group, of which there may be no more than what
	// precedes a result, can have the room that the next one needs.
	if err := d.m.Apply(&blockmap.Batch{Gen: d.m.Gen()}, d.state.marshal()); err != nil {
		return fmt.Errorf("skip half a result, %d: %w", d.state.result, err)
	}
	return nil
}

func (r *resultReplay) record(rec *datanode.Record) error {
	if r.d.m == nil {
		return fmt.Errorf("result %d of a disk without a map: %w", rec.Pos, ErrCorrupt)
	}
	r.last.result, r.last.resultMAC = rec.Pos, rec.MAC
	switch t := logrec.Type(rec.Type); {
	case t == logrec.TypeResult:
		return r.result(rec)
	case t == logrec.TypePatch:
		return r.patch(rec)
	case t == logrec.TypeDone:
		return r.d.done.read(rec.Data, 0)
	case !t.Optional():
		return fmt.Errorf("result of type %d: %w", t, logrec.ErrUnsupported)
	}
	return nil
}

func (r *resultReplay) result(rec *datanode.Record) error {
	res, err := logrec.DecodeResult(rec.Data)
	if err != nil {
		return fmt.Errorf("result %d: %w", rec.Pos, err)
	}
	if r.group != nil && r.epoch == rec.Epoch {
		r.group.Trims = append(r.group.Trims, res.Trims...)
		r.group.Updates = append(r.group.Updates, res.Updates...)
		r.group.More, r.group.Mark = res.More, res.Mark
	} else {
		r.group, r.epoch = res, rec.Epoch
	}
	if r.group.More {
		return nil
	}
	next := r.last
	next.through, next.throughMAC, next.bytes = r.group.Through, r.group.MAC, r.group.SizeBytes
	if err := r.d.applyResult(r.group, next); err != nil {
		return err
	}
	r.d.done.owner(rec.Epoch, next.through)
	r.d.state, r.last, r.group = next, next, nil
	return nil
}

// patch applies a patch record, which stands alone: what is left of a group of
// an older owner ends there.
func (r *resultReplay) patch(rec *datanode.Record) error {
	if r.group != nil && r.epoch == rec.Epoch {
		return fmt.Errorf("patch %d is inside of a result: %w", rec.Pos, ErrCorrupt)
	}
	patches, err := logrec.DecodePatches(rec.Data)
	if err != nil {
		return fmt.Errorf("patch %d: %w", rec.Pos, err)
	}
	if err := r.d.applyPatches(patches, r.last); err != nil {
		return err
	}
	r.d.state, r.group = r.last, nil
	return nil
}

// applyPatches puts patches into the map: each where the version that it is for
// still names the old place.
func (d *Disk) applyPatches(patches []logrec.Patch, next state) error {
	b := blockmap.Batch{Gen: d.m.Gen(), Patches: make([]blockmap.Patch, len(patches))}
	for i, p := range patches {
		b.Patches[i] = blockmap.Patch{LBA: p.LBA, Gen: p.Gen, From: id.Ref{Segment: p.Segment, Slot: p.Slot}, To: p.To}
	}
	if err := d.m.Apply(&b, next.marshal()); err != nil {
		return fmt.Errorf("apply patch %d to the map: %w", next.result, err)
	}
	d.patched = next.result
	for _, p := range patches {
		d.unsaved[p.Segment], d.unsaved[p.To.Segment] = true, true
	}
	return nil
}
