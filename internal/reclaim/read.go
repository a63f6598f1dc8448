package reclaim

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// portionMax bounds the chunks that are read and opened before who paces is asked:
// some 100 µs.
const portionMax = 16

// read returns the sealed chunks of some slots of a segment, each of which has
// been opened: what does not open is reconstructed. It returns the first that
// cannot be had instead.
func (m *Mover) read(ctx context.Context, s id.Segment, slots []datanode.SlotEntry) (chunks [][]byte, damage *Damage, err error) {
	for portion := range slices.Chunk(slots, portionMax) {
		sealed, damage := m.readPortion(ctx, s, portion)
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if damage != nil {
			return nil, damage, nil
		}
		chunks = append(chunks, sealed...)
		if m.Pace == nil {
			continue
		}
		n := int64(0)
		for _, c := range sealed {
			n += int64(len(c))
		}
		if err := m.Pace(ctx, n); err != nil {
			return nil, nil, err
		}
	}
	return chunks, nil, nil
}

func (m *Mover) readPortion(ctx context.Context, s id.Segment, slots []datanode.SlotEntry) ([][]byte, *Damage) {
	ranges := make([]stripe.Range, len(slots))
	for i := range slots {
		ranges[i] = m.Geometry.Locate(id.Ref{Segment: s, Slot: slots[i].Slot, Location: slots[i].Location})
	}
	chunks := make([][]byte, len(slots))
	var plain []byte
	for i, data := range m.Stripes.ReadIn(ctx, &m.memory, ranges) {
		// A write that comes back from a system call has lost its processor, and
		// would wait until this goroutine sleeps.
		runtime.Gosched()
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
