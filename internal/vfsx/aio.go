package vfsx

import (
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// AIO makes calls that wait for a drive, and that keep none of Go's processors
// meanwhile: a thread inside a system call keeps its processor for up to 20 ms before the
// runtime takes it away, so that a few writes to slow drives stop all else. The kernel
// carries the calls out on its own (io_submit(2)) and says through a descriptor, which
// Go's poller looks at, that one has ended. Where it does not do that, or more calls wait
// than there are slots, a call is made as usual.
//
// NewAIO makes one. It is safe for concurrent use. A nil *AIO makes all calls as
// usual.
type AIO struct {
	mu     sync.Mutex
	idle   []*slot
	slots  int // that there are, or may not be any more
	closed bool
}

// slot is room for one call under way: a context of the kernel for one, and what the
// kernel reads and writes.
type slot struct {
	context uintptr
	ended   *os.File // an eventfd
	fd      int      // of ended
	iocb    iocb
	iovecs  []unix.Iovec
}

// iocb and ioEvent are those of linux/aio_abi.h; what is not named stays 0, or is not read.
type iocb struct {
	_       [2]uint64
	opcode  uint16
	_       int16
	fd      uint32
	buf     uint64
	n       uint64
	off     int64
	_       uint64
	flags   uint32
	eventfd uint32
}

type ioEvent struct {
	_      [2]uint64
	result int64
	_      int64
}

const (
	opSyncData = 3 // IOCB_CMD_FDSYNC
	opWritev   = 8 // IOCB_CMD_PWRITEV
	flagEvent  = 1 // IOCB_FLAG_RESFD

	// slotsMax bounds what one AIO has under way.
	slotsMax = 16
)

// NewAIO returns an AIO; its slots are made as they are needed.
func NewAIO() *AIO { return &AIO{} }

// Close gives the slots back. Calls that are under way end as they do, and later ones are
// made as usual.
func (a *AIO) Close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	idle := a.idle
	a.idle, a.closed = nil, true
	a.mu.Unlock()
	for _, s := range idle {
		s.close()
	}
}

// SyncData is f.SyncData.
func (a *AIO) SyncData(f vfs.File) error {
	if !hasDescriptor(f) {
		return f.SyncData()
	}
	_, ok, err := a.call(func(s *slot) { s.iocb.opcode = opSyncData }, int(f.Fd()))
	runtime.KeepAlive(f)
	if !ok {
		return f.SyncData()
	}
	if err != nil {
		return os.NewSyscallError("fdatasync", err)
	}
	return nil
}

// pwritev is pwritev(2).
func (a *AIO) pwritev(fd int, pieces [][]byte, off int64) (n int, err error) {
	n, ok, err := a.call(func(s *slot) {
		s.iovecs = s.iovecs[:0]
		for _, p := range pieces {
			v := unix.Iovec{Base: unsafe.SliceData(p)}
			v.SetLen(len(p))
			s.iovecs = append(s.iovecs, v)
		}
		s.iocb.opcode, s.iocb.off = opWritev, off
		s.iocb.buf, s.iocb.n = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s.iovecs)))), uint64(len(s.iovecs))
	}, fd)
	runtime.KeepAlive(pieces)
	if !ok {
		return unix.Pwritev(fd, pieces, off)
	}
	return n, err
}

// call makes a call that set describes, and waits for its end. It reports false if it was
// not made.
func (a *AIO) call(set func(*slot), fd int) (n int, ok bool, err error) {
	s := a.take()
	if s == nil {
		return 0, false, nil
	}
	defer a.give(s)
	s.iocb = iocb{fd: uint32(fd), flags: flagEvent, eventfd: uint32(s.fd)}
	set(s)
	if !s.submit() {
		return 0, false, nil
	}
	// The kernel has the memory of others until the call has ended, whatever the poller says.
	var count [8]byte
	_, _ = s.ended.Read(count[:])
	n, err = s.wait()
	clear(s.iovecs)
	return n, true, err
}

// submit hands the call to the kernel.
func (s *slot) submit() bool {
	calls := [1]*iocb{&s.iocb}
	n, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, s.context, 1, uintptr(unsafe.Pointer(&calls)))
	return e == 0 && n == 1
}

// wait returns what the call has, and waits for its end if that was not said yet.
func (s *slot) wait() (int, error) {
	for {
		var event ioEvent
		n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, s.context, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0)
		switch {
		case e == unix.EINTR:
		case e != 0 || n != 1:
			// Nothing is known of the call, and the memory that it has may not be used again.
			panic("vfsx: the kernel does not say how a call has ended: " + e.Error())
		case event.result < 0:
			return 0, unix.Errno(-event.result)
		default:
			return int(event.result), nil
		}
	}
}

// take returns a slot that is not in use; nil if there is none.
func (a *AIO) take() *slot {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.idle); n > 0 {
		s := a.idle[n-1]
		a.idle = a.idle[:n-1]
		return s
	}
	if a.closed || a.slots == slotsMax {
		return nil
	}
	s := openSlot()
	if s == nil {
		a.slots = slotsMax // the kernel has no more, or none at all
		return nil
	}
	a.slots++
	return s
}

// give puts a slot back.
func (a *AIO) give(s *slot) {
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.idle = append(a.idle, s)
	}
	a.mu.Unlock()
	if closed {
		s.close()
	}
}

// openSlot returns nil if the kernel has none to give.
func openSlot() *slot {
	s := &slot{}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&s.context)), 0); e != 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		s.destroy()
		return nil
	}
	s.fd, s.ended = fd, os.NewFile(uintptr(fd), "eventfd")
	return s
}

func (s *slot) close() {
	_ = s.ended.Close() // it holds nothing
	s.destroy()
}

func (s *slot) destroy() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, s.context, 0, 0) }
