package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"plinth/nbd/internal/wire"
)

// Errno is an error number of the protocol: the only values that a reply may
// carry. As an error it comes from the client package; a Device may return it
// too, and the client gets it as it is.
type Errno uint32

// The protocol's error numbers (proto.md, "Error values").
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "EPERM (operation not permitted)"
	case EIO:
		return "EIO (input/output error)"
	case ENOMEM:
		return "ENOMEM (cannot allocate memory)"
	case EINVAL:
		return "EINVAL (invalid argument)"
	case ENOSPC:
		return "ENOSPC (no space left on device)"
	case EOVERFLOW:
		return "EOVERFLOW (value too large)"
	case ENOTSUP:
		return "ENOTSUP (operation not supported)"
	case ESHUTDOWN:
		return "ESHUTDOWN (server is shutting down)"
	}
	return fmt.Sprintf("errno %d", uint32(e))
}

// known reports whether the protocol allows e in a reply.
func (e Errno) known() bool {
	switch e {
	case EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN:
		return true
	}
	return false
}

// errnoTable is the one translation of errors to the wire; the first match
// counts. What it does not name is EIO. A deadline is EIO because the device
// failed to answer; a cancelled context means that the server is closing.
var errnoTable = []struct {
	err   error
	errno Errno
}{
	{ErrNoSpace, ENOSPC},
	{ErrReadOnly, EPERM},
	{ErrOutOfRange, EINVAL},
	{ErrShutdown, ESHUTDOWN},
	{context.DeadlineExceeded, EIO},
	{context.Canceled, ESHUTDOWN},
	{syscall.ENOSPC, ENOSPC},
	{syscall.EDQUOT, ENOSPC},
	{syscall.EFBIG, ENOSPC},
}

// errnoOf translates a device's error for a reply to cmd. own is
// Options.Errno and may be nil; what it knows comes first.
func errnoOf(err error, cmd uint16, own func(error) Errno) Errno {
	if err == nil {
		return 0
	}
	if own != nil {
		if e := own(err); e != 0 {
			return allowed(e)
		}
	}
	if e := Errno(0); errors.As(err, &e) {
		return allowed(e)
	}
	for _, row := range errnoTable {
		if errors.Is(err, row.err) {
			if row.err == ErrOutOfRange {
				return beyondEnd(cmd)
			}
			return row.errno
		}
	}
	return EIO
}

func allowed(e Errno) Errno {
	if e.known() {
		return e
	}
	return EIO
}

// beyondEnd is the answer to a request that reaches beyond the device's end.
func beyondEnd(cmd uint16) Errno {
	if cmd == wire.CmdWrite || cmd == wire.CmdWriteZeroes {
		return ENOSPC
	}
	return EINVAL
}
