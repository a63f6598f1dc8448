package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"plinth/nbd/client"
	"plinth/nbd/vsock"
)

var (
	// ErrNoDriver is returned where the kernel has no NBD driver loaded: load it
	// with "modprobe nbd".
	ErrNoDriver = errors.New("the kernel's NBD driver is not loaded: run modprobe nbd")
	// ErrInUse is returned by Attach for a device that is attached to something
	// else: choose another.
	ErrInUse = errors.New("device is in use")
	// ErrKept is returned by Keep for a device that has a keeper.
	ErrKept = errors.New("device has a keeper already")
	// ErrNotAttached is returned by Detach for a device that is not attached to a
	// disk of ours.
	ErrNotAttached = errors.New("device is not attached to a disk of plinth")
)

// Options say how a disk is attached. The zero value of a number is its default.
type Options struct {
	// Network and Address are the server's: "tcp" or "unix".
	Network, Address string
	// Disk is its name.
	Disk string
	// Connections is their number where the server allows several. Default: 4.
	Connections int
	// BlockSize is the logical block size of the device in bytes, 512 or 4096.
	// Default: 512, as virtual machines see their disks, so that partition tables
	// mean the same.
	BlockSize int
	// RequestTimeout is when a request that had no answer is sent again over
	// another connection, which ends the one it was sent over. Default: 15 s.
	RequestTimeout time.Duration
	// DeadTimeout is how long requests wait while no server answers, before they
	// fail. Default: 10 min.
	DeadTimeout time.Duration
}

const (
	connectionsDefault    = 4
	connectionsMax        = 64
	blockSizeDefault      = 512
	requestTimeoutDefault = 15 * time.Second
	deadTimeoutDefault    = 10 * time.Minute
	// backendPrefix begins every backend of ours.
	backendPrefix = "plinth: "
)

// Validate says what is wrong with the options, after filling defaults in.
func (o *Options) Validate() error {
	setDefault(&o.Connections, connectionsDefault)
	setDefault(&o.BlockSize, blockSizeDefault)
	setDefault(&o.RequestTimeout, requestTimeoutDefault)
	setDefault(&o.DeadTimeout, deadTimeoutDefault)
	switch {
	case o.Network == vsock.Network:
		return errors.New("the kernel's NBD driver takes TCP and unix sockets only, not VM sockets")
	case o.Connections < 1 || o.Connections > connectionsMax:
		return fmt.Errorf("%d connections: at least 1, at most %d", o.Connections, connectionsMax)
	case o.BlockSize != 512 && o.BlockSize != 4096:
		return fmt.Errorf("block size %d is neither 512 nor 4096", o.BlockSize)
	case o.RequestTimeout < time.Second || o.DeadTimeout < time.Second:
		return errors.New("a timeout is at least 1s")
	}
	return nil
}

func setDefault[T int | time.Duration](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// Attachment is a disk that is a device.
type Attachment struct {
	Device Device
	// Bytes is the size of the disk, and of the device.
	Bytes int64

	opts    Options
	backend string
}

// Attach makes a disk a device and returns when it can be used. A disk that is
// attached already stays so; its device gets the size that the disk has now.
// device is nil for any that is free. o must be valid.
func Attach(ctx context.Context, o Options, device *Device) (*Attachment, error) {
	d, err := openDriver()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	a := &Attachment{opts: o}
	conns, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conns.close() // the kernel has its own reference
	found, ok, err := search(func(backend string) bool { return backend == a.backend })
	switch {
	case err != nil:
		return nil, err
	case ok && device != nil && found != *device:
		return nil, fmt.Errorf("%w: disk %q is attached as %v", ErrInUse, o.Disk, found)
	case ok:
		a.Device = found
		return a, a.refresh(d, conns)
	}
	r := request{
		size: conns.info.Size, blockSize: uint32(o.BlockSize), flags: conns.info.Flags, backend: a.backend,
		timeout: seconds(o.RequestTimeout), deadTimeout: seconds(o.DeadTimeout), sockets: conns.fds,
	}
	if device != nil {
		r.index = (*uint32)(device)
	}
	index, err := d.do(cmdConnect, r)
	switch {
	case errors.Is(err, syscall.EBUSY) && device != nil:
		return nil, fmt.Errorf("%v: %w", *device, ErrInUse)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("attach %q: %w: only root may", o.Disk, err)
	case err != nil:
		return nil, fmt.Errorf("attach %q: %w", o.Disk, err)
	}
	a.Device, a.Bytes = Device(index), conns.info.Size
	return a, nil
}

func seconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

// connections have ended their handshakes.
type connections struct {
	info  client.Info
	conns []net.Conn
	fds   []int // valid while conns are open
}

func (c *connections) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

// dial opens all connections, and checks that they lead to the disk that is
// attached, if one is.
func (a *Attachment) dial(ctx context.Context) (*connections, error) {
	c := &connections{}
	for len(c.conns) < a.opts.Connections {
		conn, err := a.dialOne(ctx, c)
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns = append(c.conns, conn)
		if !c.info.MultiConn() {
			break
		}
	}
	return c, nil
}

func (a *Attachment) dialOne(ctx context.Context, c *connections) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, a.opts.Network, a.opts.Address)
	if err != nil {
		return nil, err
	}
	info, err := client.Negotiate(ctx, conn, a.opts.Disk, client.Options{})
	if err != nil {
		return nil, err
	}
	backend := backendOf(info.Name, info.Description)
	if a.backend == "" {
		a.backend = backend
	}
	fd, err := fdOf(conn)
	if err == nil && a.backend != backend {
		err = fmt.Errorf("%s now serves %q, and %q is attached", a.opts.Address, backend, a.backend)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.info, c.fds = info, append(c.fds, fd)
	return conn, nil
}

// fdOf returns the file descriptor of a connection, valid while that is open.
func fdOf(conn net.Conn) (fd int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("a connection of type %T has no file descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	return fd, raw.Control(func(n uintptr) { fd = int(n) })
}

// refresh gives the device connections in place of those that have died, and the
// size that the disk has now. Connections that the kernel has no place for are
// the caller's to close, as all are.
func (a *Attachment) refresh(d *driver, c *connections) error {
	r := request{index: (*uint32)(&a.Device), backend: a.backend, sockets: c.fds}
	now, err := a.Device.bytes()
	if err != nil {
		return err
	}
	if a.Bytes = now; c.info.Size > now {
		a.Bytes, r.size = c.info.Size, c.info.Size
	}
	if _, err := d.do(cmdReconfigure, r); err != nil {
		return fmt.Errorf("reconfigure %v: %w", a.Device, err)
	}
	return nil
}
