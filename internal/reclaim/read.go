package reclaim

import (
	"bytes"
	"context"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// read returns the sealed chunks of some slots of a segment, each of which has
// been opened: what does not open is reconstructed. It returns the first that
// cannot be had instead.
func (m *Mover) read(ctx context.Context, s id.Segment, slots []datanode.SlotEntry) ([][]byte, *Damage) {
	ranges := make([]stripe.Range, len(slots))
	for i := range slots {
		ranges[i] = m.Geometry.Locate(id.Ref{Segment: s, Slot: slots[i].Slot, Location: slots[i].Location})
	}
	chunks := make([][]byte, len(slots))
	var plain []byte
	for i, data := range m.Stripes.Read(ctx, ranges) {
		check := func(p []byte) (err error) {
			plain, err = m.Opener.OpenChunk(plain[:0], p, slots[i].Fingerprint)
			if err == nil && len(plain) != int(slots[i].PlainBytes) {
				err = fmt.Errorf("chunk %s has %d bytes, not %d", slots[i].Fingerprint, len(plain), slots[i].PlainBytes)
			}
			return err
		}
		if data.Err == nil && check(data.Bytes) == nil {
			chunks[i] = bytes.Clone(data.Bytes) // or all of the read would stay
			continue
		}
		// An earlier chunk may have had the fragment repaired.
		if again := m.Stripes.Read(ctx, ranges[i:i+1])[0]; again.Err == nil && check(again.Bytes) == nil {
			chunks[i] = bytes.Clone(again.Bytes)
			continue
		}
		repaired, err := m.Stripes.Reconstruct(ctx, ranges[i], check)
		if err != nil {
			return nil, &Damage{s, slots[i].Slot, err}
		}
		chunks[i] = repaired
	}
	return chunks, nil
}
