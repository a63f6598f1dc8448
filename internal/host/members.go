package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/rack"
	"plinth/internal/stripe"
)

const (
	// changeTime is how often the host that carries a change of the data nodes out looks
	// for whom it waits, restTime how often it looks whether there is one.
	changeTime = 250 * time.Millisecond
	restTime   = 10 * time.Second
)

// Changing carries changes of data nodes and layouts on: package rack says how.
type Changing interface {
	Learn(ctx context.Context) (*stripe.Layouts, error)
	Settle(ctx context.Context) error
	Advance(ctx context.Context, hosts map[string]uint64) (did bool, waits string, err error)
	Rebalance(ctx context.Context, on bool) error
}

// Members is a node that is made of several which may change.
type Members interface {
	datanode.Several
	Changing
	AddNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error
	DrainNode(ctx context.Context, name string, hosts map[string]uint64) error
	RemoveNode(ctx context.Context, name string, addresses []string, hosts map[string]uint64) error
}

// changes is the node as one that may change.
func (h *Host) changes() Changing {
	if m, ok := h.node.(Members); ok {
		return m
	}
	return rack.Single{Node: h.node}
}

// layouts are the newest that this host has learnt.
func (h *Host) layouts() *stripe.Layouts { return h.pool.Stripes.Layouts() }

// learn takes over what the registry says of data nodes and layouts, and then tells in the
// host's row that it has.
func (h *Host) learn(ctx context.Context) error {
	m := h.changes()
	l, err := m.Learn(ctx)
	if err != nil {
		return fmt.Errorf("learn of the pool's data nodes: %w", err)
	}
	if l.Version > h.layouts().Version {
		if err := h.pool.Stripes.SetLayouts(l); err != nil {
			return err
		}
		if err := m.Settle(ctx); err != nil {
			return err
		}
		h.refreshHealth(ctx)
		h.log.Info("the pool's data nodes or layouts have changed", "version", l.Version)
	}
	h.learnt.Store(l.Version)
	return h.owning.tellLearnt(ctx)
}

// tellLearnt has the host's row say which layouts it has learnt. Of a session that begins
// meanwhile it may say less, until the next call.
func (o *owning) tellLearnt(ctx context.Context) error {
	t := o.term.Load()
	if t == nil {
		return nil
	}
	key := hostKey(o.opts.Name)
	now, err := o.catalog.getEntry(ctx, key)
	if err != nil || now == nil || now.Lease != t.lease {
		return err
	}
	r, err := parseHostRecord(&datanode.RegistryEntry{Key: key, Value: now.Value, Lease: now.Lease})
	v := o.host.learnt.Load()
	if err != nil || r.Layouts >= v {
		return err
	}
	r.Layouts = v
	row, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return o.catalog.commit(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key, Revision: now.Revision}}, Puts: []datanode.Put{{Key: key, Value: row, Lease: t.lease}},
	})
}

// membersLoop learns of changes of the data nodes, and carries them out in the host that is
// the warden.
func (h *Host) membersLoop() {
	defer h.work.Done()
	m := h.changes()
	timer := time.NewTimer(0)
	defer timer.Stop()
	said := ""
	for {
		select {
		case <-h.life.Done():
			return
		case <-h.changed:
		case <-timer.C:
		}
		err := h.learn(h.life)
		wait := restTime
		if err == nil {
			wait, err = h.advance(m)
		}
		text := ""
		if err != nil {
			text, wait = err.Error(), changeTime
		}
		if text != "" && text != said && h.life.Err() == nil {
			h.log.Warn("a change of the data nodes is not carried on, will retry", "err", err)
		}
		said = text
		timer.Reset(wait)
	}
}

// advance carries a change on and returns when to look again.
func (h *Host) advance(m Changing) (time.Duration, error) {
	warden, err := h.beWarden(h.life)
	if err != nil || !warden {
		return restTime, err
	}
	hosts, err := h.learntBy(h.life)
	if err != nil {
		return 0, err
	}
	did, waits, err := m.Advance(h.life, hosts)
	h.changeWaits.Store(&waits)
	switch {
	case err != nil:
		return 0, err
	case did:
		return 0, nil
	case waits != "":
		return changeTime, nil
	}
	return restTime, nil
}

