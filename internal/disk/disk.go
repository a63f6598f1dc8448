package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/logrec"
	"plinth/internal/longlock"
	"plinth/internal/object"
	"plinth/internal/ramcache"
)

// Disk is an open disk. [Open] makes one.
type Disk struct {
	pool    *Pool
	cfg     Config
	size    chunk.Size
	m       *blockmap.Map // nil of a clone that has no checkpoint; set under mu, destageMu and checkpointMu
	objects *object.Owner
	stats   counters
	// memo remembers what m says. Whoever applies something to m tells the memo then,
	// and only then drops the layer that hides from readers what it has changed.
	memo  *ramcache.Memo
	ahead *ahead
	warm  []uint64 // of the checkpoint it was opened at

	// ctx ends when the disk is closed: for work that serves many callers.
	ctx    context.Context
	cancel context.CancelFunc

	// destageMu guards what a round changes: results and state. A round holds
	// it from freezing a layer to dropping it.
	destageMu longlock.Mutex
	results   *logrec.Chain
	state     state
	patched   id.Pos // the newest result that is a patch, 0: none since Open
	// unsaved are the segments from and to which patches that no checkpoint has
	// moved chunks; maybe some more.
	unsaved map[id.Segment]bool

	checkpointMu longlock.Mutex
	checkpoint   checkpointState
	recording    *recording // nil: the registry names just checkpoint
	// replaced counts the checkpoints that lay poorly and were replaced, replacedPassed
	// those before the newest whole pass began.
	replaced, replacedPassed atomic.Int64

	passMu longlock.Mutex // one pass at a time

	// appendMu is the order of the log.
	appendMu longlock.Mutex
	held     chan struct{} // not nil: nothing is appended until it is closed (HoldAll)
	ops      *logrec.Chain
	next     id.Pos

	done ledger

	queueMu sync.Mutex
	queue   []*commit

	mu      sync.RWMutex
	layers  []*layer // oldest first; the last one takes writes
	bytes   int64    // size of the disk
	err     error    // why it serves no more
	closing bool
	rolling bool           // a rollback is under way: calls get ErrBusy
	calls   sync.WaitGroup // entered under mu, only while neither closing nor rolling
	reads   sync.WaitGroup // of snapshots, and waits for them: only while not closing
	under   sync.WaitGroup // reads of Config.Under: entered under mu, only while there is no map
	// changed is closed and replaced when a layer goes, or the disk's err or
	// closing changes.
	changed chan struct{}
	// unsettled are snapshots of which it is not known whether the registry names
	// them: no pass forgets them.
	unsettled map[id.Snapshot]struct{}
	// markedAt has the results that made snapshots and are in no checkpoint.
	markedAt map[id.Snapshot]id.Pos

	// listMu orders the updates of this disk's reference lists.
	listMu     longlock.Mutex
	seq        id.Seq
	registered map[id.Segment]bitmap // since the running pass began; else nil
	holds      atomic.Int64          // HoldLists without ReleaseLists
}

// ID returns the disk's number.
func (d *Disk) ID() id.Disk { return d.cfg.ID }

// Epoch returns the epoch under which it is open.
func (d *Disk) Epoch() id.Epoch { return d.cfg.Epoch }

// ChunkSize returns the unit of deduplication in bytes.
func (d *Disk) ChunkSize() chunk.Size { return d.size }

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.bytes
}

// Err returns why the disk serves no more, nil while it does.
func (d *Disk) Err() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.err
}

// usable returns why background work on the disk must stop, nil if it may go on.
func (d *Disk) usable() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.err == nil && d.closing {
		return ErrClosed
	}
	return d.err
}

// enter admits a call for a range of bytes; leave ends it.
func (d *Disk) enter(off, n int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	err := d.admits(off, n)
	if err == nil {
		d.calls.Add(1)
	}
	return err
}

// admits returns why a call for a range of bytes is not admitted; d.mu is held.
func (d *Disk) admits(off, n int64) error {
	switch {
	case d.err != nil:
		return d.err
	case d.closing:
		return ErrClosed
	case d.rolling:
		return fmt.Errorf("disk %s is being rolled back: %w", d.cfg.Name, ErrBusy)
	case off < 0 || n < 0 || off > d.bytes || n > d.bytes-off:
		return fmt.Errorf("%d bytes at %d of disk %s: %w", n, off, d.cfg.Name, ErrOutOfRange)
	}
	return nil
}

