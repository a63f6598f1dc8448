package disk

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
	"plinth/internal/stripe"
)

// rehomeBytesMax bounds the chunks that are stored anew at a time: a segment's.
const rehomeBytesMax = id.SegmentBytesMax

// rehome is a chunk that is to lie elsewhere: the map has it at from, whence it may have
// moved to at already.
type rehome struct {
	lba      id.LBA
	gen      id.Gen
	fp       id.Fingerprint
	from, at id.Ref
}

// leaves reports whether the pass is to store a chunk of a segment anew.
func (p *pass) leaves(s id.Segment) bool { return p.o.Leaves != nil && !p.stuck && p.o.Leaves(s) }

// leave notes a chunk that is to lie elsewhere.
func (p *pass) leave(ctx context.Context, r rehome) error {
	p.leaving = append(p.leaving, r)
	p.leavingBytes += int64(r.at.Location.Len())
	if p.leavingBytes < rehomeBytesMax && len(p.leaving) < patchesPerStep {
		return nil
	}
	return p.rehome(ctx)
}

// rehome stores chunks anew, as a round does what was written: a chunk that is there
// already where it can stay gets a hold on it (I10), others become new segments, born to
// this disk. Patches make the map name their places. What there is no room for, or what
// cannot be read, stays where it is.
func (p *pass) rehome(ctx context.Context) error {
	leaving, size := p.leaving, p.leavingBytes
	p.leaving, p.leavingBytes = p.leaving[:0], 0
	if len(leaving) == 0 {
		return nil
	}
	w := &work{d: p.d}
	var moved []rehome
	if size <= p.room {
		sealed, err := p.d.readSealed(ctx, leaving)
		if err != nil {
			return err
		}
		for i, r := range leaving {
			if sealed[i] == nil {
				p.stays(r)
				continue
			}
			moved = append(moved, r)
			w.sealed = append(w.sealed, sealed[i])
			w.updates = append(w.updates, logrec.Update{LBA: r.lba, Fingerprint: r.fp})
		}
		w.places = make([]place, len(w.updates))
	} else {
		for _, r := range leaving {
			p.stays(r)
		}
	}
	if len(moved) == 0 {
		return p.patch(ctx)
	}
	round := &round{pool: p.d.pool, works: []*work{w}, placed: make(map[id.Fingerprint]place), pace: func(ctx context.Context) error { return ctx.Err() }}
	if err := round.store(ctx); err != nil {
		return fmt.Errorf("store chunks anew that leave a node: %w", err)
	}
	for i, r := range moved {
		to := w.updates[i].Ref
		p.live[to.Segment] = p.live[to.Segment].set(to.Slot)
		p.moved = append(p.moved, blockmap.Patch{LBA: r.lba, Gen: r.gen, From: r.from, To: to})
	}
	p.room -= size
	p.report.RehomedChunks += int64(len(moved))
	p.report.RehomedBytes += size
	if p.o.Rehomed != nil {
		if err := p.o.Rehomed(ctx, size); err != nil {
			return err
		}
	}
	return p.patch(ctx)
}

// stays notes a chunk that was not stored anew.
func (p *pass) stays(r rehome) {
	p.report.LeftChunks++
	p.live[r.at.Segment] = p.live[r.at.Segment].set(r.at.Slot)
	if r.at != r.from {
		p.moved = append(p.moved, blockmap.Patch{LBA: r.lba, Gen: r.gen, From: r.from, To: r.at})
	}
}

// readSealed reads chunks that are stored, as they are sealed, each of which opens; nil
// for one that cannot be read.
func (d *Disk) readSealed(ctx context.Context, all []rehome) ([][]byte, error) {
	ranges := make([]stripe.Range, len(all))
	for i := range all {
		ranges[i] = d.pool.Geometry.Locate(all[i].at)
	}
	out := make([][]byte, len(all))
	var memory stripe.Memory
	var plain []byte
	for i, data := range d.pool.Stripes.ReadIn(ctx, &memory, ranges) {
		check := func(sealed []byte) (err error) {
			plain, err = d.pool.Opener.OpenChunk(plain[:0], sealed, all[i].fp)
			if err == nil && len(plain) != int(d.size) {
				err = fmt.Errorf("a chunk of %d bytes: %w", len(plain), chunk.ErrCorrupt)
			}
			return err
		}
		if data.Err == nil && check(data.Bytes) == nil {
			out[i] = bytes.Clone(data.Bytes)
			continue
		}
		repaired, err := d.pool.Stripes.Reconstruct(ctx, ranges[i], check)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			d.pool.Logger.Error("a chunk cannot leave a data node that is being drained", "disk", d.cfg.Name, "lba", all[i].lba, "segment", all[i].at.Segment, "err", err)
			continue
		}
		out[i] = slices.Clone(repaired)
	}
	return out, nil
}
