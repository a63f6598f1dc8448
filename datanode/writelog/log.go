package writelog

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// Log is an open log. Open makes one; Close ends it.
type Log struct {
	fs   vfs.FS
	opts Options
	geometry
	lock io.Closer // of the directory

	// life is held shared by every call, and exclusively by Close.
	life   sync.RWMutex
	closed bool

	// writing is held by who writes frames or begins a file. It guards files'
	// told; what mu guards changes only under both.
	writing sync.Mutex

	mu    sync.RWMutex
	state *state
	files []*file // by slot
	head  *file   // nil only inside Open
	// prev is the file before head until both are stable, head through its snapshot
	// at least; then nil. Only mu guards its end.
	prev *file

	turns uint64 // of JoinLog; guarded by both, begins anywhere

	// Bytes of frames that somebody may wait for (no marks), since Open. synced
	// never exceeds written and is what is stable of it.
	written, synced atomic.Uint64
	dead            atomic.Pointer[datanode.Error]
	group           group
	flusher         flusher
}

var _ datanode.LogNode = (*Log)(nil)

// enter begins a call; the caller ends it by l.life.RUnlock if there is no
// error.
func (l *Log) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.life.RLock()
	if l.closed {
		l.life.RUnlock()
		return datanode.Errorf(datanode.ErrClosed, "log %s", l.opts.Dir)
	}
	return nil
}

// disk returns the disk's log if the epoch is its own. The caller holds mu or
// writing.
func (l *Log) disk(number id.Disk, epoch id.Epoch) (*disk, error) {
	d := l.state.disks[number]
	switch {
	case d == nil:
		return nil, datanode.Errorf(datanode.ErrNotFound, "log of disk %d", number)
	case epoch < d.epoch:
		return nil, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", number, epoch, d.epoch)
	case epoch > d.epoch:
		return nil, datanode.Errorf(datanode.ErrInvalid, "disk %d, epoch %d without a fence, newest %d", number, epoch, d.epoch)
	}
	return d, nil
}

// CheckEpoch returns ErrFenced if the epoch is below the disk's newest fence,
// and nil otherwise: also for a disk without a log here, which has not been
// fenced yet or is removed for good. Epoch 0 is ErrInvalid. It does no I/O.
func (l *Log) CheckEpoch(number id.Disk, epoch id.Epoch) error {
	if epoch == 0 {
		return datanode.Errorf(datanode.ErrInvalid, "disk %d, epoch 0", number)
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if d := l.state.disks[number]; d != nil && epoch < d.epoch {
		return datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", number, epoch, d.epoch)
	}
	return nil
}

// Usage returns how full the log is. It does no I/O.
func (l *Log) Usage() datanode.LogUsage {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.usage()
}

func (l *Log) usage() datanode.LogUsage {
	return datanode.LogUsage{
		CapacityBytes: int64(l.capacity()) * l.fileBytes,
		UsedBytes:     int64(l.state.pinned) * l.fileBytes,
		WrittenBytes:  int64(l.written.Load()),
	}
}

// Streams describes all streams, by disk. It does no I/O.
func (l *Log) Streams() []datanode.LogStreamStatus {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var oldest uint64
	for _, f := range l.files {
		if f.live > 0 && (oldest == 0 || f.seq < oldest) {
			oldest = f.seq
		}
	}
	return l.state.status(oldest)
}

// Fence implements datanode.LogNode. Besides the contract's errors:
// ErrLogFull when there are as many disks as a snapshot can hold.
func (l *Log) Fence(ctx context.Context, r *datanode.FenceRequest) (*datanode.FenceReply, error) {
	if r.Disk == 0 || r.Epoch == 0 || r.Floor[datanode.Ops] > posMax || r.Floor[datanode.Results] > posMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "fence of disk %d, epoch %d, floors %d", r.Disk, r.Epoch, r.Floor)
	}
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.life.RUnlock()
	reply, target, err := l.fence(r)
	if err != nil {
		return nil, err
	}
	if err := l.syncTo(ctx, target); err != nil {
		return nil, err
	}
	return reply, nil
}

