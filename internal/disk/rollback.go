package disk

import (
	"context"
	"errors"
	"fmt"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logrec"
)

// Rollback makes the disk what a snapshot is, size included. Calls that read or
// write are waited for, and those that come meanwhile get ErrBusy. It is stable at
// return. Errors: ErrNoSnapshot, ErrBusy, ErrNoSpace, and those of the map where
// the disk was rolled back too often between passes: then nothing was changed;
// ErrFailed, ErrClosed.
//
// Nobody ever reads through a rollback that is only in the log: it is destaged,
// like all before it, before a call comes in again, and Open does the same. So
// the write buffer needs to know nothing of it.
func (d *Disk) Rollback(ctx context.Context, s id.Snapshot) error {
	if err := d.Await(ctx, s); err != nil {
		return err
	}
	if err := d.stop(); err != nil {
		return err
	}
	defer d.resume()
	ctx = context.WithoutCancel(ctx) // what is begun is ended
	if err := d.empty(ctx); err != nil {
		return err
	}
	if err := d.m.CheckRollback(s); err != nil {
		return fmt.Errorf("roll disk %s back: %w", d.cfg.Name, err)
	}
	view, err := d.m.At(s)
	if err != nil {
		return fmt.Errorf("roll disk %s back: %w", d.cfg.Name, err)
	}
	op := logrec.Op{Type: logrec.TypeRollback, Snapshot: s, Len: view.Bytes()}
	c := commit{recs: []pending{{op: op, data: logrec.AppendRollback(nil, s, op.Len)}}}
	d.appendMu.Lock()
	err = d.appendBatch([]*commit{&c}, d.appendMark)
	d.appendMu.Unlock()
	if err != nil {
		return err
	}
	if err := d.endRollback(ctx); err != nil {
		return d.fail(err)
	}
	return d.mayReply()
}

// stop keeps calls out and waits for those under way; resume ends it.
func (d *Disk) stop() error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	d.mu.Lock()
	if d.rolling {
		d.mu.Unlock()
		d.leave()
		return fmt.Errorf("disk %s is being rolled back: %w", d.cfg.Name, ErrBusy)
	}
	d.rolling = true
	d.mu.Unlock()
	d.leave()
	d.calls.Wait()
	return nil
}

func (d *Disk) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rolling = false
}

// empty destages all that is buffered, while no call adds to it. Where the spindles
// or the log are full it asks for relief once.
func (d *Disk) empty(ctx context.Context) error {
	relieved := false
	for d.Rotate(); d.Frozen(); {
		err := d.pool.Destage(ctx, []*Disk{d})
		switch full := errors.Is(err, datanode.ErrNoSpace) || errors.Is(err, datanode.ErrLogFull); {
		case err == nil:
		case full && !relieved:
			relieved = true
			if err := d.pool.Space.opts.Relieve(ctx); err != nil {
				return errors.Join(ErrNoSpace, err)
			}
		case full:
			return errors.Join(ErrNoSpace, err)
		default:
			return err
		}
	}
	return d.usable()
}

// endRollback destages a rollback that is in the log, and all before it.
func (d *Disk) endRollback(ctx context.Context) error {
	for d.rollbackPending() {
		if err := d.pool.Destage(ctx, []*Disk{d}); err != nil {
			return fmt.Errorf("end the rollback of disk %s: %w", d.cfg.Name, err)
		}
	}
	return d.usable()
}

func (d *Disk) rollbackPending() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, l := range d.layers {
		if l.mark.Kind == logrec.TypeRollback {
			return d.err == nil && !d.closing
		}
	}
	return false
}
