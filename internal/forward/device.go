package forward

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
)

// Place is where a disk is served: exactly one of Local and Addr is set.
type Place struct {
	// Local is the disk in this process; Release is called once when no call to it
	// is under way any more.
	Local   nbd.Device
	Release func()
	// Addr is a peer's, "HOST:PORT", and Export the name by which it knows the disk.
	Addr, Export string
	// While, if set, ends when the disk is known to have left the place: a peer that
	// hangs says nothing.
	While context.Context
	// Of is what Find knows a place in this process by: for Options.Gone and Begun.
	Of any
}

// ErrNone is an error of Options.Find that says that there will be no place: what
// waits for one fails.
var ErrNone = errors.New("the disk has no place")

// Options describe one client's view of a disk.
type Options struct {
	// Find returns the disk's place. It may claim the disk, and wait for it; an error
	// means that there is no place now, and it is asked again.
	Find func(ctx context.Context) (Place, error)
	// Bytes is the size until there is a place; it may only grow.
	Bytes int64
	// Bitmap is what an nbd.Changer calls its bitmap, which a disk in this process may
	// have and a peer never gives. Default: none.
	Bitmap string
	// TLS is of [TLS].
	TLS *tls.Config
	// Gone reports an error of a place in this process that says that the disk has left
	// it; nbd.ErrShutdown always does. Default: nil, no other.
	Gone func(of any, err error) bool
	// Begun returns what a place in this process, left, may have done of a change that
	// ended with err there, from its beginning. Default: nil, nothing.
	Begun func(left any, err error) []Piece
	// Wrote is called before the first change at a place, and told if that is a peer,
	// Unreached when one could not be reached for some time: this process may want the
	// disk. Both return at once. Default: nil.
	Wrote     func(peer bool)
	Unreached func()
	// Left is called when a place in use is left; it returns at once, and may have
	// another goroutine call Enter. Default: nil.
	Left func()
	// Logger gets a line for each change of place. Default: slog.Default().
	Logger *slog.Logger
}

// Device is one client's view of a disk, wherever that is. It implements
// nbd.Device, nbd.TryReader, nbd.TryWriter, nbd.Extenter, nbd.Changer, nbd.Prefetcher
// and nbd.FastZeroer. [New] makes one, Close ends it.
type Device struct {
	opts    Options
	session [sessionBytes]byte
	numbers numbers

	// now is the target in use; nil: the next call finds one.
	now atomic.Pointer[target]
	// finding has room for one: who looks for a place.
	finding chan struct{}
	closed  atomic.Bool
	bytes   atomic.Int64 // as the last place said
}

const (
	// The pauses between attempts to find a place.
	pauseMin = 20 * time.Millisecond
	pauseMax = time.Second
	// unreachedAfter is for how long peers are tried before Options.Unreached.
	unreachedAfter = 3 * time.Second
)

// New returns a Device. It looks for the place with the first call.
func New(o Options) *Device {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	d := &Device{opts: o, numbers: newNumbers(), finding: make(chan struct{}, 1)}
	_, _ = rand.Read(d.session[:]) // crypto/rand: never an error
	d.bytes.Store(o.Bytes)
	return d
}

// Enter makes sure that there is a place, if need be by finding one.
func (d *Device) Enter(ctx context.Context) error {
	t, err := d.enter(ctx)
	if err == nil {
		t.done()
	}
	return err
}

// Close leaves the place. Calls under way must have returned.
func (d *Device) Close() {
	d.closed.Store(true)
	d.leave(d.now.Load())
}

// leave has later calls find a place anew. It reports if t was the one in use.
func (d *Device) leave(t *target) bool {
	if t == nil || !d.now.CompareAndSwap(t, nil) {
		return false
	}
	t.done()
	if d.opts.Left != nil && !d.closed.Load() {
		d.opts.Left()
	}
	return true
}

// do has f called with the disk's place, and again with the next one where a place
// turns out to be gone, until ctx ends.
func (d *Device) do(ctx context.Context, f func(nbd.Device) error) error {
	return d.doAt(ctx, func(t *target) error { return f(t.device) })
}

