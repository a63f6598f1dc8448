package forward

import (
	"context"
	"crypto/tls"
	"encoding/hex"
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

	export  string      // as a peer knows it
	version uint16      // that the peer and this host use
	of      any         // Place.Of
	wrote   atomic.Bool // Options.Wrote was called
	close   func()
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
	conn, o, err := d.dial(ctx, p.Addr, &t.version)
	if err != nil {
		return nil, err
	}
	o.Form, o.Export = client.Extended, func() string {
		return exportName(t.version, hex.EncodeToString(d.session[:]), p.Export)
	}
	c, err := client.NewClient(ctx, conn, p.Export, o)
	if err != nil {
		return nil, fmt.Errorf("reach the disk's owner: %w", err)
	}
	t.name, t.device, t.remote, t.export = p.Addr, c, c, p.Export
	t.close = func() { _ = c.Close() }
	return t, nil
}

// dial connects to a peer. version is set in the TLS handshake.
func (d *Device) dial(ctx context.Context, addr string, version *uint16) (net.Conn, client.Options, error) {
	own, err := spoken(d.opts.TLS.Certificates[0].Leaf)
	if err != nil {
		return nil, client.Options{}, err
	}
	config := d.opts.TLS.Clone()
	config.VerifyConnection = func(s tls.ConnectionState) (err error) {
		*version, err = own.agree(s)
		return err
	}
	dialer := net.Dialer{Timeout: connectTime, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: deadAfter / 4, Interval: deadAfter / 4, Count: 3,
	}, Control: boundSilence}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, client.Options{}, fmt.Errorf("reach the disk's owner: %w", err)
	}
	return conn, client.Options{TLS: config}, nil
}

// carried reports whether bytes of a change that a place in this process has begun are
// done, and whether t knows that.
func (d *Device) carried(ctx context.Context, t *target, p Piece) (done, known bool, err error) {
	if once, ok := t.device.(Once); ok {
		done, err = once.Carried(p.Epoch, p.Pos)
		return done, true, err
	}
	if t.remote == nil || t.version < numbersVersion {
		return p.Sure, false, nil
	}
	var version uint16
	conn, o, err := d.dial(ctx, t.name, &version)
	if err != nil {
		return false, false, err
	}
	info, err := client.DescribeConn(ctx, conn, exportName(numbersVersion, question(p.Epoch, p.Pos), t.export), o)
	if err != nil {
		return false, false, fmt.Errorf("ask the disk's owner: %w", err)
	}
	done, err = answered(info.Description)
	return done, true, err
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
