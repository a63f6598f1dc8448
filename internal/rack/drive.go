package rack

import (
	"context"
	"errors"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
)

// step gives the machine an event, and begins what it says.
func (l *diskLog) step(e logset.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over != nil {
		return
	}
	for _, a := range l.machine.Step(time.Since(l.rack.began), e) {
		l.carry(a)
	}
	if at, ok := l.machine.Wake(); ok && l.over == nil {
		wait := max(at-time.Since(l.rack.began), time.Millisecond)
		if l.timer == nil {
			l.timer = time.AfterFunc(wait, func() { l.step(nil) })
		} else {
			l.timer.Reset(wait)
		}
	}
}

// carry begins what an action asks for. mu is held.
func (l *diskLog) carry(a logset.Action) {
	switch a.Do {
	case logset.Serve:
		l.from = a.From
		close(l.served)
	case logset.Ack:
		close(l.waiting[a.Op])
		delete(l.waiting, a.Op)
	case logset.End:
		err := a.Err
		if errors.Is(err, logset.ErrNoReplica) {
			err = datanode.Errorf(datanode.ErrOutcome, "the log of disk %d, epoch %d: %v", l.disk, l.epoch, err)
		} else {
			err = datanode.Errorf(datanode.ErrFenced, "the log of disk %d, epoch %d: %v", l.disk, l.epoch, err)
		}
		l.endLocked(err)
	case logset.Fence:
		l.begin(func() logset.Event { return l.join(a) })
	case logset.Read:
		l.begin(func() logset.Event { return l.readRow(a) })
	case logset.Commit:
		l.begin(func() logset.Event { return l.commitRow(a) })
	case logset.Equalize:
		l.begin(func() logset.Event {
			err := l.equalize(a)
			if err != nil && l.ctx.Err() == nil {
				l.rack.log.Warn("a node cannot take part in a disk's log yet", "disk", l.disk, "node", a.Node, "err", err)
			}
			return logset.Equalized{Call: a.Call, Node: a.Node, Outcome: outcomeOf(err)}
		})
	}
}

// begin makes a call beside the log and tells the machine what came of it. An Equalize
// that succeeded has told it already.
func (l *diskLog) begin(do func() logset.Event) {
	l.work.Add(1)
	go func() {
		defer l.work.Done()
		if e := do(); e != nil {
			l.step(e)
		}
	}()
}

// join fences a member and asks what it has. A machine that was booted anew meanwhile
// is asked again later.
func (l *diskLog) join(a logset.Action) logset.Event {
	m, failed := l.rack.numbered(a.Node), logset.Fenced{Call: a.Call, Node: a.Node, Outcome: logset.Failed}
	var before, after *datanode.Status
	var reply *datanode.JoinLogReply
	err := m.call(l.ctx, l.rack.opts.CallTime, func(ctx context.Context) (err error) {
		if before, err = m.Node.Status(ctx); err != nil { // the run may change until the second one
			return err
		}
		if reply, err = m.fence(ctx, l.disk, l.epoch); err != nil {
			return err
		}
		if reply, err = l.raise(ctx, m, reply); err != nil {
			return err
		}
		after, err = m.Node.Status(ctx)
		return err
	})
	switch {
	case errors.Is(err, datanode.ErrFenced):
		failed.Outcome = logset.Overtaken
		return failed
	case err != nil || before.BootID != after.BootID:
		return failed
	}
	j := joined{before.BootID, logset.Ends{First: reply.First, End: reply.End, Turn: reply.Turn}, reply.Previous}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs[a.Node] = j.boot
	if _, again := l.joined[a.Node]; !again {
		l.joined[a.Node] = j
	}
	return logset.Fenced{Call: a.Call, Node: a.Node, Boot: j.boot, Ends: j.ends}
}

