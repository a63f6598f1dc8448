package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// opened is a disk that this host has opened and does not serve yet.
type opened struct {
	e     *export
	epoch id.Epoch
}

// message tells the loop of an event, and of the disk that it opened.
type message struct {
	event owner.Event
	disk  id.Disk
	opened
	opening *opening // which has ended
}

// opening is an open that is under way, which uses the directory of the disk's map: the
// next one of that disk waits, though the machine may have no use for this one any more.
type opening struct {
	over   chan struct{}   // closed when the machine has heard of it
	closed <-chan struct{} // set by then: closed when what it opened is, if nobody wanted that
}

// carryDisk begins what an action on a disk asks for. It is the loop's.
func (o *owning) carryDisk(a owner.Action) {
	switch a.Do {
	case owner.Look:
		o.callDisk(func(ctx context.Context) message { return message{event: o.look(ctx, a)} })
	case owner.Claim:
		o.callDisk(func(ctx context.Context) message {
			err := o.catalog.claim(ctx, o.opts.Name, a.Lease, a.Disk, a.Epoch, a.EpochAt)
			if err != nil && !errors.Is(err, datanode.ErrConflict) {
				o.settled(a.Disk, fmt.Errorf("claim disk %d: %w", a.Disk, err))
			}
			return message{event: owner.Claimed{Call: a.Call, Disk: a.Disk, Outcome: outcomeOf(err)}}
		})
	case owner.Release:
		o.callDisk(func(ctx context.Context) message {
			err := o.catalog.release(ctx, a.Lease, a.Disk)
			return message{event: owner.Released{Call: a.Call, Disk: a.Disk, Outcome: outcomeOf(err)}}
		})
	case owner.Fence:
		o.beginOpen(a)
	case owner.Drain:
		o.drain(a)
	case owner.Serve:
		if n, ok := o.opened[a.Disk]; ok && n.epoch == a.Epoch {
			delete(o.opened, a.Disk)
			o.host.install(n.e)
			o.settled(a.Disk, nil)
			if len(n.e.bare) > 0 {
				o.work.Add(1)
				go o.growBare(n.e)
			}
			if !o.opts.Sole {
				o.wish(func(ctx context.Context) error { return o.fulfilled(ctx, a.Disk) })
			}
		}
	case owner.Ask:
		if o.opts.Sole {
			return // there is nobody
		}
		o.wish(func(ctx context.Context) error { return o.ask(ctx, a.Disk) })
	case owner.Stop:
		if e := o.host.uninstall(a.Disk, a.Epoch); e != nil {
			o.shut(a.Disk, e)
		}
	}
}

// beginOpen opens a claimed disk when what was open of it before is closed, and what was
// being opened has been.
func (o *owning) beginOpen(a owner.Action) {
	t, closed, last := o.term.Load(), o.closing[a.Disk], o.opening[a.Disk]
	now := &opening{over: make(chan struct{})}
	o.opening[a.Disk] = now
	o.work.Add(1)
	go func() {
		defer o.work.Done()
		if o.await(closed) && (last == nil || o.await(last.over) && o.await(last.closed)) { // beside those that go at once
			o.goDisk(func() message {
				m := o.open(a, t)
				m.opening = now
				return m
			})
		}
	}()
}

// await waits until c is closed, if there is one, and reports whether it is.
func (o *owning) await(c <-chan struct{}) bool {
	if c == nil {
		return true
	}
	select {
	case <-c:
		return true
	case <-o.ctx.Done():
		return false
	}
}

// endOpen lets the next open of a disk begin, after discard.
func (o *owning) endOpen(m message) {
	if m.opening != nil {
		m.opening.closed = o.closing[m.disk]
		close(m.opening.over)
	}
}

// disksAtOnce bounds the disks of which something is under way: after a lost session
// all are claimed at once.
const disksAtOnce = 16

// goDisk does something beside the loop that may take long.
func (o *owning) goDisk(do func() message) {
	o.work.Add(1)
	go func() {
		defer o.work.Done()
		select {
		case o.atOnce <- struct{}{}:
		case <-o.ctx.Done():
			return
		}
		m := do()
		<-o.atOnce
		o.tellLoop(m)
	}()
}

// callDisk makes calls to the registry beside the loop.
func (o *owning) callDisk(do func(context.Context) message) {
	o.goDisk(func() message {
		ctx, cancel := context.WithTimeout(o.ctx, o.callTime())
		defer cancel()
		return do(ctx)
	})
}

// wish changes a wish beside the loop. One that was changed by others meanwhile, or
// not reached, is looked at again by whoever waits for it.
func (o *owning) wish(do func(context.Context) error) {
	o.work.Add(1)
	go func() {
		defer o.work.Done()
		ctx, cancel := context.WithTimeout(o.ctx, o.callTime())
		defer cancel()
		if err := do(ctx); err != nil && !errors.Is(err, datanode.ErrConflict) && o.ctx.Err() == nil {
			o.log.Warn("a wish for a disk was not changed", "err", err)
		}
	}()
}

// look reads the owner's row, and then the counter of epochs.
func (o *owning) look(ctx context.Context, a owner.Action) owner.Event {
	out := owner.Looked{Call: a.Call, Disk: a.Disk}
	row, err := o.catalog.ownerOf(ctx, a.Disk)
	if err == nil {
		var next uint64
		out.EpochAt, next, err = o.catalog.counter(ctx, datanode.EpochKey(a.Disk))
		out.Newest = id.Epoch(next - 1)
	}
	if err != nil {
		out.Outcome = owner.Failed
		o.settled(a.Disk, fmt.Errorf("look who has disk %d: %w", a.Disk, err))
		return out
	}
	if row != nil {
		out.Owner, out.OwnerLease, out.OwnerEpoch = row.Host, row.lease, row.Epoch
		if row.Host != o.opts.Name {
			o.host.noteOwner(a.Disk, row, row.revision)
			o.settled(a.Disk, nil) // its export says so
		}
	}
	return out
}