func (d *Device) doAt(ctx context.Context, f func(*target) error) error {
	for pause := time.Duration(0); ; pause = min(max(2*pause, pauseMin), pauseMax) {
		t, err := d.enter(ctx)
		if err != nil {
			return err
		}
		err = f(t)
		var unsettled *unsettledError
		gone := err != nil && (t.gone(err, d.opts.Gone) || errors.As(err, &unsettled))
		if err != nil && ctx.Err() != nil && t.remote != nil {
			gone = true // what was given up must not be carried out after what comes next
		}
		t.done()
		if !gone {
			return err
		}
		if d.leave(t) {
			d.opts.Logger.Debug("forward: has left the disk's place", "place", t.name, "err", err)
		}
		if ctx.Err() != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// enter returns the target, which the caller is done with later.
func (d *Device) enter(ctx context.Context) (*target, error) {
	for {
		if t := d.now.Load(); t != nil && t.enter() {
			return t, nil
		}
		select {
		case d.finding <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		err := d.find(ctx)
		<-d.finding
		if err != nil {
			return nil, err
		}
	}
}

// find makes sure that there is a target, however long it takes.
func (d *Device) find(ctx context.Context) error {
	var last error
	var unreached time.Time // since when a peer is
	for pause := pauseMin; d.now.Load() == nil; pause = min(2*pause, pauseMax) {
		if d.closed.Load() {
			return nbd.ErrShutdown
		}
		place, err := d.opts.Find(ctx)
		if errors.Is(err, ErrNone) {
			return err
		}
		var t *target
		if err == nil {
			t, err = d.open(ctx, place)
			if err != nil && place.Addr != "" {
				d.missed(&unreached, err)
			}
		}
		if err == nil {
			d.opts.Logger.Debug("forward: serving", "place", t.name)
			d.use(t, place.While)
			return nil
		}
		if last == nil || last.Error() != err.Error() {
			d.opts.Logger.Warn("forward: the disk has no place, will look again", "err", err)
		}
		last = err
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("%w: %w", err, last)
		}
	}
	return nil
}

// use has calls go to t until while ends.
func (d *Device) use(t *target, while context.Context) {
	t.users.Add(1) // until what ends t knows how to end the watch
	defer t.done()
	d.bytes.Store(max(d.bytes.Load(), t.device.Size()))
	if d.now.Store(t); d.closed.Load() {
		d.leave(t)
	}
	if while == nil {
		return
	}
	stop := context.AfterFunc(while, func() {
		if t.remote != nil {
			_ = t.remote.Close() // calls to a peer that hangs go on elsewhere
		}
		d.leave(t)
	})
	t.watched.Store(&stop)
}

// missed counts a peer that could not be reached, since a time; one that has answered
// has reasons of its own.
func (d *Device) missed(since *time.Time, err error) {
	var answer *client.OptionError
	switch now := time.Now(); {
	case errors.As(err, &answer):
		*since = time.Time{}
	case since.IsZero():
		*since = now
	case now.Sub(*since) >= unreachedAfter && d.opts.Unreached != nil:
		*since = now
		d.opts.Unreached()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Size implements nbd.Device.
func (d *Device) Size() int64 {
	bytes := d.bytes.Load()
	if t := d.now.Load(); t != nil && t.remote == nil {
		bytes = max(bytes, t.device.Size())
	}
	return bytes
}

// ReadAt implements nbd.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.do(ctx, func(at nbd.Device) error { return at.ReadAt(ctx, p, off) })
}

// TryReadAt implements nbd.TryReader: a disk in this process may have it at once.
func (d *Device) TryReadAt(p []byte, off int64) bool {
	t := d.now.Load()
	if t == nil || t.reads == nil || !t.enter() {
		return false
	}
	defer t.done()
	return t.reads.TryReadAt(p, off)
}

// TryWriteAt implements nbd.TryWriter.
func (d *Device) TryWriteAt(p []byte, off int64) bool {
	t := d.now.Load()
	if t == nil || t.writes == nil || !t.enter() {
		return false
	}
	defer t.done()
	return t.writes.TryWriteAt(p, off)
}

// WriteAt implements nbd.Device.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.change(ctx, int64(len(p)), func(at nbd.Device, done int64) error {
		return at.WriteAt(ctx, p[done:], off+done, fua)
	})
}

// Trim implements nbd.Device.
func (d *Device) Trim(ctx context.Context, off, n int64, fua bool) error {
	return d.change(ctx, n, func(at nbd.Device, _ int64) error { return at.Trim(ctx, off, n, fua) })
}

// Zero implements nbd.Device.
func (d *Device) Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error {
	return d.change(ctx, n, func(at nbd.Device, _ int64) error { return at.Zero(ctx, off, n, mayTrim, fua) })
}

// Flush implements nbd.Device. What was completed at an earlier place is in the log
// that the present one has replayed, and so in what it syncs.
func (d *Device) Flush(ctx context.Context) error {
	return d.do(ctx, func(at nbd.Device) error { return at.Flush(ctx) })
}

// Extents implements nbd.Extenter. After a move it begins again where it was.
func (d *Device) Extents(ctx context.Context, off, n int64, each func(nbd.Extent) bool) error {
	return d.do(ctx, func(at nbd.Device) error {
		if n <= 0 {
			return nil
		}
		return extents(ctx, at, off, n, func(x nbd.Extent) bool {
			off, n = off+x.N, n-x.N
			if !each(x) {
				n = 0
				return false
			}
			return true
		})
	})
}

// Bitmap implements nbd.Changer.
func (d *Device) Bitmap() string { return d.opts.Bitmap }

// Changes implements nbd.Changer, at a place in this process. After a move it begins
// again where it was.
func (d *Device) Changes(ctx context.Context, off, n int64, each func(int64, bool) bool) error {
	return d.do(ctx, func(at nbd.Device) error {
		x, ok := at.(nbd.Changer)
		if !ok {
			return fmt.Errorf("what has changed is told by the disk's owner only: %w", errors.ErrUnsupported)
		}
		if n <= 0 {
			return nil
		}
		return x.Changes(ctx, off, n, func(run int64, dirty bool) bool {
			off, n = off+run, n-run
			if !each(run, dirty) {
				n = 0
				return false
			}
			return true
		})
	})
}

// Prefetch implements nbd.Prefetcher.
func (d *Device) Prefetch(ctx context.Context, off, n int64) error {
	return d.do(ctx, func(at nbd.Device) error { return prefetch(ctx, at, off, n) })
}

// ZeroIsFast implements nbd.FastZeroer: plinth's disks do that with one record.
func (d *Device) ZeroIsFast(int64, int64, bool) bool { return true }

func extents(ctx context.Context, at nbd.Device, off, n int64, each func(nbd.Extent) bool) error {
	if x, ok := at.(nbd.Extenter); ok {
		return x.Extents(ctx, off, n, each)
	}
	each(nbd.Extent{N: n})
	return nil
}

func prefetch(ctx context.Context, at nbd.Device, off, n int64) error {
	if x, ok := at.(nbd.Prefetcher); ok {
		return x.Prefetch(ctx, off, n)
	}
	return nil
}

var errNoPlace = errors.New("forward: a place is in this process or at an address")
