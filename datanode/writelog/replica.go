package writelog

import (
	"context"

	"plinth/datanode"
	"plinth/internal/id"
)

var _ datanode.ReplicaNode = (*Log)(nil)

// JoinLog implements datanode.ReplicaNode.
func (l *Log) JoinLog(ctx context.Context, r *datanode.JoinLogRequest) (*datanode.JoinLogReply, error) {
	if r.Disk == 0 || r.Epoch == 0 {
		return nil, datanode.Errorf(datanode.ErrInvalid, "join the log of disk %d, epoch %d", r.Disk, r.Epoch)
	}
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.life.RUnlock()
	reply, target, err := l.join(r)
	if err != nil {
		return nil, err
	}
	return reply, l.syncTo(ctx, target)
}

func (l *Log) join(r *datanode.JoinLogRequest) (*datanode.JoinLogReply, uint64, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.alive(); err != nil {
		return nil, 0, err
	}
	reply := &datanode.JoinLogReply{Previous: r.Epoch}
	if d := l.state.disks[r.Disk]; d == nil || d.epoch != r.Epoch {
		fence, _, err := l.fenceLocked(&datanode.FenceRequest{Disk: r.Disk, Epoch: r.Epoch})
		if err != nil {
			return nil, 0, err
		}
		reply.Previous = fence.Previous
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.state.disks[r.Disk]
	l.turns++
	d.turn, reply.Turn = l.turns, l.turns
	for i, t := range d.streams {
		reply.First[i], reply.End[i] = t.first, t.end
	}
	return reply, l.written.Load(), nil
}

// CopyLog implements datanode.ReplicaNode. A crash in the middle may leave a prefix.
func (l *Log) CopyLog(ctx context.Context, r *datanode.CopyLogRequest) error {
	a := &datanode.AppendRequest{Disk: r.Disk, Epoch: r.Epoch, Stream: r.Stream, Class: r.Class, Records: r.Records}
	if err := l.checkAppend(a); err != nil {
		return err
	}
	before := id.Epoch(1)
	for i := range r.Records {
		e := r.Records[i].Epoch
		if e < before || e > r.Epoch {
			return datanode.Errorf(datanode.ErrInvalid, "copy a record of epoch %d after one of %d, under %d", e, before, r.Epoch)
		}
		before = e
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.life.RUnlock()
	_, err := l.frames(a, kindCopy)
	return err
}

// ResetLog implements datanode.ReplicaNode.
func (l *Log) ResetLog(ctx context.Context, r *datanode.ResetLogRequest) error {
	if r.Next[datanode.Ops] > posMax || r.Next[datanode.Results] > posMax {
		return datanode.Errorf(datanode.ErrInvalid, "reset the log of disk %d to %d", r.Disk, r.Next)
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.life.RUnlock()
	target, err := l.reset(r)
	if err != nil {
		return err
	}
	return l.syncTo(ctx, target)
}

func (l *Log) reset(r *datanode.ResetLogRequest) (uint64, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	d, err := l.disk(r.Disk, r.Epoch)
	if err != nil {
		return 0, err
	}
	if d.turn == 0 || d.turn != r.Turn {
		return 0, datanode.Errorf(datanode.ErrConflict, "reset the log of disk %d in a turn that is over", r.Disk)
	}
	if !d.resets(r.Next) {
		return 0, datanode.Errorf(datanode.ErrInvalid, "reset the log of disk %d to %d", r.Disk, r.Next)
	}
	f := frame{kind: kindReset, disk: r.Disk, epoch: r.Epoch}
	err = l.control(&f, positions(r.Next), func(at birth) { l.state.reset(r.Disk, r.Next, at) })
	return l.written.Load(), err
}
