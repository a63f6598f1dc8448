package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

const (
	wantPrefix     = "want/"
	wantRowVersion = 1
	// keepTime is how long a disk that was just taken is kept from other hosts, so that
	// those do not toss it about. People may move it at once.
	keepTime = time.Second
	// moveTimeMax bounds how long a move waits for the disk to be served.
	moveTimeMax = time.Minute
	// movePeriod is how often a move looks.
	movePeriod = 50 * time.Millisecond
)

func wantKey(d id.Disk) string { return fmt.Sprintf("%s%016x", wantPrefix, uint64(d)) }

// wantRow is a wish for a disk, as JSON in the registry until it is fulfilled.
type wantRow struct {
	Version int    `json:"version"`
	Host    string `json:"host"` // that shall serve it
	// Moved: somebody has asked for a move; else the host itself wants it.
	Moved bool `json:"moved,omitempty"`
}

func (r wantRow) marshal() ([]byte, error) {
	r.Version = wantRowVersion
	return json.Marshal(&r)
}

func parseWantRow(value []byte) (*wantRow, error) {
	var r wantRow
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, err
	}
	if r.Version != wantRowVersion {
		return nil, fmt.Errorf("wish of version %d: a newer plinth wrote it", r.Version)
	}
	return &r, nil
}

// seeWants and seeWant take wishes for disks.
func (h *Host) seeWants(all []datanode.RegistryEntry, _ uint64) {
	for i := range all {
		h.seeWant(&datanode.RegistryEvent{Key: all[i].Key, Value: all[i].Value})
	}
}

func (h *Host) seeWant(e *datanode.RegistryEvent) {
	d, err := diskOfKey(e.Key, wantPrefix)
	if err != nil || e.Deleted {
		return
	}
	row, err := parseWantRow(e.Value)
	if err != nil {
		h.log.Warn("a wish is not understood", "key", e.Key, "err", err)
		return
	}
	if row.Host == h.opts.Name {
		h.owning.send(owner.Want{Disk: d})
		if h.has(d) { // or else it is taken back when the disk is served
			h.owning.wish(func(ctx context.Context) error { return h.owning.fulfilled(ctx, d) })
		}
		return
	}
	h.work.Add(1)
	go func() {
		defer h.work.Done()
		h.giveAway(d, row.Moved)
	}()
}

// giveAway gives a disk to whoever wants it, unless clients are connected that would
// lose it. It does so too for one that it does not know to have.
func (h *Host) giveAway(d id.Disk, moved bool) {
	h.mu.Lock()
	e := h.byID[d]
	var wait time.Duration
	if e != nil && e.claimed != 0 && !moved {
		wait = time.Until(e.installed.Add(keepTime))
	}
	h.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-h.life.Done():
			return
		}
	}
	if !h.wantedElsewhere(d) {
		return
	}
	if e != nil && e.claimed != 0 {
		h.awaitGrowing(e)
		if err := h.bound(e); err != nil {
			h.log.Info("a disk that another host wants is in use", "disk", h.nameOf(e), "err", err)
			return
		}
	}
	h.owning.send(owner.Unwant{Disk: d})
}

// bound returns why a disk cannot leave: ErrInUse, where its clients cannot follow.
func (h *Host) bound(e *export) error {
	if h.opts.Peer != "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.unused()
}

// wantedElsewhere reports whether another host that has a session still wants a disk,
// or may.
func (h *Host) wantedElsewhere(d id.Disk) bool {
	ctx, cancel := context.WithTimeout(h.life, h.owning.callTime())
	defer cancel()
	now, err := h.catalog.getEntry(ctx, wantKey(d))
	if err != nil || now == nil {
		return err != nil
	}
	row, err := parseWantRow(now.Value)
	if err != nil || row.Host == h.opts.Name {
		return false
	}
	has, err := h.catalog.hostRecord(ctx, row.Host)
	return err != nil || has != nil
}

