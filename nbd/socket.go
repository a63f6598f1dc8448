package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a connection read and written by system calls that the runtime does
// not hear of. They never block and copy at most callBytesMax: so they are no more
// than a memmove to it. Told of them, it takes the processor from a call that copies
// for 20 µs, and wakes another thread for it. One goroutine reads at a time, and
// one writes.
type socket struct {
	net.Conn
	raw syscall.RawConn

	// Of the call under way. receive and transmit are methods, bound once so
	// that no call allocates.
	in       []byte
	received int
	inErrno  syscall.Errno
	receive  func(fd uintptr) bool
	poll     poll
	eager    bool // poll before sleeping

	out      []byte // what is left to write
	more     bool
	outErrno syscall.Errno
	transmit func(fd uintptr) bool
}

// newSocket returns nc as a socket, or as it is where there is none below.
func newSocket(nc net.Conn) net.Conn {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nc
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nc
	}
	s := &socket{Conn: nc, raw: raw}
	s.receive, s.transmit = s.receiveFrom, s.transmitTo
	return s
}

// SyscallConn makes s a syscall.Conn.
func (s *socket) SyscallConn() (syscall.RawConn, error) { return s.raw, nil }

// CloseWrite tells the peer that nothing more comes.
func (s *socket) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (s *socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.in = p
	err := s.raw.Read(s.receive)
	s.in = nil
	switch {
	case err != nil:
		return 0, err
	case s.inErrno != 0:
		return 0, os.NewSyscallError("recvfrom", s.inErrno)
	case s.received == 0:
		return 0, io.EOF
	}
	return s.received, nil
}

// receiveFrom reports false when there is nothing yet.
func (s *socket) receiveFrom(fd uintptr) bool {
	return s.tryReceive(fd) || s.eager && s.poll.wait(func() bool { return s.tryReceive(fd) })
}

func (s *socket) tryReceive(fd uintptr) bool {
	for {
		s.received, s.inErrno = recvfrom(fd, s.in)
		if s.inErrno != unix.EINTR {
			return s.inErrno != unix.EAGAIN
		}
	}
}

func (s *socket) Write(p []byte) (int, error) { return s.write(p, false) }

// write is Write that may say that more follows at once.
func (s *socket) write(p []byte, more bool) (int, error) {
	s.out, s.more, s.outErrno = p, more, 0
	err := s.raw.Write(s.transmit)
	n := len(p) - len(s.out)
	s.out = nil
	if err == nil && s.outErrno != 0 {
		err = os.NewSyscallError("sendto", s.outErrno)
	}
	return n, err
}

// transmitTo reports false when there is no room for the rest.
func (s *socket) transmitTo(fd uintptr) bool {
	for len(s.out) > 0 {
		n, errno := sendto(fd, s.out, s.more)
		switch errno {
		case 0:
			s.out = s.out[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.outErrno = errno
			return true
		}
	}
	return true
}
