package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
)

// joinLoop takes part in groups, one after the other.
func (h *Host) joinLoop() {
	defer h.work.Done()
	for {
		select {
		case <-h.life.Done():
			return
		case g := <-h.groups.queue:
			if g.over.Err() == nil {
				h.join(g)
			}
		}
	}
}

// part is what a host has of a group.
type part struct {
	group  *group
	ours   []*export
	marks  []groupDisk // in the order of ours
	held   *disk.Held  // nil: nothing is held up
	answer groupAnswer
}

// join has this host's disks in a group marked, and holds them up until it is known what
// came of the group. No change of the host's part of the catalog comes between: the
// snapshots' rows are made by who asks.
func (h *Host) join(g *group) {
	p := &part{group: g}
	if g.row.Host == h.opts.Name && !h.groups.asks(g) { // it came when this host had given it up
		if err := h.endGroup(h.life, g, h.owning.hasLease); err != nil {
			h.log.Warn("a group snapshot that was given up was not ended", "group", uint64(g.id), "err", err)
		}
		return
	}
	if h.findPart(p); len(p.ours) == 0 && p.answer.Error == "" {
		return
	}
	turn, cancel := g.within(h.life)
	defer cancel()
	if err := h.beginChange(turn); err != nil {
		p.answer.Error = fmt.Sprintf("another change is under way: %v", err)
		h.takePart(turn, p)
		return
	}
	defer h.endChange()
	ctx, cancel := g.within(h.life)
	defer cancel()
	h.findPart(p) // some may have come or gone
	if p.answer.Error == "" && len(p.ours) > 0 {
		h.holdPart(ctx, p)
	}
	h.takePart(ctx, p)
}

// within returns a context for what an owner does in the time of a group, which ends with
// the group.
func (g *group) within(life context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(life, g.row.hold())
	stop := context.AfterFunc(g.over, cancel)
	return ctx, func() { stop(); cancel() }
}

// findPart finds the disks of a group that this host has, or why it cannot answer for
// one of them.
func (h *Host) findPart(p *part) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p.ours, p.marks, p.answer = nil, nil, groupAnswer{}
	for _, m := range p.group.row.Disks {
		e := h.byID[m.Disk]
		if e == nil || e.claimed == 0 {
			continue
		}
		err := e.err
		switch {
		case err != nil:
		case e.disk.Err() != nil:
			err = e.disk.Err()
		case h.byName[e.now.Name] != e:
			err = ErrUnknownDisk // it is being removed
		case h.snapBytes > snapshotRowsBytesMax:
			err = ErrTooMany
		case e.term == nil || !e.term.valid():
			err = ErrNoLease
		}
		if err != nil {
			p.answer.Error = fmt.Sprintf("disk %q: %v", e.now.Name, err)
			return
		}
		p.ours, p.marks = append(p.ours, e), append(p.marks, m)
	}
}

// holdPart marks the disks and holds them up.
func (h *Host) holdPart(ctx context.Context, p *part) {
	var requests []disk.MarkRequest
	for i, e := range p.ours {
		requests = append(requests, disk.MarkRequest{Disk: e.disk, Snapshot: p.marks[i].Snapshot})
	}
	held, err := disk.HoldAll(ctx, requests, p.group.id)
	if err != nil {
		p.answer.Error = err.Error()
		return
	}
	p.held = held
	for i, e := range p.ours {
		p.answer.Marks = append(p.answer.Marks, groupMark{Disk: e.rec.ID, Epoch: e.claimed, Bytes: held.Bytes[i]})
	}
}

// takePart answers, and ends the host's part when the group is over, or is ended by this
// host because it takes too long.
func (h *Host) takePart(ctx context.Context, p *part) {
	g := p.group
	if err := h.catalog.answerGroup(ctx, h.opts.Name, h.owning.term.Load(), p); err == nil {
		<-ctx.Done() // the group's end, or the time's
	}
	needed := p.valid
	if p.held == nil { // and yet no late answer must stay
		needed = h.owning.hasLease
	}
	if err := h.endGroup(h.life, g, needed); err != nil {
		h.log.Warn("what came of a group snapshot is not known", "group", uint64(g.id), "err", err)
		if p.held != nil {
			p.held.Abandon()
		}
		return
	}
	if p.held != nil {
		p.held.Release()
		for i, e := range p.ours {
			h.learnSnapshot(e, g.row.Name, p.marks[i])
		}
	}
	h.again(func(ctx context.Context) error { return h.catalog.withdrawAnswer(ctx, g.id, h.opts.Name) })
}