// awaitGrowing waits until a clone has a checkpoint of its own, and all clones of the
// disk: until then both must be at one host.
func (h *Host) awaitGrowing(e *export) {
	for {
		h.mu.Lock()
		grown := h.growing(e)
		if c := h.clones[e.rec.ID]; grown == nil && c != nil && c.grown != nil {
			select {
			case <-c.grown:
			default:
				grown = c.grown
			}
		}
		h.mu.Unlock()
		if grown == nil {
			return
		}
		select {
		case <-grown:
		case <-h.life.Done():
			return
		}
	}
}

// MoveDisk has another host serve a disk, or this one, and returns when it does.
// Errors: ErrUnknownDisk, ErrInvalid for a host that has no session, ErrInUse while
// clients are connected that could not follow.
func (h *Host) MoveDisk(ctx context.Context, name, to string) error {
	e := h.named(name)
	if e == nil {
		return fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	if e.claimed != 0 && to == h.opts.Name {
		return nil
	}
	if e.claimed != 0 {
		if err := h.bound(e); err != nil {
			return fmt.Errorf("disk %q: %w", name, err)
		}
	}
	d := e.rec.ID
	has, err := h.catalog.hostRecord(ctx, to)
	if err != nil || has == nil {
		return errors.Join(err, fmt.Errorf("%w host %q: it has no session", ErrInvalid, to))
	}
	if has.Peer == "" && h.opts.Peer != "" {
		return fmt.Errorf("%w host %q: it serves no peers", ErrInvalid, to)
	}
	wish, err := wantRow{Host: to, Moved: true}.marshal()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, moveTimeMax)
	defer cancel()
	key := wantKey(d)
	if err := h.catalog.commit(ctx, &datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: wish}}}); err != nil {
		return fmt.Errorf("move disk %q: %w", name, err)
	}
	for {
		// Whoever has it takes the wish back when the disk is served.
		value, _, err := h.catalog.get(ctx, key)
		if err == nil && !bytes.Equal(value, wish) {
			row, err := h.catalog.ownerOf(ctx, d)
			if err == nil && row != nil && row.Host == to {
				return nil
			}
			if err != nil || value == nil {
				return errors.Join(err, fmt.Errorf("disk %q: %w: something else was wanted meanwhile", name, ErrBusy))
			}
		}
		select {
		case <-time.After(movePeriod):
		case <-ctx.Done():
			return fmt.Errorf("disk %q was not moved to host %s: %w", name, to, errors.Join(err, ErrBusy, ctx.Err()))
		case <-h.life.Done():
			return ErrClosed
		}
	}
}

// fulfilled takes the wish for a disk back that this host serves now.
func (o *owning) fulfilled(ctx context.Context, d id.Disk) error {
	now, err := o.catalog.getEntry(ctx, wantKey(d))
	if err != nil || now == nil {
		return err
	}
	if row, err := parseWantRow(now.Value); err != nil || row.Host != o.opts.Name {
		return err
	}
	return o.catalog.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: wantKey(d), Revision: now.Revision}}, Deletes: []string{wantKey(d)},
	})
}

// ask puts a wish for a disk, unless it is there.
func (o *owning) ask(ctx context.Context, d id.Disk) error {
	now, err := o.catalog.getEntry(ctx, wantKey(d))
	if err != nil {
		return err
	}
	wish, err := wantRow{Host: o.opts.Name}.marshal()
	if err != nil {
		return err
	}
	var revision uint64
	if now != nil {
		revision = now.Revision
		if row, err := parseWantRow(now.Value); err == nil && row.Host == o.opts.Name {
			wish = now.Value
		}
	}
	// It is put again when it was not heeded: the owner sees each put.
	return o.catalog.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: wantKey(d), Revision: revision}},
		Puts:     []datanode.Put{{Key: wantKey(d), Value: wish}},
	})
}
