package host

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// keyWarden has the name of the host that reclaims for all, under its lease. A
// warden that lost its lease and does not know it yet harms nobody: the mover's
// epoch, which only the warden gets, fences it, and what it says of the index is true
// whoever says it.
const keyWarden = "warden"

// wardenship is the time for which a host is the warden.
type wardenship struct {
	term     *term
	revision uint64 // of keyWarden
}

// beWarden makes this host the warden if there is none, and reports whether it is
// the one.
func (h *Host) beWarden(ctx context.Context) (bool, error) {
	t := h.owning.term.Load()
	if t == nil || !t.valid() {
		return false, nil
	}
	if h.isWarden(t) {
		return true, nil
	}
	key := []byte(h.opts.Name)
	now, err := h.catalog.getEntry(ctx, keyWarden)
	if err != nil {
		return false, err
	}
	w := &wardenship{term: t}
	if now == nil {
		w.revision, err = h.catalog.decide(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: keyWarden}}, Puts: []datanode.Put{{Key: keyWarden, Value: key, Lease: t.lease}},
		}, keyWarden, key)
		if errors.Is(err, datanode.ErrConflict) || errors.Is(err, datanode.ErrLeaseLost) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("become the warden: %w", err)
		}
	} else if w.revision = now.Revision; now.Lease != t.lease {
		return false, nil
	}
	h.wardenOf.Store(w)
	wake(h.rebuild.wake)
	h.log.Info("this host reclaims for the pool", "host", h.opts.Name)
	return true, nil
}

// isWarden reports whether this host became the warden in that term.
func (h *Host) isWarden(t *term) bool {
	w := h.wardenOf.Load()
	return w != nil && w.term == t
}

// state notes in the registry that a disk has stated what it needs to this
// incarnation of the index.
func (h *Host) state(ctx context.Context, e *export, incarnation uint64) error {
	key, value := statedKey(e.rec.ID), strconv.AppendUint(nil, incarnation, 10)
	_, err := h.catalog.decide(ctx, &datanode.RegistryTxn{
		Guards: e.guards(), Puts: []datanode.Put{{Key: key, Value: value}},
	}, key, value)
	if err != nil {
		return fmt.Errorf("note that disk %q has stated what it needs: %w", h.nameOf(e), err)
	}
	return nil
}

// stated returns the incarnation of the index to which each disk has stated last
// what it needs.
func (c catalog) stated(ctx context.Context) (map[id.Disk]uint64, error) {
	out := make(map[id.Disk]uint64)
	for after := ""; ; {
		reply, err := c.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: statedPrefix, After: after})
		if err != nil {
			return nil, fmt.Errorf("list what disks have stated: %w", err)
		}
		for _, e := range reply.Entries {
			d, err := diskOfKey(e.Key, statedPrefix)
			if err != nil {
				return nil, err
			}
			if out[d], err = strconv.ParseUint(string(e.Value), 10, 64); err != nil {
				return nil, fmt.Errorf("%s of the registry: %w", e.Key, err)
			}
			after = e.Key
		}
		if !reply.More || len(reply.Entries) == 0 {
			return out, nil
		}
	}
}

// noteFree notes a disk that no host has.
func (h *Host) noteFree(d id.Disk) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.free[d]; !known {
		h.free[d] = time.Now()
	}
}

// tend gives back the space of removed disks for which that failed before, or whose host
// died meanwhile. The warden also adopts the disks that nobody has had for a TTL, so that
// their logs are destaged. With all it does not wait.
func (h *Host) tend(ctx context.Context, all bool) error {
	return errors.Join(h.adoptFree(ctx, all), h.releaseLeftover(ctx))
}

// adoptFree is tend's first half.
func (h *Host) adoptFree(ctx context.Context, all bool) error {
	if h.opts.Sole {
		return nil
	}
	if is, err := h.beWarden(ctx); err != nil || !is {
		return err
	}
	h.mu.Lock()
	var due []id.Disk
	for d, since := range h.free {
		if all || time.Since(since) >= h.opts.LeaseTTL {
			due = append(due, d)
			delete(h.free, d)
		}
	}
	h.mu.Unlock()
	var errs []error
	for _, d := range due {
		if err := h.adopt(ctx, d); err != nil {
			errs = append(errs, err)
			h.noteFree(d)
		}
	}
	return errors.Join(errs...)
}

// adopt takes a disk that nobody has, or gives up what one that is being removed
// holds.
func (h *Host) adopt(ctx context.Context, d id.Disk) error {
	row, err := h.catalog.ownerOf(ctx, d)
	if err != nil || row != nil {
		return err
	}
	rec, err := h.catalog.diskRecord(ctx, d)
	if err != nil || rec == nil {
		return err
	}
	if !rec.Removing {
		h.owning.send(owner.Adopt{Disk: d})
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leftover[d] == nil {
		h.leftover[d] = &leftover{rec: *rec}
	}
	return nil
}
