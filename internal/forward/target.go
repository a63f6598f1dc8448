package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plinth/nbd"
	"plinth/nbd/client"
)

// target is a place in use.
type target struct {
	name   string
	device nbd.Device
	reads  nbd.TryReader // nil: not at this place
	writes nbd.TryWriter
	remote *client.Client // nil: in this process
	of     any            // Place.Of
	wrote  atomic.Bool    // Options.Wrote was called
	close  func()
	// watched ends the watch of Place.While.
	watched atomic.Pointer[func() bool]
	// users are calls under way, and one more while it is the Device's.
	users atomic.Int64
}

// enter counts a call, unless the target is left already.
func (t *target) enter() bool {
	for {
		n := t.users.Load()
		if n == 0 {
			return false
		}
		if t.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// done ends what enter began.
func (t *target) done() {
	if t.users.Add(-1) != 0 {
		return
	}
	if stop := t.watched.Load(); stop != nil {
		(*stop)()
	}
	if t.close != nil {
		t.close()
	}
}

// gone reports that err says nothing of the request, but that the target is not
// the disk's place any more, or cannot be reached.
func (t *target) gone(err error, own func(any, error) bool) bool {
	if t.remote != nil {
		var errno nbd.Errno
		return errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrProtocol) ||
			errors.As(err, &errno) && errno == nbd.ESHUTDOWN
	}
	return errors.Is(err, nbd.ErrShutdown) || own != nil && own(t.of, err)
}

// open makes a target of a place.
func (d *Device) open(ctx context.Context, p Place) (*target, error) {
	t := &target{}
	t.users.Store(1)
	switch {
	case (p.Local == nil) == (p.Addr == ""):
		return nil, errNoPlace
	case p.Local != nil:
		t.name, t.device, t.close, t.of = "here", p.Local, p.Release, p.Of
		t.reads, _ = p.Local.(nbd.TryReader)
		t.writes, _ = p.Local.(nbd.TryWriter)
		return t, nil
	}
	dialer := net.Dialer{Timeout: connectTime, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: deadAfter / 4, Interval: deadAfter / 4, Count: 3,
	}, Control: boundSilence}
	conn, err := dialer.DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return nil, fmt.Errorf("reach the disk's owner: %w", err)
	}
	c, err := client.NewClient(ctx, conn, d.session+separator+p.Export, client.Options{Form: client.Extended, TLS: d.opts.TLS})
	if err != nil {
		return nil, fmt.Errorf("reach the disk's owner: %w", err)
	}
	t.name, t.device, t.remote = p.Addr, c, c
	t.close = func() { _ = c.Close() }
	return t, nil
}

const (
	connectTime = 3 * time.Second
	// deadAfter is for how long a peer may leave unacknowledged what was sent to it,
	// or a probe.
	deadAfter = 4 * time.Second
)

// boundSilence has the kernel end the connection when a peer acknowledges nothing
// for deadAfter: tcp(7), TCP_USER_TIMEOUT.
func boundSilence(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter/time.Millisecond))
	})
	return errors.Join(err, failed)
}
