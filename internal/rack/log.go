package rack

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/longlock"
)

// diskLog is a disk's log under an epoch: it carries out what the log set's machine
// says.
type diskLog struct {
	rack  *Rack
	disk  id.Disk
	epoch id.Epoch
	floor [datanode.Streams]id.Pos

	// ops is held for reading while an operation is sent, and for writing while a
	// member is brought to the very end of the log. It comes before mu.
	ops longlock.RWMutex
	// appending is held, by stream, while records are appended: all members get them
	// in one order. It comes before ops, and guards part: an append that some have and
	// others have no room for.
	appending [datanode.Streams]longlock.Mutex
	part      [datanode.Streams]*part

	mu      sync.Mutex
	machine *logset.Machine
	number  uint64 // of the last operation
	waiting map[uint64]chan struct{}
	joined  map[id.Node]joined
	runs    map[id.Node]logset.Boot // of the members' machines, as they joined last
	from    logset.Sources
	served  chan struct{} // closed when the log is taken over
	ended   chan struct{} // closed when this owner can do no more
	over    error         // why
	timer   *time.Timer

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// joined is what a member said when it was fenced last.
type joined struct {
	boot     logset.Boot
	ends     logset.Ends
	previous id.Epoch
}

// Fence implements datanode.LogNode: it takes the disk's log over.
func (r *Rack) Fence(ctx context.Context, q *datanode.FenceRequest) (*datanode.FenceReply, error) {
	if q.Disk == 0 || q.Epoch == 0 {
		return nil, datanode.Errorf(datanode.ErrInvalid, "fence of disk %d, epoch %d", q.Disk, q.Epoch)
	}
	l := r.newLog(q)
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		l.cancel()
		return nil, datanode.Errorf(datanode.ErrClosed, "the rack")
	}
	old := r.logs[q.Disk]
	if old != nil && old.epoch >= q.Epoch {
		r.mu.Unlock()
		l.cancel()
		return nil, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", q.Disk, q.Epoch, old.epoch)
	}
	r.logs[q.Disk] = l
	r.mu.Unlock()
	if old != nil {
		old.close()
	}
	l.step(nil)
	select {
	case <-l.served:
	case <-l.ended:
		return nil, l.over
	case <-ctx.Done():
		l.end(datanode.Errorf(datanode.ErrOutcome, "the takeover of disk %d was given up", q.Disk))
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	reply := &datanode.FenceReply{}
	for s, n := range l.from {
		reply.First[s], reply.End[s] = l.joined[n].ends.First[s], l.joined[n].ends.End[s]
	}
	for _, j := range l.joined {
		if j.previous < q.Epoch {
			reply.Previous = max(reply.Previous, j.previous)
		}
	}
	return reply, nil
}

func (r *Rack) newLog(q *datanode.FenceRequest) *diskLog {
	l := &diskLog{
		rack: r, disk: q.Disk, epoch: q.Epoch, floor: q.Floor, waiting: make(map[uint64]chan struct{}), joined: make(map[id.Node]joined), runs: make(map[id.Node]logset.Boot),
		served: make(chan struct{}), ended: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.machine = logset.New(r.logOptions(q.Disk))
	return l
}

// logOptions says how a disk's log is kept: at home are the members that are in, from
// one on that follows from the disk's number.
func (r *Rack) logOptions(d id.Disk) logset.Options {
	opts := logset.Options{Replicas: r.opts.Replicas, MinInSync: r.opts.MinInSync}
	var in, others []id.Node
	for _, m := range r.members() {
		if m.is() == NodeIn {
			in = append(in, m.Number)
		} else {
			others = append(others, m.Number)
		}
	}
	at := int(d%(1<<31)) % max(len(in), 1)
	opts.Nodes = slices.Concat(in[min(at, len(in)):], in[:min(at, len(in))], others)
	opts.First = slices.Min(append(in, opts.Nodes[0]))
	if r.opts.Registry == nil {
		opts.First = r.members()[0].Number
		opts.Registry = &opts.First
	}
	opts.Replicas = min(cmp.Or(opts.Replicas, replicasDefault), max(len(in), 1))
	return opts.WithDefaults()
}

// owned returns the log if the epoch is its owner's.
func (r *Rack) owned(d id.Disk, e id.Epoch) (*diskLog, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.logs[d]
	switch {
	case r.closed:
		return nil, datanode.Errorf(datanode.ErrClosed, "the rack")
	case l == nil:
		return nil, datanode.Errorf(datanode.ErrNotFound, "log of disk %d", d)
	case e < l.epoch:
		return nil, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", d, e, l.epoch)
	case e > l.epoch:
		return nil, datanode.Errorf(datanode.ErrInvalid, "disk %d, epoch %d without a fence, newest %d", d, e, l.epoch)
	}
	return l, nil
}

// end ends this owner for a reason.
func (l *diskLog) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(err)
}

func (l *diskLog) endLocked(err error) {
	if l.over != nil {
		return
	}
	l.over = err
	select {
	case <-l.served:
		if errors.Is(err, datanode.ErrOutcome) {
			l.rack.breaking.Do(func() { close(l.rack.broken) })
		}
	default:
	}
	close(l.ended)
	l.cancel()
	if l.timer != nil {
		l.timer.Stop()
	}
}

// close ends this owner and waits for what runs.
func (l *diskLog) close() {
	l.end(datanode.Errorf(datanode.ErrFenced, "disk %d has another owner, or is closed here", l.disk))
	l.work.Wait()
}

// operate sends an operation to all that follow and returns when it is acknowledged.
// What nobody has and all refuse for the same reason is withdrawn.
func (l *diskLog) operate(do func(context.Context, *member) error) error {
	l.ops.RLock()
	l.mu.Lock()
	if l.over != nil {
		l.mu.Unlock()
		l.ops.RUnlock()
		return l.over
	}
	l.number++
	number := l.number
	acked := make(chan struct{})
	l.waiting[number] = acked
	to := l.machine.Begin(number)
	members, runs := make([]*member, len(to)), make([]logset.Boot, len(to))
	for i, n := range to {
		members[i], runs[i] = l.rack.numbered(n), l.runs[n]
	}
	l.mu.Unlock()
	errs := each(members, func(i int, m *member) error {
		return m.call(l.ctx, l.rack.opts.CallTime, func(ctx context.Context) error {
			return m.within(runs[i], func() error { return do(ctx, m) })
		})
	})
	refusal := refused(errs)
	if refusal != nil || len(to) == 0 {
		l.withdraw(number)
	} else {
		for i, m := range members {
			l.step(logset.Answered{Op: number, Node: m.Number, Outcome: outcomeOf(errs[i])})
		}
	}
	l.ops.RUnlock()
	switch {
	case refusal != nil:
		return refusal
	case len(to) == 0:
		return datanode.Errorf(datanode.ErrClosed, "the log of disk %d is not taken over", l.disk)
	}
	return l.await(acked)
}

// run is a member's as it joined last.
func (l *diskLog) run(m *member) logset.Boot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.runs[m.Number]
}

