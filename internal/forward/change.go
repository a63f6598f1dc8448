package forward

import (
	"context"
	"fmt"
	"sync"
	"time"

	"plinth/internal/id"
	"plinth/nbd"
)

// ResendTimeMax is for how long a change is sent again to peers. Their disks remember for
// longer that it was done.
const ResendTimeMax = 150 * time.Second

// Once is the ability of plinth's disks to carry out a change once.
type Once interface {
	// Once returns the disk for one change, which does what is not yet done of it.
	Once(id.Tag) nbd.Device
	// Carried reports whether what an earlier owner has appended at a position of the
	// disk's log, or tried to, was done. An error says that this owner cannot know.
	Carried(id.Epoch, id.Pos) (bool, error)
}

// Piece is some bytes of a change that a place in this process has begun.
type Piece struct {
	Bytes int64
	// Epoch and Pos are where in the disk's log they are, if they are.
	Epoch id.Epoch
	Pos   id.Pos
	// Sure says that they are, whether or not the next place can tell.
	Sure bool
}

// repeated is a change that may be sent several times.
type repeated struct {
	done int64 // bytes that need not be sent again, from the beginning
	// What became of it at the last place, if that was in this process.
	left   any
	err    error
	failed time.Time
	pieces []Piece // that are behind done, if they are done
	// number is how peers know it; 0: none has got it.
	number uint64
	first  time.Time // when it had the number
}

// change is do for a call that changes n bytes. f goes on behind the first done of
// them.
func (d *Device) change(ctx context.Context, n int64, f func(at nbd.Device, done int64) error) error {
	var c repeated
	defer d.numbers.release(&c)
	return d.doAt(ctx, func(t *target) error {
		if err := d.settle(ctx, t, &c); err != nil {
			return err
		}
		if d.opts.Wrote != nil && !t.wrote.Load() && t.wrote.CompareAndSwap(false, true) {
			d.opts.Wrote(t.remote != nil)
		}
		if c.done == n && n > 0 { // only the answer was wanting
			return t.device.Flush(ctx)
		}
		at, err := d.numbered(ctx, t, &c)
		if err != nil {
			return err
		}
		if err = f(at, c.done); err != nil && t.remote == nil {
			c.left, c.err, c.failed = t.of, err, time.Now()
		}
		return err
	})
}

// unsettledError says that a place does not know what became of a change: the next one
// may.
type unsettledError struct{ error }

func (e *unsettledError) Unwrap() error { return e.error }

// settle asks the place how much of the change was done where it was last.
func (d *Device) settle(ctx context.Context, t *target, c *repeated) error {
	if c.err != nil && d.opts.Begun != nil {
		c.pieces = d.opts.Begun(c.left, c.err)
	}
	c.left, c.err = nil, nil
	for len(c.pieces) > 0 {
		p := c.pieces[0]
		done, known, err := d.carried(ctx, t, p)
		switch {
		case err != nil:
			return &unsettledError{err}
		case !done && known && tooLong(c.failed): // it may have been forgotten
			return errTooLong
		case !done: // nor is what follows
			c.pieces = nil
			return nil
		}
		c.done += p.Bytes
		c.pieces = c.pieces[1:]
	}
	return nil
}

var errTooLong = fmt.Errorf("forward: the disk's owners need not know any more what became of a change, after %v", ResendTimeMax)

// tooLong reports whether a time is longer ago than disks have to remember. Of a machine
// that was suspended only the wall clock went on.
func tooLong(t time.Time) bool {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0))) > ResendTimeMax
}

// numbered returns the place for the change, which has a number from the first peer on that
// knows it by that.
func (d *Device) numbered(ctx context.Context, t *target, c *repeated) (nbd.Device, error) {
	switch {
	case t.remote != nil && t.version >= numbersVersion:
		if err := d.numbers.take(ctx, c); err != nil {
			return nil, err
		}
		if tooLong(c.first) {
			return nil, errTooLong
		}
		return t.remote.Numbered(c.number), nil
	case t.remote == nil && c.number != 0:
		if once, ok := t.device.(Once); ok {
			return once.Once(id.Tag{Session: d.session, Number: c.number}), nil
		}
	}
	return t.device, nil
}

// numbers gives changes their numbers. A slot that was used lately is used first, so that
// disks remember few.
type numbers struct {
	room chan struct{} // of id.TagSlots

	mu   sync.Mutex
	free []uint64 // the last number of each slot that is free
	made uint64   // slots
}

func newNumbers() numbers { return numbers{room: make(chan struct{}, id.TagSlots)} }

// take gives a change a number, unless it has one.
func (n *numbers) take(ctx context.Context, c *repeated) error {
	if c.number != 0 {
		return nil
	}
	select {
	case n.room <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	last := n.made
	if k := len(n.free); k > 0 {
		last, n.free = n.free[k-1], n.free[:k-1]
	} else {
		n.made++
	}
	c.number, c.first = last+id.TagSlots, time.Now()
	return nil
}

func (n *numbers) release(c *repeated) {
	if c.number == 0 {
		return
	}
	n.mu.Lock()
	n.free = append(n.free, c.number)
	n.mu.Unlock()
	<-n.room
}