// learntBy tells which version of the layouts each host that lives has learnt.
func (h *Host) learntBy(ctx context.Context) (map[string]uint64, error) {
	rows, err := h.catalog.hosts(ctx, hostPrefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(rows))
	for _, r := range rows {
		out[r.name] = r.Layouts
	}
	return out, nil
}

// waitsFor says for whom a change of the data nodes waits, as far as this host knows.
func (h *Host) waitsFor(ctx context.Context) string {
	hosts, err := h.learntBy(ctx)
	if err != nil {
		return err.Error()
	}
	var late []string
	for name, v := range hosts {
		if v < h.layouts().Version {
			late = append(late, name)
		}
	}
	if len(late) > 0 {
		slices.Sort(late)
		return "hosts that have not learnt of it yet: " + strings.Join(late, ", ")
	}
	if text := h.changeWaits.Load(); text != nil && h.isWarden(h.owning.term.Load()) {
		return *text
	}
	return ""
}

// wakeMembers has the change that this host has made seen at once.
func (h *Host) wakeMembers() { wake(h.changed) }

const (
	// changeTriesMax bounds how often a change of the nodes is tried that others come before.
	changeTriesMax = 8
	// lateTime is how long a change waits for hosts that are behind.
	lateTime = 5 * time.Second
)

// changeNodes makes a change of the data nodes, anew if another one came first, as the warden
// makes some of its own, or if a host has not learnt of that yet. Errors: ErrNodes.
func (h *Host) changeNodes(ctx context.Context, change func(m Members, hosts map[string]uint64) error) error {
	m, ok := h.node.(Members)
	if !ok {
		return fmt.Errorf("%w: the pool has one data node, in this process", ErrNodes)
	}
	defer h.wakeMembers()
	began := time.Now()
	for tries := 1; ; {
		hosts, err := h.learntBy(ctx)
		if err != nil {
			return err
		}
		switch err = change(m, hosts); {
		case errors.Is(err, datanode.ErrConflict) && tries < changeTriesMax:
			tries++
		case errors.Is(err, rack.ErrLate) && time.Since(began) < lateTime:
			select {
			case <-time.After(changeTime):
			case <-ctx.Done():
				return err
			}
		default:
			return err
		}
	}
}

// AddNode has a data node at addresses take part in the pool, or one that is being drained
// again: then they may be left out. It returns when that is recorded; Nodes tells how far
// it is. Errors: ErrNodes.
func (h *Host) AddNode(ctx context.Context, name string, addresses []string) error {
	return h.changeNodes(ctx, func(m Members, hosts map[string]uint64) error { return m.AddNode(ctx, name, addresses, hosts) })
}

// DrainNode has what a data node has moved to the others. It returns when that is recorded.
// Errors: ErrNodes.
func (h *Host) DrainNode(ctx context.Context, name string) error {
	return h.changeNodes(ctx, func(m Members, hosts map[string]uint64) error {
		if _, err := h.node.Status(ctx); err != nil { // what each has is as of the last one
			return err
		}
		return m.DrainNode(ctx, name, hosts)
	})
}

// RemoveNode takes a data node out that was drained. Errors: ErrNodes.
func (h *Host) RemoveNode(ctx context.Context, name string, addresses []string) error {
	return h.changeNodes(ctx, func(m Members, hosts map[string]uint64) error { return m.RemoveNode(ctx, name, addresses, hosts) })
}

// ErrNodes says that the pool's data nodes cannot be changed so; the text says why, and what to do.
var ErrNodes = rack.ErrRefused

// drains reports whether a data node or a spindle is being drained.
func (h *Host) drains() bool {
	return h.layouts().Any(stripe.Leaving) || len(h.pool.Stripes.Draining()) > 0
}