// within does something with a member, which fails if that is in another run of its
// machine: it may lack what it had.
func (m *member) within(run logset.Boot, do func() error) error {
	if m.Run == nil {
		return do()
	}
	if m.Run() == run {
		if err := do(); err != nil {
			return err
		}
		if m.Run() == run {
			return nil
		}
	}
	return datanode.Errorf(datanode.ErrRestarted, "the machine of node %d was booted anew", m.Number)
}

// await returns when an operation is acknowledged.
func (l *diskLog) await(acked chan struct{}) error {
	select {
	case <-acked:
		return nil
	default:
	}
	patience := time.NewTimer(l.rack.opts.Patience)
	defer patience.Stop()
	select {
	case <-acked:
		return nil
	case <-patience.C:
		l.end(datanode.Errorf(datanode.ErrOutcome, "too few nodes have the log of disk %d, for %v", l.disk, l.rack.opts.Patience))
	case <-l.ended:
	}
	select {
	case <-acked:
		return nil
	default:
		return l.over
	}
}

func (l *diskLog) withdraw(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machine.Withdraw(number)
	delete(l.waiting, number)
}

// refused returns the reason for which nobody has carried an operation out, nil if
// somebody has, or may have.
func refused(errs []error) error {
	full := false
	for _, err := range errs {
		full = full || errors.Is(err, datanode.ErrLogFull)
	}
	for _, err := range errs {
		var coded *datanode.Error
		if full && err == nil {
			continue // and it waits for the others
		}
		if !errors.As(err, &coded) || !slices.Contains([]datanode.Code{
			datanode.CodePosition, datanode.CodeLogFull, datanode.CodeInvalid, datanode.CodeNotFound,
		}, coded.Code) {
			return nil
		}
	}
	return first(errs)
}

