// Package vsock dials and listens on VM sockets, by which a virtual machine
// reaches its host without a network.
//
// An address is CID:PORT, or PORT alone. The CID names a machine: 1 is this one,
// 2 the host of this virtual machine, others are virtual machines of this host.
// PORT alone is the host's for [Dial], and for [Listen] any machine may connect:
// there are no permissions, and every virtual machine of the host reaches it.
//
// It has no permissions and no encryption of its own: a server should want TLS
// where virtual machines are not trusted.
package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Network is the name of this kind of socket beside "tcp" and "unix".
const Network = "vsock"

// ErrAddress is wrapped for an address that is not of the form CID:PORT or PORT.
var ErrAddress = errors.New("a VM socket's address is CID:PORT or PORT, both numbers")

// addr is where a listener is. It is printed as Listen reads it.
type addr struct{ cid, port uint32 }

func (a addr) Network() string { return Network }

func (a addr) String() string {
	if a.cid == unix.VMADDR_CID_ANY {
		return strconv.FormatUint(uint64(a.port), 10)
	}
	return fmt.Sprintf("%d:%d", a.cid, a.port)
}

// parse reads an address whose CID is this unless it has its own.
func parse(text string, cid uint32) (addr, error) {
	first, port, found := strings.Cut(text, ":")
	if !found {
		port = first
	} else {
		n, err := strconv.ParseUint(first, 10, 32)
		if err != nil {
			return addr{}, fmt.Errorf("%q: %w", text, ErrAddress)
		}
		cid = uint32(n)
	}
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil || n == unix.VMADDR_PORT_ANY {
		return addr{}, fmt.Errorf("%q: %w", text, ErrAddress)
	}
	return addr{cid, uint32(n)}, nil
}

// Check returns ErrAddress, wrapped, for what neither Dial nor Listen takes.
func Check(address string) error {
	_, err := parse(address, 0)
	return err
}

// Split returns the CID and the port that Dial connects to.
func Split(address string) (cid, port uint32, err error) {
	a, err := parse(address, unix.VMADDR_CID_HOST)
	return a.cid, a.port, err
}

// Dial connects to an address until ctx ends.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	cid, port, err := Split(address)
	if err != nil {
		return nil, err
	}
	return vsock.DialContext(ctx, cid, port, nil)
}

// Listener is a listening socket whose descriptor can be passed on.
type Listener struct {
	*vsock.Listener
	file *os.File // the same socket
	addr addr
}

// Listen listens on an address; port 0 is any that is free.
func Listen(address string) (*Listener, error) {
	a, err := parse(address, unix.VMADDR_CID_ANY)
	if err != nil {
		return nil, err
	}
	if a.port == 0 {
		a.port = unix.VMADDR_PORT_ANY
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on VM socket %s: %w", address, err)
	}
	f := os.NewFile(uintptr(fd), Network)
	err = unix.Bind(fd, &unix.SockaddrVM{CID: a.cid, Port: a.port})
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	var l *Listener
	if err == nil {
		l, err = FileListener(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("listen on VM socket %s: %w", address, err)
	}
	return l, nil
}

// FileListener returns a listener on a copy of f, which stays the caller's, like
// net.FileListener, which knows no such sockets. Other sockets are an error.
func FileListener(f *os.File) (*Listener, error) {
	own, err := duplicate(f)
	if err != nil {
		return nil, err
	}
	l, err := vsock.FileListener(own)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	at := l.Addr().(*vsock.Addr)
	return &Listener{Listener: l, file: own, addr: addr{at.ContextID, at.Port}}, nil
}

// Addr returns the address as Listen takes it.
func (l *Listener) Addr() net.Addr { return l.addr }

// File returns a copy of the socket's descriptor, which is the caller's.
func (l *Listener) File() (*os.File, error) { return duplicate(l.file) }

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn() // not Fd, which would have accept block for all copies
	if err != nil {
		return nil, err
	}
	var fd int
	var derr error
	err = raw.Control(func(of uintptr) { fd, derr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, derr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), Network), nil
}

// Close stops listening, unless the socket was passed on.
func (l *Listener) Close() error { return errors.Join(l.Listener.Close(), l.file.Close()) }
