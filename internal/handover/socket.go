package handover

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"plinth/nbd/vsock"
)

// Socket is a listener that can be passed on.
type Socket struct {
	passable
	// owned says that the path of a unix socket is removed with it.
	owned        bool
	kept, closed atomic.Bool
}

// passable is what listeners of package net and VM sockets can do.
type passable interface {
	net.Listener
	File() (*os.File, error)
	SetDeadline(time.Time) error
}

// NewSocket returns a Socket of l. owned says that who closes it for good removes
// the path of a unix socket: l.Close already does.
func NewSocket(l net.Listener, owned bool) (*Socket, error) {
	p, ok := l.(passable)
	if !ok {
		return nil, fmt.Errorf("a listener of type %T cannot be passed on", l)
	}
	return &Socket{passable: p, owned: owned}, nil
}

// Keep makes Close stop accepting and no more: the socket goes on listening, for
// Pass.
func (s *Socket) Keep() { s.kept.Store(true) }

// Close ends Accept, and the socket unless Keep was called before. It may be
// called again.
func (s *Socket) Close() error {
	if s.kept.Load() {
		return s.SetDeadline(time.Unix(1, 0))
	}
	if s.closed.Swap(true) {
		return nil
	}
	return s.passable.Close()
}

// FileListener is net.FileListener that knows VM sockets too.
func FileListener(f *os.File) (net.Listener, error) {
	l, err := net.FileListener(f)
	if err == nil {
		return l, nil
	}
	if l, verr := vsock.FileListener(f); verr == nil {
		return l, nil
	}
	return nil, err
}

// unixListener is a unix socket that was passed: the kernel may know its path by
// another name.
type unixListener struct {
	*net.UnixListener
	path  string
	owned bool
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil && l.owned {
		_ = os.Remove(l.path) // who has removed it before did the same
	}
	return err
}
