package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	// groupTimeMax bounds the wait for owners: each has others' groups before, and a change
	// that is under way.
	groupTimeMax = 2 * time.Second
	// groupLearnMax bounds the wait for owners to know what was made.
	groupLearnMax = 2 * time.Second
)

// createGroup is CreateSnapshots for disks of several hosts. Each owner marks its own,
// holds them up and says so; when all have, one transaction makes the snapshots' rows and
// deletes the group's, for which every owner waits. It is guarded by the owners'
// epochs, and needs the group's row: so it makes nothing when a disk has been taken over, or
// an owner has ended the group because it took too long.
func (h *Host) createGroup(ctx context.Context, spec *SnapshotSpec, now time.Time) ([]SnapshotInfo, error) {
	if n := len(spec.Disks); n > groupDisksMax {
		return nil, fmt.Errorf("%w: a snapshot of %d disks of several hosts: name at most %d", ErrInvalid, n, groupDisksMax)
	}
	select {
	case h.groups.asking <- struct{}{}:
		defer func() { <-h.groups.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.life.Done():
		return nil, ErrClosed
	}
	all, err := h.prepareGroup(ctx, spec, now)
	if err != nil {
		return nil, err
	}
	g, err := h.askGroup(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("snapshot: ask the disks' hosts: %w", err)
	}
	defer h.unaskGroup(g)
	marks, err := h.awaitMarks(ctx, g, all)
	if err == nil {
		err = h.recordGroup(context.WithoutCancel(ctx), g, all, marks)
	}
	if err == nil {
		h.awaitLearnt(g)
		return h.infos(all), nil
	}
	if errors.Is(err, errDoubt) {
		return nil, fmt.Errorf("record the snapshot: %w", err)
	}
	if eerr := h.endGroup(h.life, g, h.owning.hasLease); eerr != nil {
		h.log.Warn("a group snapshot was not ended: it ends with this host's session", "group", uint64(g.id), "err", eerr)
	}
	if errors.Is(err, ErrBusy) {
		err = fmt.Errorf("%w: nothing was made, try again", err)
	}
	return nil, fmt.Errorf("snapshot: %w", err)
}

// prepareGroup finds the disks, a name that is free on all of them, and numbers, which are
// above all that any host has used.
func (h *Host) prepareGroup(ctx context.Context, spec *SnapshotSpec, now time.Time) ([]*making, error) {
	var all []*making
	for _, name := range spec.Disks {
		e, err := h.open(name)
		var elsewhere *ElsewhereError
		if errors.As(err, &elsewhere) && elsewhere.Host != "" {
			e, err = h.named(name), nil
		}
		if err == nil && e == nil {
			err = ErrUnknownDisk
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot of disk %q: %w", name, err)
		}
		all = append(all, &making{e: e})
	}
	name, err := h.freeGroupName(ctx, spec.Name, now, all)
	if err != nil {
		return nil, err
	}
	first, err := h.catalog.take(ctx, nextSnap, uint64(len(all)))
	if err != nil {
		return nil, err
	}
	for i, m := range all {
		m.begin(spec, name, id.Snapshot(first)+id.Snapshot(i), all[0], now)
	}
	return all, nil
}

// freeGroupName is freeName where other hosts know the names.
func (h *Host) freeGroupName(ctx context.Context, name string, now time.Time, all []*making) (string, error) {
	chosen := name != ""
	for n := 1; ; n++ {
		if !chosen {
			if name = now.Format(snapshotNameTime); n > 1 {
				name = fmt.Sprintf("%s-%d", name, n)
			}
		}
		var taken *making
		for _, m := range all {
			_, revision, err := h.catalog.get(ctx, snapKey(m.e.rec.ID, name))
			if err != nil {
				return "", err
			}
			if revision != 0 {
				taken = m
				break
			}
		}
		switch {
		case taken == nil:
			return name, nil
		case chosen:
			return "", fmt.Errorf("disk %q, snapshot %q: %w", h.nameOf(taken.e), name, ErrExists)
		}
	}
}

// askGroup puts the group's row, under this host's lease: it goes with this host.
func (h *Host) askGroup(ctx context.Context, all []*making) (*group, error) {
	t := h.owning.term.Load()
	if t == nil || !t.valid() {
		return nil, ErrNoLease
	}
	row := groupRow{Host: h.opts.Name, Name: all[0].s.name, HoldMS: groupHoldTime.Milliseconds()}
	for _, m := range all {
		row.Disks = append(row.Disks, groupDisk{m.e.rec.ID, m.s.rec.ID})
	}
	value, err := row.marshal()
	if err != nil {
		return nil, err
	}
	h.groups.mu.Lock()
	g := h.groups.of(all[0].s.rec.ID)
	g.asked = true
	h.groups.mu.Unlock()
	key := groupKey(g.id)
	revision, err := h.catalog.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key}}, Puts: []datanode.Put{{Key: key, Value: value, Lease: t.lease}},
	}, key, value)
	if err != nil { // if it is there all the same, its owners end it
		h.groups.ended(g)
		h.unaskGroup(g)
		return nil, err
	}
	h.groups.mu.Lock()
	defer h.groups.mu.Unlock()
	if g.revision == 0 { // or else the watch was faster
		g.revision = revision
	}
	return g, nil
}