// valid reports whether some disk of the part may still reply, and so must know the
// group's outcome.
func (p *part) valid() bool {
	return slices.ContainsFunc(p.ours, func(e *export) bool { return e.term.valid() })
}

// endGroup returns when a group's row is gone, which it deletes: whatever somebody has under
// way for the group, nothing comes of it any more. It tries for as long as needed says and
// ctx lives, and once then.
func (h *Host) endGroup(ctx context.Context, g *group, needed func() bool) error {
	for {
		if g.over.Err() != nil {
			return nil
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.owning.callTime())
		err := h.catalog.deleteGroup(call, g)
		cancel()
		if err == nil {
			h.groups.ended(g)
			return nil
		}
		if ctx.Err() != nil || !needed() {
			return err
		}
		select {
		case <-time.After(h.owning.retry()):
		case <-g.over.Done():
		case <-ctx.Done():
		}
	}
}

// again makes a call until it succeeds or the host closes.
func (h *Host) again(do func(context.Context) error) {
	for h.life.Err() == nil {
		ctx, cancel := context.WithTimeout(h.life, h.owning.callTime())
		err := do(ctx)
		if cancel(); err == nil {
			return
		}
		select {
		case <-time.After(h.owning.retry()):
		case <-h.life.Done():
		}
	}
}

// learnSnapshot has a disk know a snapshot that a group made, if it did. Until that is
// known no pass forgets the mark.
func (h *Host) learnSnapshot(e *export, name string, m groupDisk) {
	h.again(func(ctx context.Context) error {
		if !h.current(e) {
			return nil
		}
		value, revision, err := h.catalog.get(ctx, snapKey(m.Disk, name))
		if err != nil {
			return err
		}
		if revision != 0 {
			rec, err := parseSnapshotRecord(value)
			if err != nil {
				h.log.Error("a snapshot is not understood", "disk", h.nameOf(e), "snapshot", name, "err", err)
				return nil
			}
			if rec.ID == m.Snapshot {
				h.adoptSnapshot(e, snapshotRow{name, revision, rowBytes(snapKey(m.Disk, name), value), *rec})
			}
		}
		e.disk.Settled(m.Snapshot)
		return nil
	})
}

// adoptSnapshot takes a snapshot's row that somebody else has made.
func (h *Host) adoptSnapshot(e *export, row snapshotRow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID[e.rec.ID] != e || e.snaps[row.name] != nil {
		return // who opens it next reads its rows
	}
	e.snaps[row.name] = &snapshot{snapshotRow: row}
	h.snapBytes += row.bytes
}

// answerGroup puts a host's answer to a group that is there still, under its lease.
// ErrConflict: it is not.
func (c catalog) answerGroup(ctx context.Context, host string, t *term, p *part) error {
	if t == nil {
		return ErrNoLease
	}
	value, err := p.answer.marshal()
	if err != nil {
		return err
	}
	key := groupAnswerKey(p.group.id, host)
	txn := &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: groupKey(p.group.id), Revision: p.group.revision}, {Key: key}},
		Puts:     []datanode.Put{{Key: key, Value: value, Lease: t.lease}},
	}
	for _, m := range p.answer.Marks {
		txn.Guards = append(txn.Guards, datanode.Guard{Disk: m.Disk, Epoch: m.Epoch})
	}
	_, err = c.decide(ctx, txn, key, value)
	return err
}

func (c catalog) withdrawAnswer(ctx context.Context, g id.Snapshot, host string) error {
	err := c.deleteRow(ctx, groupAnswerKey(g, host))
	if errors.Is(err, datanode.ErrConflict) {
		return nil // it went with its lease
	}
	return err
}

// deleteGroup deletes a group's row, or finds it gone.
func (c catalog) deleteGroup(ctx context.Context, g *group) error {
	return c.deleteRow(ctx, groupKey(g.id))
}

// deleteRow deletes a row as it is now, or finds it gone. Errors: decide's.
func (c catalog) deleteRow(ctx context.Context, key string) error {
	now, err := c.getEntry(ctx, key)
	if err != nil || now == nil {
		return err
	}
	_, err = c.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: key, Revision: now.Revision}}, Deletes: []string{key},
	}, key, nil)
	return err
}
