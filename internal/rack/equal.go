package rack

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
)

func numbers(row logset.Row) []id.Node {
	var all []id.Node
	for _, m := range row {
		all = append(all, m.Node)
	}
	return all
}

// copyBytes is how much of a log is copied at a time: less than an append may have, as
// a page may go beyond what was asked for by a record.
const copyBytes = datanode.AppendBytesMax - datanode.RecordBytesMax

// tailRounds bounds how often the end of a log that grows is copied beside its owner's
// appends before these wait for the rest.
const tailRounds = 8

// equalizer makes a member's log equal to the sources'.
type equalizer struct {
	l    *diskLog
	a    logset.Action
	node *member
	runs map[id.Node]logset.Boot // of all members, as the copy began
	// next is what the member lacks first, by stream.
	next [datanode.Streams]id.Pos
}

// equalize carries out Equalize. The member follows before anything else is sent: the
// machine is told while what is sent waits.
func (l *diskLog) equalize(a logset.Action) error {
	e := &equalizer{l: l, a: a, node: l.rack.numbered(a.Node), next: a.Ends.End}
	l.mu.Lock()
	e.runs = maps.Clone(l.runs)
	l.mu.Unlock()
	if err := e.prepare(); err != nil {
		return err
	}
	for range tailRounds {
		n, err := e.copyTails()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	l.ops.Lock()
	defer l.ops.Unlock()
	for {
		n, err := e.copyTails()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	err := e.call(e.node, func(ctx context.Context) error {
		return e.node.Node.Sync(ctx, &datanode.SyncRequest{Disk: l.disk, Epoch: l.epoch})
	})
	if err == nil {
		l.step(logset.Equalized{Call: a.Call, Node: a.Node})
	}
	return err
}

// call makes a call of a copy, which may carry much.
func (e *equalizer) call(m *member, do func(context.Context) error) error {
	return m.call(e.l.ctx, e.l.rack.opts.FragmentTime, func(ctx context.Context) error {
		return m.within(e.runs[m.Number], func() error { return do(ctx) })
	})
}

// ends tells what a source has: as it was fenced, while the log is taken over, and now
// after that.
func (e *equalizer) ends(m *member) (first, end [datanode.Streams]id.Pos, err error) {
	select {
	case <-e.l.served:
	default:
		e.l.mu.Lock()
		defer e.l.mu.Unlock()
		j := e.l.joined[m.Number]
		return j.ends.First, j.ends.End, nil
	}
	err = e.call(m, func(ctx context.Context) error {
		reply, err := m.Node.JoinLog(ctx, &datanode.JoinLogRequest{Disk: e.l.disk, Epoch: e.l.epoch})
		if err == nil {
			first, end = reply.First, reply.End
		}
		return err
	})
	return first, end, err
}

// prepare compares the member's streams with the sources', and empties what is no
// beginning of those.
func (e *equalizer) prepare() error {
	var next [datanode.Streams]id.Pos // where the streams go on that are emptied
	other, skip := false, false
	for s, n := range e.a.From {
		if n == e.a.Node {
			continue
		}
		source := e.l.rack.numbered(n)
		firsts, ends, err := e.ends(source)
		if err != nil {
			return fmt.Errorf("ask node %d: %w", n, err)
		}
		first, end := firsts[s], ends[s]
		mine, mineEnd := e.a.Ends.First[s], e.a.Ends.End[s]
		next[s] = first
		switch {
		case mineEnd < first: // what it lacks, and all that it has, is not needed any more
			skip = true
		case mineEnd > end || mineEnd == first && mine < mineEnd && e.a.Reset:
			other = true
		case mine < mineEnd && mineEnd > first:
			same, err := e.same(source, datanode.Stream(s), mineEnd-1)
			if err != nil {
				return err
			}
			other = other || !same
		}
	}
	switch {
	case other && !e.a.Reset:
		return fmt.Errorf("node %d has another log than node %d, and is in sync: %w", e.a.Node, e.a.From[0], datanode.ErrCorrupt)
	case other && slices.Contains(next[:], 0):
		return fmt.Errorf("node %d has another log, and is the source of one stream: %w", e.a.Node, datanode.ErrCorrupt)
	case !other && !skip:
		return nil
	case !other:
		for s := range next {
			if next[s] <= e.next[s] {
				next[s] = 0
			}
		}
	}
	err := e.call(e.node, func(ctx context.Context) error {
		return e.node.Node.ResetLog(ctx, &datanode.ResetLogRequest{Disk: e.l.disk, Epoch: e.l.epoch, Turn: e.a.Ends.Turn, Next: next})
	})
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	for s := range next {
		if next[s] != 0 {
			e.next[s] = next[s]
		}
	}
	return nil
}

// same tells whether both have the same record, and so the same before it: MACs are
// chained.
func (e *equalizer) same(source *member, s datanode.Stream, pos id.Pos) (bool, error) {
	var macs [2][16]byte
	for i, m := range []*member{e.node, source} {
		err := e.call(m, func(ctx context.Context) error {
			reply, err := m.Node.ReadLog(ctx, &datanode.ReadLogRequest{Disk: e.l.disk, Epoch: e.l.epoch, Stream: s, From: pos, BytesMax: 1})
			if err == nil && len(reply.Records) == 0 {
				err = datanode.Errorf(datanode.ErrPosition, "node %d has no record %d", m.Number, pos)
			}
			if err == nil {
				macs[i] = reply.Records[0].MAC
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return macs[0] == macs[1], nil
}

// copyTails copies what the member lacks by now and returns how many records.
func (e *equalizer) copyTails() (int, error) {
	sum := 0
	for s, n := range e.a.From {
		if n == e.a.Node {
			continue
		}
		for {
			copied, err := e.copy(e.l.rack.numbered(n), datanode.Stream(s))
			if err != nil {
				return sum, fmt.Errorf("copy from node %d, stream %d, position %d: %w", n, s, e.next[s], err)
			}
			if copied == 0 {
				break
			}
			sum += copied
		}
	}
	return sum, nil
}

// copy copies a page.
func (e *equalizer) copy(source *member, s datanode.Stream) (int, error) {
	var page []datanode.Record
	err := e.call(source, func(ctx context.Context) error {
		reply, err := source.Node.ReadLog(ctx, &datanode.ReadLogRequest{
			Disk: e.l.disk, Epoch: e.l.epoch, Stream: s, From: e.next[s], BytesMax: copyBytes,
		})
		if err == nil {
			page = reply.Records
		}
		return err
	})
	if err != nil || len(page) == 0 {
		return 0, err
	}
	page = page[:min(len(page), datanode.RecordsMax)]
	class := datanode.ClassData
	if !e.a.Reset { // what a node of the row lacks is the last append, and nobody may trim before it has that
		class = datanode.ClassMark
	}
	err = e.call(e.node, func(ctx context.Context) error {
		return e.node.Node.CopyLog(ctx, &datanode.CopyLogRequest{Disk: e.l.disk, Epoch: e.l.epoch, Stream: s, Class: class, Records: page})
	})
	if err != nil {
		return 0, err
	}
	e.next[s] += id.Pos(len(page))
	return len(page), nil
}
