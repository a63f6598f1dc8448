package history

import (
	"context"
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/internal/id"
)

func (w *world) reclaim(ctx context.Context) error {
	r, err := w.life.host.Reclaim(ctx, host.ReclaimOptions{Full: true})
	if err != nil {
		return err
	}
	w.tally.Cycles += int64(r.Cycles)
	w.tally.Moved += r.MovedChunks
	if len(r.Damaged) > 0 {
		return fmt.Errorf("segments %v cannot be emptied", r.Damaged)
	}
	return nil
}

func (w *world) verify(ctx context.Context, strict bool) error {
	r, err := w.life.host.Verify(ctx, host.VerifyOptions{Strict: strict})
	if err != nil {
		return err
	}
	if strict && r.Rebuilding {
		return errors.New("the index is not complete after a full reclaim")
	}
	if len(r.Findings) > 0 {
		return fmt.Errorf("verify found %d things: %+v", len(r.Findings), r.Findings[:min(8, len(r.Findings))])
	}
	return nil
}

// end compares all, has a quiet cycle, and sees that nothing is left that nobody
// can reach.
func (w *world) end(ctx context.Context) error {
	w.note("the end")
	if w.life.other != nil {
		if err := w.gather(ctx); err != nil {
			return err
		}
	}
	for range 2 {
		if err := w.life.host.Quiesce(ctx); err != nil {
			return err
		}
		if err := w.reclaim(ctx); err != nil {
			return err
		}
	}
	if err := w.compare(); err != nil {
		return err
	}
	if err := w.verify(ctx, true); err != nil {
		return err
	}
	return w.bounded(ctx)
}

const (
	// sealedMax is above what a chunk takes when it is sealed.
	sealedMax = chunkBytes + 64
	// overheadMax is above what a fragment takes beside sealed chunks: its header,
	// and what is left behind the last one, as none straddles two fragments.
	overheadMax = 3 * datanode.BlockBytes
)

// bounded compares what is stored with what the model can reach. A full reclaim
// lets a segment be if less than an eighth of it would be gained, so
//
//	stored <= reachable * (k+m)/k * 8/7 + segments * (k+m) * overhead
//
// where reachable counts each content once.
func (w *world) bounded(ctx context.Context) error {
	var stored, sealed, segments, live int64
	for after, more := id.Segment(0), true; more; {
		r, err := w.life.node.Usage(ctx, &datanode.UsageRequest{After: after})
		if err != nil {
			return err
		}
		for _, s := range r.Segments {
			after = s.Segment
			if s.Kind == datanode.KindChunks {
				stored += s.StoredBytes
				sealed += s.SealedBytes
				live += int64(s.LiveSlots)
				segments++
			}
		}
		more = r.More
	}
	distinct := int64(len(chunksOf(w.disks)))
	width := int64(geometry.Width())
	bound := distinct*sealedMax*width/int64(geometry.K)*8/7 + segments*width*overheadMax
	w.note("%d segments of %d bytes, %d sealed, %d live slots, %d contents, bound %d", segments, stored, sealed, live, distinct, bound)
	if live > distinct {
		w.tally.Again += live - distinct
	}
	if stored > bound {
		return fmt.Errorf("%d bytes are stored in %d segments, of %d contents: at most %d are to be", stored, segments, distinct, bound)
	}
	return nil
}