// open opens a claimed disk. One that does not open is this host's all the same: its
// export says why. What was only not reached is tried again.
func (o *owning) open(a owner.Action, t *term) message {
	out := owner.Fenced{Call: a.Call, Disk: a.Disk}
	e, err := o.host.openClaimed(o.ctx, a.Disk, a.Epoch, t)
	switch {
	case errors.Is(err, datanode.ErrFenced):
		out.Outcome = owner.Overtaken
	case errors.Is(err, errGone): // it is given up
		o.settled(a.Disk, err)
		o.send(owner.Unwant{Disk: a.Disk})
	case err != nil:
		o.settled(a.Disk, err)
		o.host.mu.Lock()
		c := o.host.clones[a.Disk]
		o.host.mu.Unlock()
		if c != nil && errors.Is(err, ErrElsewhere) { // its parent makes its checkpoint, wherever it is
			o.send(owner.Adopt{Disk: c.base.Disk})
		}
		select {
		case <-time.After(o.retry()):
		case <-o.ctx.Done():
		}
		out.Outcome = owner.Failed
	}
	return message{event: out, disk: a.Disk, opened: opened{e, a.Epoch}}
}

// transient reports whether an error says only that something was not reached.
func transient(err error) bool {
	for _, e := range []error{
		datanode.ErrUnreachable, datanode.ErrOutcome, datanode.ErrTimeout, datanode.ErrRestarted,
		context.DeadlineExceeded, context.Canceled, ErrElsewhere, // a clone's parent
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// growBare gives clones that were left without a checkpoint one of their parent,
// which this host has: they wait for that, wherever they are.
func (o *owning) growBare(parent *export) {
	defer o.work.Done()
	for _, rec := range parent.bare {
		for o.ctx.Err() == nil && o.host.current(parent) {
			err := parent.disk.Await(o.ctx, rec.Base.Snapshot)
			if err == nil {
				err = parent.disk.Checkpoint(o.ctx)
			}
			if err == nil {
				err = o.catalog.putCheckpoint(o.ctx, parent.disk, &rec)
			}
			if err == nil || errors.Is(err, disk.ErrClosed) { // it is removed, or the parent has gone
				break
			}
			o.log.Error("a clone got no checkpoint of its parent, will retry", "disk", rec.Name, "err", err)
			select {
			case <-time.After(o.retry()):
			case <-o.ctx.Done():
			}
		}
	}
}

// drain takes a disk out of service and closes it, which waits for calls under way:
// all that they wrote is in the log then.
func (o *owning) drain(a owner.Action) {
	e := o.host.uninstall(a.Disk, a.Epoch)
	if e == nil {
		o.goDisk(func() message { return message{event: owner.Drained{Call: a.Call, Disk: a.Disk}} })
		return
	}
	closed := o.shut(a.Disk, e)
	o.goDisk(func() message {
		o.await(closed)
		return message{event: owner.Drained{Call: a.Call, Disk: a.Disk}}
	})
}

// shut closes a disk beside the loop; the next one of its number opens after that.
func (o *owning) shut(d id.Disk, e *export) <-chan struct{} {
	closed := make(chan struct{})
	o.closing[d] = closed
	o.work.Add(1)
	go func() {
		defer o.work.Done()
		defer close(closed)
		e.door.Close()
		if e.disk == nil {
			return
		}
		o.await(o.host.grown(e)) // a clone has an image of it
		if err := e.disk.Close(); err != nil {
			o.log.Warn("closing a disk's map failed", "id", d, "err", err)
		}
	}()
	return closed
}

// keepOpened takes what an open gave before the machine hears of it, and discard
// closes it if the machine did not have it served.
func (o *owning) keepOpened(m message) {
	if m.e != nil {
		o.opened[m.disk] = m.opened
	}
}

func (o *owning) discard(m message) {
	if n, ok := o.opened[m.disk]; ok && m.e != nil && n.e == m.e {
		delete(o.opened, m.disk)
		o.shut(m.disk, n.e)
	}
}

// acquire tells the machine of an event and returns when the disk is served here, or
// known to be another host's, or an attempt has failed: more follow.
func (o *owning) acquire(ctx context.Context, d id.Disk, e owner.Event) error {
	done := make(chan error, 1)
	o.mu.Lock()
	o.waiting[d] = append(o.waiting[d], done)
	o.mu.Unlock()
	o.send(e)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-o.host.life.Done():
		return ErrClosed
	}
}

// settled lets those go who wait for a disk.
func (o *owning) settled(d id.Disk, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.waiting[d] {
		w <- err // it has room for the one
	}
	delete(o.waiting, d)
}

// putOwner returns the put that makes this host the owner of a new disk, and the
// lease under which it is. Errors: ErrNoLease.
func (o *owning) putOwner(d id.Disk, epoch id.Epoch) (datanode.Put, error) {
	t := o.term.Load()
	if t == nil || !t.valid() {
		return datanode.Put{}, ErrNoLease
	}
	return putOwner(o.opts.Name, t.lease, d, epoch)
}
