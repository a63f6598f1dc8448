package host

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/reclaim"
)

// keyMover has the disk number of the pool's mover, in decimal. It is no disk of
// the catalog: it has no map, and holds targets until the disks that need them do.
const keyMover = "mover"

// moverDisk returns the mover's number, 0 if the pool has none yet; with create it
// is made.
func (c catalog) moverDisk(ctx context.Context, create bool) (id.Disk, error) {
	for range takesMax {
		value, revision, err := c.get(ctx, keyMover)
		if err != nil {
			return 0, err
		}
		if revision != 0 {
			n, err := strconv.ParseUint(string(value), 10, 63)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("%s of the registry is %q, no number of a disk", keyMover, value)
			}
			return id.Disk(n), nil
		}
		if !create {
			return 0, nil
		}
		n, err := c.take(ctx, nextDisk, 1)
		if err != nil {
			return 0, err
		}
		err = c.commit(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: keyMover}},
			Puts:     []datanode.Put{{Key: keyMover, Value: strconv.AppendUint(nil, n, 10)}},
		})
		if err != nil && !errors.Is(err, datanode.ErrConflict) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%s of the registry: %w", keyMover, datanode.ErrConflict)
}

// keeper says whose index has a segment, where there are several.
func (h *Host) keeper() reclaim.Keeper {
	if several, ok := h.node.(datanode.Several); ok {
		return several.Keeper
	}
	return nil
}

// mover returns the session's mover, nil if the pool never had one and create is
// not set. What movers of earlier sessions hold it gives up at once, or after a
// rebuild of the index when the disks have said what they need of it (see
// completeIndex). It is called under lockSweep, by the warden: each has an epoch of
// its own.
func (h *Host) mover(ctx context.Context, index datanode.IndexStatus, create bool) (*reclaim.Mover, error) {
	c, w := &h.cleaner, h.wardenOf.Load()
	if c.moverOf != w {
		c.mover = nil
	}
	if c.mover == nil {
		if !create && c.released {
			return nil, nil
		}
		d, err := h.catalog.moverDisk(ctx, create)
		if err != nil {
			return nil, err
		}
		if d == 0 {
			c.released = index.Complete
			return nil, nil
		}
		epoch, err := h.catalog.claimMover(ctx, d, w)
		if err != nil {
			return nil, err
		}
		if _, err := h.node.Fence(ctx, &datanode.FenceRequest{Disk: d, Epoch: epoch}); err != nil {
			return nil, fmt.Errorf("fence the mover, disk %d: %w", d, err)
		}
		c.mover = &reclaim.Mover{
			Index: h.node, Stripes: h.pool.Stripes, Opener: h.pool.Opener, Geometry: h.pool.Geometry,
			Number: h.pool.Number, Disk: d, Epoch: epoch, Keeper: h.keeper(),
		}
		c.moverOf = w
	}
	if index.Complete && !c.released {
		if err := c.mover.Release(ctx); err != nil {
			if errors.Is(err, datanode.ErrFenced) {
				c.mover = nil // the next call claims it anew
			}
			return nil, err
		}
		c.released = true
	}
	return c.mover, nil
}

// claimMover makes a new epoch of the mover's disk for who is still the warden: one
// that another host follows, and that does not know it yet, would fence that one.
func (c catalog) claimMover(ctx context.Context, d id.Disk, w *wardenship) (id.Epoch, error) {
	revision, epoch, err := c.counter(ctx, datanode.EpochKey(d))
	if err != nil {
		return 0, err
	}
	err = c.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: keyWarden, Revision: w.revision}, {Key: datanode.EpochKey(d), Revision: revision}},
		Puts:     []datanode.Put{{Key: datanode.EpochKey(d), Value: datanode.EpochValue(id.Epoch(epoch))}},
	})
	if err != nil {
		return 0, fmt.Errorf("claim an epoch for the mover, as the warden: %w", err)
	}
	return id.Epoch(epoch), nil
}

// releaseMover has the mover give up what it holds in an index that is about to be
// called complete: every disk has stated its needs.
func (h *Host) releaseMover(ctx context.Context) error {
	m, err := h.mover(ctx, datanode.IndexStatus{}, false)
	if err != nil || m == nil {
		return err
	}
	return m.Release(ctx)
}