// raise brings a member's streams to the floor of the fence: what is below was
// superseded where the log was lost.
func (l *diskLog) raise(ctx context.Context, m *member, has *datanode.JoinLogReply) (*datanode.JoinLogReply, error) {
	var next [datanode.Streams]id.Pos
	for s, floor := range l.floor {
		if floor > has.End[s] {
			next[s] = floor
		}
	}
	if next == [datanode.Streams]id.Pos{} {
		return has, nil
	}
	err := m.Node.ResetLog(ctx, &datanode.ResetLogRequest{Disk: l.disk, Epoch: l.epoch, Turn: has.Turn, Next: next})
	if err != nil {
		return nil, err
	}
	reply, err := m.Node.JoinLog(ctx, &datanode.JoinLogRequest{Disk: l.disk, Epoch: l.epoch})
	if err == nil {
		reply.Previous = has.Previous
	}
	return reply, err
}

// fence makes an epoch of a disk the newest at a member, if this rack has not done so.
// An epoch is claimed once: ErrFenced if the member has it of somebody else.
func (m *member) fence(ctx context.Context, d id.Disk, e id.Epoch) (*datanode.JoinLogReply, error) {
	m.mu.Lock()
	again := m.tried[d] == e
	m.tried[d] = e
	m.mu.Unlock()
	reply, err := m.Node.JoinLog(ctx, &datanode.JoinLogRequest{Disk: d, Epoch: e})
	if err != nil {
		return nil, err
	}
	if reply.Previous == e && !again {
		return nil, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d at node %d", d, e, m.Number)
	}
	m.mu.Lock()
	m.fenced[d] = max(e, m.fenced[d])
	m.mu.Unlock()
	return reply, nil
}

// under makes sure that a member was fenced with the epoch of the disk's owner here,
// before a call under it (I11). Other owners' calls it judges itself.
func (r *Rack) under(ctx context.Context, m *member, d id.Disk, e id.Epoch) error {
	m.mu.Lock()
	has := m.fenced[d]
	m.mu.Unlock()
	if has == e {
		return nil
	}
	r.mu.Lock()
	l := r.logs[d]
	r.mu.Unlock()
	if l == nil || l.epoch < e {
		return nil
	}
	if l.epoch > e {
		return datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", d, e, l.epoch)
	}
	_, err := m.fence(ctx, d, e)
	return err
}

func (l *diskLog) readRow(a logset.Action) logset.Event {
	ctx, cancel := context.WithTimeout(l.ctx, l.rack.opts.CallTime)
	defer cancel()
	reply, err := l.rack.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: rowKey(l.disk)})
	if errors.Is(err, datanode.ErrNotFound) {
		return logset.RowRead{Call: a.Call}
	}
	var row logset.Row
	if err == nil {
		row, err = ParseRow(reply.Value)
	}
	if err != nil {
		l.rack.log.Warn("a disk's log set cannot be read", "disk", l.disk, "err", err)
		return logset.RowRead{Call: a.Call, Outcome: outcomeOf(err)}
	}
	return logset.RowRead{Call: a.Call, Row: row, At: reply.Revision}
}

func (l *diskLog) commitRow(a logset.Action) logset.Event {
	ctx, cancel := context.WithTimeout(l.ctx, l.rack.opts.CallTime)
	defer cancel()
	key := rowKey(l.disk)
	reply, err := l.rack.RegistryCommit(ctx, &datanode.RegistryTxn{
		Guards:   []datanode.Guard{{Disk: l.disk, Epoch: l.epoch}},
		Compares: []datanode.Compare{{Key: key, Revision: a.At}},
		Puts:     []datanode.Put{{Key: key, Value: marshalRow(a.Row)}},
	})
	if err != nil {
		l.rack.log.Warn("a disk's log set was not changed, or nobody knows", "disk", l.disk, "row", a.Row, "err", err)
		return logset.Committed{Call: a.Call, Outcome: outcomeOf(err)}
	}
	l.rack.log.Info("log set", "disk", l.disk, "epoch", l.epoch, "nodes", numbers(a.Row))
	return logset.Committed{Call: a.Call, At: reply.Revision}
}