func outcomeOf(err error) logset.Outcome {
	switch {
	case err == nil:
		return logset.Done
	case errors.Is(err, datanode.ErrFenced):
		return logset.Overtaken
	}
	return logset.Failed
}

// Sync implements datanode.LogNode.
func (r *Rack) Sync(ctx context.Context, q *datanode.SyncRequest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l, err := r.owned(q.Disk, q.Epoch)
	if err != nil {
		return err
	}
	return l.operate(func(ctx context.Context, m *member) error { return m.Node.Sync(ctx, q) })
}

// TrimLog implements datanode.LogNode.
func (r *Rack) TrimLog(ctx context.Context, q *datanode.TrimLogRequest) error {
	l, err := r.owned(q.Disk, q.Epoch)
	if err != nil {
		return err
	}
	return l.operate(func(ctx context.Context, m *member) error { return m.Node.TrimLog(ctx, q) })
}

// ReadLog implements datanode.LogNode: any that follows has all that is acknowledged.
func (r *Rack) ReadLog(ctx context.Context, q *datanode.ReadLogRequest) (*datanode.ReadLogReply, error) {
	l, err := r.owned(q.Disk, q.Epoch)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	over, from := l.over, l.machine.Following()
	l.mu.Unlock()
	if over != nil {
		return nil, over
	}
	err = datanode.Errorf(datanode.ErrUnreachable, "no node has the log of disk %d", q.Disk)
	for _, n := range from {
		m := r.numbered(n)
		run := l.run(m)
		var reply *datanode.ReadLogReply
		err = m.call(ctx, r.opts.FragmentTime, func(ctx context.Context) error {
			return m.within(run, func() (err error) {
				reply, err = m.Node.ReadLog(ctx, q)
				return err
			})
		})
		if err == nil || ctx.Err() != nil || !isAway(err) && !errors.Is(err, datanode.ErrCorrupt) && !errors.Is(err, datanode.ErrDead) {
			return reply, err
		}
	}
	return nil, err
}

// DropLog implements datanode.LogNode: at all members. It may be repeated under a newer
// epoch if one of them does not answer.
func (r *Rack) DropLog(ctx context.Context, q *datanode.DropLogRequest) error {
	l, err := r.owned(q.Disk, q.Epoch)
	if err != nil {
		return err
	}
	_, err = r.RegistryCommit(ctx, &datanode.RegistryTxn{
		Guards: []datanode.Guard{{Disk: q.Disk, Epoch: q.Epoch}}, Deletes: []string{rowKey(q.Disk)},
	})
	if err != nil {
		return err
	}
	l.end(datanode.Errorf(datanode.ErrNotFound, "log of disk %d", q.Disk))
	l.work.Wait()
	errs := each(r.members(), func(_ int, m *member) error {
		err := m.call(ctx, r.opts.CallTime, func(ctx context.Context) error { return m.Node.DropLog(ctx, q) })
		if errors.Is(err, datanode.ErrNotFound) {
			return nil
		}
		if err == nil {
			m.mu.Lock()
			delete(m.fenced, q.Disk)
			delete(m.tried, q.Disk)
			m.mu.Unlock()
		}
		return err
	})
	if err := first(errs); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.logs[q.Disk] == l {
		delete(r.logs, q.Disk)
	}
	return nil
}
