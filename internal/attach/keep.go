package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// runFolder holds one file per kept device, locked by its keeper.
	runFolder = "/run/plinth"
	// dialTimeout bounds one attempt to reach the server, and retryTime is between
	// two.
	dialTimeout = 5 * time.Second
	retryTime   = 250 * time.Millisecond
	// settleTime lets the kernel end what it does with a connection that it has
	// just reported dead, and gathers the reports of several.
	settleTime = 100 * time.Millisecond
	// lookTime is the longest time until a keeper notices that its device was
	// detached.
	lookTime = time.Second
)

// Keep hands the kernel new connections whenever some have died, until the device
// is detached (nil) or ctx ends (its error); then the device stays attached
// without a keeper. ready is called once, when the keeper is at work.
func (a *Attachment) Keep(ctx context.Context, log *slog.Logger, ready func()) error {
	unlock, err := a.lock()
	if err != nil {
		return err
	}
	defer unlock()
	d, err := openDriver()
	if err != nil {
		return err
	}
	defer d.Close()
	watch, err := openDriver()
	if err != nil {
		return err
	}
	if err := watch.joinDeaths(); err != nil {
		return errors.Join(err, watch.Close())
	}
	// One that is not yet taken says as much as many.
	deaths := make(chan struct{}, 1)
	deaths <- struct{}{} // some may have died while nobody looked
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.watch(watch, deaths)
	}()
	defer func() {
		watch.Close()
		<-ended
	}()
	ready()
	return a.keep(ctx, d, deaths, log)
}

// watch tells of deaths until the driver is closed. The kernel drops messages
// when there are too many (ENOBUFS), so that any error may stand for a death.
func (a *Attachment) watch(d *driver, deaths chan<- struct{}) {
	for {
		dead, err := d.deaths(uint32(a.Device))
		if errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EBADF) {
			return
		}
		if dead || err != nil {
			select {
			case deaths <- struct{}{}:
			default:
			}
		}
		if err != nil {
			time.Sleep(retryTime) // an error that stays must not keep a processor busy
		}
	}
}

func (a *Attachment) keep(ctx context.Context, d *driver, deaths <-chan struct{}, log *slog.Logger) error {
	wanted, failed := false, ""
	for {
		wait := lookTime
		if wanted {
			wait = retryTime
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deaths:
			wanted = true
			if !pause(ctx, settleTime) {
				return ctx.Err()
			}
		case <-time.After(wait):
		}
		if attached, err := a.attached(); !attached {
			return err
		}
		if !wanted {
			continue
		}
		err := a.reconnect(ctx, d)
		wanted = err != nil
		switch {
		case err == nil:
			log.Info("connected", "device", a.Device.String(), "disk", a.opts.Disk, "bytes", a.Bytes)
			failed = ""
		case err.Error() != failed: // each reason once
			failed = err.Error()
			log.Warn("cannot reconnect, will retry", "device", a.Device.String(), "disk", a.opts.Disk, "err", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// attached reports whether the device is still attached to the disk.
func (a *Attachment) attached() (bool, error) {
	backend, err := a.Device.backend()
	return err == nil && backend == a.backend, err
}

// reconnect offers the kernel a full set of connections: it takes one for each
// that is dead, and the rest are closed.
func (a *Attachment) reconnect(ctx context.Context, d *driver) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	return a.refresh(d, c)
}

// lock makes this process the keeper of the device, until unlock or its end.
func (a *Attachment) lock() (unlock func(), err error) {
	if err := os.MkdirAll(runFolder, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(runFolder, filepath.Base(a.Device.String())+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("%v: %w", a.Device, ErrKept)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}