func (l *Log) fence(r *datanode.FenceRequest) (*datanode.FenceReply, uint64, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.fenceLocked(r)
}

// fenceLocked is fence under writing.
func (l *Log) fenceLocked(r *datanode.FenceRequest) (*datanode.FenceReply, uint64, error) {
	reply := &datanode.FenceReply{}
	if d := l.state.disks[r.Disk]; d != nil {
		reply.Previous = d.epoch
	} else if len(l.state.disks) >= l.disksMax() {
		return nil, 0, datanode.Errorf(datanode.ErrLogFull, "log has %d disks", len(l.state.disks))
	}
	if r.Epoch <= reply.Previous {
		return nil, 0, datanode.Errorf(datanode.ErrFenced, "disk %d, epoch %d, newest %d", r.Disk, r.Epoch, reply.Previous)
	}
	f := frame{kind: kindFence, disk: r.Disk, epoch: r.Epoch}
	err := l.control(&f, positions(r.Floor), func(at birth) {
		for i, t := range l.state.fence(r.Disk, r.Epoch, r.Floor, at).streams {
			reply.First[i], reply.End[i] = t.first, t.end
		}
	})
	return reply, l.written.Load(), err
}

// Sync implements datanode.LogNode.
func (l *Log) Sync(ctx context.Context, r *datanode.SyncRequest) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.life.RUnlock()
	l.mu.RLock()
	_, err := l.disk(r.Disk, r.Epoch)
	target := l.written.Load()
	l.mu.RUnlock()
	if err != nil {
		return err
	}
	return l.syncTo(ctx, target)
}

// TrimLog implements datanode.LogNode. A position that is trimmed already is no
// error, one at or above the end is ErrInvalid.
func (l *Log) TrimLog(ctx context.Context, r *datanode.TrimLogRequest) error {
	if r.Stream >= datanode.Streams {
		return datanode.Errorf(datanode.ErrInvalid, "stream %d", r.Stream)
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.life.RUnlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	d, err := l.disk(r.Disk, r.Epoch)
	if err != nil {
		return err
	}
	t := &d.streams[r.Stream]
	if r.Through >= t.end {
		return datanode.Errorf(datanode.ErrInvalid, "trim of disk %d, stream %d through %d, end %d", r.Disk, r.Stream, r.Through, t.end)
	}
	if r.Through < t.first {
		return l.alive()
	}
	f := frame{kind: kindTrim, stream: r.Stream, disk: r.Disk, epoch: r.Epoch, pos: r.Through}
	return l.control(&f, nil, func(birth) { l.state.trim(t, r.Through) })
}

// DropLog implements datanode.LogNode. A disk without a log is ErrNotFound, so
// that is what a repeated call returns.
func (l *Log) DropLog(ctx context.Context, r *datanode.DropLogRequest) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.life.RUnlock()
	target, err := l.drop(r)
	if err != nil {
		return err
	}
	return l.syncTo(ctx, target)
}

func (l *Log) drop(r *datanode.DropLogRequest) (uint64, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if _, err := l.disk(r.Disk, r.Epoch); err != nil {
		return 0, err
	}
	f := frame{kind: kindDrop, disk: r.Disk, epoch: r.Epoch}
	err := l.control(&f, nil, func(birth) { l.state.drop(r.Disk) })
	return l.written.Load(), err
}

// Close syncs the log, waits for calls under way and ends it. Later calls
// return ErrClosed, later Closes nil.
func (l *Log) Close() error {
	l.life.Lock()
	if l.closed {
		l.life.Unlock()
		return nil
	}
	l.closed = true
	l.life.Unlock()
	l.flusher.stop()
	var err error
	if l.dead.Load() == nil {
		// The second makes the mark stable, so that a later Open can tell damage
		// anywhere from a torn tail.
		err = errors.Join(l.flush(), l.flush())
	}
	return errors.Join(err, l.release())
}

// release gives back what Open took.
func (l *Log) release() error {
	var errs []error
	for _, f := range l.files {
		if f.f != nil {
			errs = append(errs, f.f.Close())
		}
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}