func (h *Host) unaskGroup(g *group) {
	h.groups.mu.Lock()
	defer h.groups.mu.Unlock()
	g.asked = false
	h.groups.drop(g)
}

// awaitMarks returns the marks of all disks when they are there.
func (h *Host) awaitMarks(ctx context.Context, g *group, all []*making) (map[id.Disk]groupMark, error) {
	var row groupRow
	for _, m := range all {
		row.Disks = append(row.Disks, groupDisk{Disk: m.e.rec.ID})
	}
	timer := time.NewTimer(groupTimeMax)
	defer timer.Stop()
	for {
		v := row.verdict(h.groups.answersTo(g))
		if v.refused != "" {
			return nil, fmt.Errorf("%w: %s", ErrBusy, v.refused)
		}
		if len(v.missing) == 0 {
			return v.marks, nil
		}
		select {
		case <-g.stirred:
		case <-g.over.Done():
			return nil, h.unanswered(v, all, groupHoldTime)
		case <-timer.C:
			return nil, h.unanswered(v, all, groupTimeMax)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-h.life.Done():
			return nil, ErrClosed
		}
	}
}

// unanswered says whose hosts have not marked their disks in time.
func (h *Host) unanswered(v groupVerdict, all []*making, after time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var who []string
	for _, d := range v.missing {
		for _, m := range all {
			if m.e.rec.ID != d {
				continue
			}
			host := h.owners[d].host
			if host == "" {
				host = h.opts.Name
			}
			who = append(who, fmt.Sprintf("host %s with disk %q", host, m.e.now.Name))
		}
	}
	return fmt.Errorf("%w: not all disks were marked within %v: no answer of %s", ErrBusy, after, strings.Join(who, ", "))
}

// recordGroup makes the marks snapshots, all or none, and ends the group.
func (h *Host) recordGroup(ctx context.Context, g *group, all []*making, marks map[id.Disk]groupMark) error {
	for _, m := range all {
		mark := marks[m.e.rec.ID]
		m.epoch = mark.Epoch
		if err := m.size(mark.Bytes); err != nil {
			return err
		}
	}
	txn := snapshotsTxn(all)
	txn.Compares = append(txn.Compares, datanode.Compare{Key: groupKey(g.id), Revision: g.revision})
	txn.Deletes = append(txn.Deletes, groupKey(g.id))
	first := txn.Puts[0]
	_, err := h.catalog.decide(ctx, txn, first.Key, first.Value)
	if err == nil {
		h.groups.ended(g)
		return nil
	}
	// Once the group's row is gone nothing comes of it any more: then it is known.
	if eerr := h.endGroup(h.life, g, h.owning.hasLease); eerr != nil {
		return fmt.Errorf("%w: %w", errDoubt, errors.Join(err, eerr))
	}
	return h.groupOutcome(ctx, txn, err)
}

// groupOutcome says what came of a transaction that would have ended a group, and got an
// error.
func (h *Host) groupOutcome(ctx context.Context, txn *datanode.RegistryTxn, err error) error {
	for i, put := range txn.Puts {
		value, revision, gerr := h.catalog.get(ctx, put.Key)
		switch {
		case gerr != nil:
			return fmt.Errorf("%w: %w", errDoubt, errors.Join(err, gerr))
		case i == 0 && bytes.Equal(value, put.Value):
			return nil
		case revision != 0 && errors.Is(err, datanode.ErrConflict):
			return fmt.Errorf("%s of the registry: %w", put.Key, ErrExists)
		}
	}
	switch {
	case errors.Is(err, datanode.ErrFenced):
		return fmt.Errorf("%w: a disk has got another host: %w", ErrBusy, err)
	case errors.Is(err, datanode.ErrConflict):
		return fmt.Errorf("%w: the disks were not all marked within %v: %w", ErrBusy, groupHoldTime, err)
	case errors.Is(err, datanode.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrTooMany, err)
	}
	return err
}

// awaitLearnt waits until the disks' hosts know their new snapshots, or have gone.
func (h *Host) awaitLearnt(g *group) {
	timer := time.NewTimer(groupLearnMax)
	defer timer.Stop()
	for len(h.groups.answersTo(g)) > 0 {
		select {
		case <-g.stirred:
		case <-timer.C:
			return
		case <-h.life.Done():
			return
		}
	}
}
