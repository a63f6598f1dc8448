package host

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

// releaseRemoved gives up what removed disks hold again: an index that was
// rebuilt knows segments by their births, and births outlive disks. A disk that
// the catalog does not have was removed if the registry says that it gave out
// every epoch which the births name; of any other the registry may have lost the
// record, and what it holds stays held (I13). With only it looks at no other disks.
func (h *Host) releaseRemoved(ctx context.Context, only map[id.Disk]bool) error {
	born, err := h.bornTo(ctx)
	if err != nil {
		return err
	}
	if only != nil {
		maps.DeleteFunc(born, func(d id.Disk, _ id.Epoch) bool { return !only[d] })
	}
	// The catalog is read after the births: no disk is born to before it is there.
	recs, err := h.catalog.disks(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		delete(born, rec.ID)
	}
	mover, err := h.catalog.moverDisk(ctx, false)
	if err != nil {
		return err
	}
	delete(born, mover)
	for _, d := range slices.SortedFunc(maps.Keys(born), cmp.Compare[id.Disk]) {
		next, err := h.catalog.nextEpoch(ctx, d)
		if err != nil {
			return err
		}
		if next <= born[d] {
			h.log.Warn("segments are held by a disk that the registry does not know; they are kept", "id", d, "epoch", born[d])
			continue
		}
		if err := h.giveUp(ctx, d); err != nil {
			return fmt.Errorf("release what the removed disk %d holds: %w", d, err)
		}
	}
	return nil
}

// releaseStrangers has removed disks give up what is found to be held by them: an
// owner that had been taken over may have published a segment when its disk was
// gone.
func (h *Host) releaseStrangers(ctx context.Context, segments []datanode.SegmentUse) error {
	strangers := make(map[id.Disk]bool)
	for i := range segments {
		for _, d := range segments[i].Disks {
			strangers[d.Disk] = true
		}
	}
	h.mu.Lock()
	for d := range h.byID {
		delete(strangers, d)
	}
	h.mu.Unlock()
	if h.cleaner.mover != nil {
		delete(strangers, h.cleaner.mover.Disk)
	}
	if len(strangers) == 0 {
		return nil
	}
	return h.releaseRemoved(ctx, strangers)
}

// bornTo returns the disks that segments were born to, each with its newest
// epoch among them.
func (h *Host) bornTo(ctx context.Context) (map[id.Disk]id.Epoch, error) {
	born := make(map[id.Disk]id.Epoch)
	for after := id.Segment(0); ; {
		reply, err := h.node.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{After: after})
		if err != nil {
			return nil, err
		}
		for _, d := range reply.Segments {
			for _, b := range d.Births {
				born[b.Disk] = max(born[b.Disk], b.Epoch)
			}
			after = d.Segment
		}
		if !reply.More || len(reply.Segments) == 0 {
			return born, nil
		}
	}
}

// nextEpoch returns the epoch that the next claim gets: all below it were given
// out. 0 if none ever was.
func (c catalog) nextEpoch(ctx context.Context, d id.Disk) (id.Epoch, error) {
	value, revision, err := c.get(ctx, datanode.EpochKey(d))
	if err != nil || revision == 0 {
		return 0, err
	}
	n, err := strconv.ParseUint(string(value), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("counter %s of the registry: %w", datanode.EpochKey(d), err)
	}
	return id.Epoch(n), nil
}

// giveUp takes a disk that is closed over, clears all that it holds, and forgets
// its log.
func (h *Host) giveUp(ctx context.Context, d id.Disk) error {
	epoch, err := h.catalog.claimEpoch(ctx, d)
	if err != nil {
		return err
	}
	if _, err := h.node.Fence(ctx, &datanode.FenceRequest{Disk: d, Epoch: epoch}); err != nil {
		return err
	}
	if err := disk.Release(ctx, h.node, d, epoch); err != nil {
		return err
	}
	return h.node.DropLog(ctx, &datanode.DropLogRequest{Disk: d, Epoch: epoch})
}
