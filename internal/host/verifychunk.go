package host

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/object"
	"plinth/internal/stripe"
)

// chunksPerRead bounds the chunks of a segment that are read at a time.
const chunksPerRead = 256

// verifyNeeds verifies what disks need of a segment against the index, and
// opens every chunk once.
func (v *verify) verifyNeeds(ctx context.Context, d *datanode.SegmentDescription, report *stripe.Report, needs []disk.Need) error {
	if len(needs) == 0 {
		return nil
	}
	where := "segment " + d.Segment.String()
	// A segment whose chunks move is there until those who need them have followed.
	if !d.Known || d.State == datanode.StateDeleting {
		what := fmt.Sprintf("%s refers to it (with %d more), but the index does not know it", needs[0].String(), len(needs)-1)
		v.report.add(Finding{Kind: "map", Where: where, What: what})
		if !v.stored[d.Segment] {
			return nil
		}
	}
	slices.SortStableFunc(needs, func(a, b disk.Need) int { return cmp.Compare(a.Entry.Ref.Slot, b.Entry.Ref.Slot) })
	held := make(map[id.Disk][]byte, len(d.Lists))
	for _, l := range d.Lists {
		held[l.Disk] = l.Bits
	}
	slots := make(map[id.Slot]datanode.SlotEntry, len(d.Slots))
	for _, s := range d.Slots {
		slots[s.Slot] = s
	}
	var chunks []disk.Need
	for i := range needs {
		n := &needs[i]
		slot := n.Entry.Ref.Slot
		first := i == 0 || needs[i-1].Entry.Ref.Slot != slot
		at := fmt.Sprintf("%s, slot %d", where, slot)
		if d.Known && !v.report.Rebuilding && !slices.ContainsFunc(v.h.holders(n.Disk), func(d id.Disk) bool {
			bits := held[d]
			return int(slot>>3) < len(bits) && bits[slot>>3]&(1<<(slot&7)) != 0
		}) {
			v.report.add(Finding{Kind: "list", Where: at, What: n.String() + " needs it, but its reference list does not say so"})
		}
		if n.Object {
			continue
		}
		if s, ok := slots[slot]; d.Known && ok && (s.Fingerprint != n.Entry.Fingerprint || s.Location != n.Entry.Ref.Location) {
			v.report.add(Finding{Kind: "map", Where: at, What: n.String() + " refers to another chunk than the index has there"})
		} else if d.Known && !ok && !v.report.Rebuilding {
			v.report.add(Finding{Kind: "index", Where: at, What: n.String() + " refers to it, but the index has no such slot"})
		}
		if first || len(chunks) == 0 || n.Entry != chunks[len(chunks)-1].Entry {
			chunks = append(chunks, *n)
		}
	}
	for batch := range slices.Chunk(chunks, chunksPerRead) {
		if err := v.openChunks(ctx, where, report, batch); err != nil {
			return err
		}
	}
	return nil
}

// openChunks reads chunks and opens them. It does not reconstruct: what is
// damaged under its checksum has been found with the stripe.
func (v *verify) openChunks(ctx context.Context, where string, report *stripe.Report, chunks []disk.Need) error {
	ranges := make([]stripe.Range, len(chunks))
	for i := range chunks {
		ranges[i] = v.h.layouts().Geometry.Locate(chunks[i].Entry.Ref)
	}
	for i, data := range v.h.pool.Stripes.Read(ctx, ranges) {
		n := &chunks[i]
		v.report.Chunks++
		err := data.Err
		if err == nil {
			var plain []byte
			plain, err = v.h.pool.Opener.OpenChunk(nil, data.Bytes, n.Entry.Fingerprint)
			if err == nil && len(plain) != int(n.Chunk) {
				err = fmt.Errorf("it has %d bytes, not %d", len(plain), n.Chunk)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !explained(report, ranges[i]) {
			at := fmt.Sprintf("%s, slot %d", where, n.Entry.Ref.Slot)
			v.report.add(Finding{Kind: "chunk", Where: at, What: n.String() + ": " + err.Error()})
		}
	}
	return nil
}

// explained reports whether damage that was found with the stripe, and from
// which it can be reconstructed, is why a range did not open.
func explained(r *stripe.Report, want stripe.Range) bool {
	if r == nil {
		return true // the segment is gone as a whole, and was named
	}
	if r.LostBlocks > 0 {
		return false
	}
	for _, d := range r.Damage {
		whole := d.Kind != stripe.DamageBlock && d.Kind != stripe.DamageParity
		inside := d.Offset < want.Offset+want.Length && want.Offset < d.Offset+datanode.BlockBytes
		if (d.Index == want.Index || d.Index == stripe.IndexUnknown) && (whole || inside) {
			return true
		}
	}
	return false
}

// checkpoints reads every object of a disk's newest checkpoint.
func (v *verify) checkpoints(ctx context.Context, view *disk.View) error {
	buf := make([]byte, 1<<20)
	for _, o := range view.Objects {
		if err := v.readObject(ctx, o, buf); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			v.report.add(Finding{Kind: "checkpoint", Where: "disk " + view.Name(), What: err.Error()})
		}
	}
	return nil
}

func (v *verify) readObject(ctx context.Context, o blockmap.Object, buf []byte) error {
	size, err := object.Bytes(o)
	if err != nil {
		return err
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := v.h.pool.Objects.ReadAt(ctx, o, buf[:min(int64(len(buf)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}