func (d *Disk) leave() { d.calls.Done() }

// enterRead admits a call that a rollback need not wait for; d.reads.Done ends
// it.
func (d *Disk) enterRead() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.err != nil:
		return d.err
	case d.closing:
		return ErrClosed
	}
	d.reads.Add(1)
	return nil
}

// signal wakes those that wait for changed; d.mu is held.
func (d *Disk) signal() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// fail makes every later call return err, the first one given.
func (d *Disk) fail(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = fmt.Errorf("disk %s (%d): %w: %w", d.cfg.Name, d.cfg.ID, ErrFailed, err)
		d.pool.Logger.Error("disk has failed", "disk", d.cfg.Name, "id", d.cfg.ID, "err", err)
		d.signal()
	}
	return d.err
}

// mayReply is asked before each reply (I6).
func (d *Disk) mayReply() error {
	if d.cfg.MayReply != nil {
		return d.cfg.MayReply()
	}
	return d.pool.MayReply()
}

// settle ends a call that changed the disk: stable if that was asked for, and
// allowed to reply.
func (d *Disk) settle(ctx context.Context, stable bool) error {
	if stable || d.cfg.Stable {
		if err := d.sync(ctx); err != nil {
			return err
		}
	}
	return d.mayReply()
}

func (d *Disk) sync(ctx context.Context) error {
	err := d.pool.Node.Sync(ctx, &datanode.SyncRequest{Disk: d.cfg.ID, Epoch: d.cfg.Epoch})
	return d.outcome(err)
}

// outcome passes on an error of the log; one that ends this owner's or the
// log's life fails the disk.
func (d *Disk) outcome(err error) error {
	if errors.Is(err, datanode.ErrFenced) || errors.Is(err, datanode.ErrDead) || errors.Is(err, datanode.ErrPosition) {
		return d.fail(err)
	}
	return err
}

// Flush returns when every call that returned before it is on stable media.
func (d *Disk) Flush(ctx context.Context) error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	defer d.leave()
	return d.settle(ctx, true)
}

// GiveUp gives back the charges and the memory of a failed disk's write buffer,
// which others wait for; the next Open makes it again from the log. It does
// nothing while the disk serves, or while a call uses the buffer.
func (d *Disk) GiveUp() {
	if d.Err() == nil || !d.destageMu.TryLock() {
		return
	}
	defer d.destageMu.Unlock()
	if !d.appendMu.TryLock() {
		return
	}
	defer d.appendMu.Unlock()
	d.mu.Lock()
	var charge int64
	for _, l := range d.layers {
		charge += l.charge
	}
	d.layers = []*layer{newLayer(d.size)}
	d.signal()
	d.mu.Unlock()
	d.pool.Space.Release(context.WithoutCancel(d.ctx), charge)
}

// Close ends serving: it waits for calls under way, whose writes stay in the
// log, and releases the map. It neither destages nor makes a checkpoint. It may
// be called again.
func (d *Disk) Close() error {
	d.mu.Lock()
	closed := d.closing
	d.closing = true
	d.signal()
	d.mu.Unlock()
	if closed {
		return nil
	}
	d.calls.Wait()
	d.reads.Wait()
	d.cancel()
	d.passMu.Lock()
	defer d.passMu.Unlock()
	d.destageMu.Lock()
	defer d.destageMu.Unlock()
	d.checkpointMu.Lock()
	defer d.checkpointMu.Unlock()
	d.dropLayers()
	return d.closeMap()
}

func (d *Disk) closeMap() error {
	if d.m == nil {
		return nil
	}
	return d.m.Close()
}

// dropLayers gives up the write buffer: its operations are in the log.
func (d *Disk) dropLayers() {
	d.mu.Lock()
	var charge int64
	for _, l := range d.layers {
		charge += l.charge
	}
	d.layers = nil
	d.mu.Unlock()
	d.pool.Space.Release(context.WithoutCancel(d.ctx), charge)
}
