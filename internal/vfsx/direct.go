package vfsx

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// DirectAlign is what the memory, the length and the place of a direct write are
// multiples of: no drive has larger blocks.
const DirectAlign = 4096

// Direct writes to a file past the kernel's page cache: for what is written once
// and seldom read soon. What else reads and writes the file sees it. It is safe
// for concurrent use.
type Direct struct {
	f   *os.File
	fd  int // of f
	aio *AIO
}

// OpenDirect opens f's file for direct writes, which aio makes. It returns nil where there are
// none: for a file without a descriptor of its own, like a wrapper's, or a file
// system that refuses.
func OpenDirect(f vfs.File, aio *AIO) *Direct {
	if !hasDescriptor(f) {
		return nil
	}
	// By descriptor, as the name may be another file's by now.
	d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	return &Direct{d, int(d.Fd()), aio}
}

// hasDescriptor reports whether a file has one, and is not a wrapper's, who wants to see
// the calls.
func hasDescriptor(f vfs.File) bool {
	_, ok := f.(interface {
		SyscallConn() (syscall.RawConn, error)
	})
	return ok && f.Fd() != vfs.InvalidFd
}

// Close ends it; f stays open.
func (d *Direct) Close() error {
	if d == nil {
		return nil
	}
	return d.f.Close()
}

// WriteAt writes the pieces one behind the other from off on, in as few requests
// as the kernel makes of them. It makes nothing durable, and reports false if it
// cannot write so, perhaps in part: the caller then writes through f. A nil
// Direct always does.
func (d *Direct) WriteAt(pieces [][]byte, off int64) (ok bool, err error) {
	if d == nil || off%DirectAlign != 0 {
		return false, nil
	}
	left := make([][]byte, 0, len(pieces))
	for _, p := range pieces {
		if !aligned(p) {
			return false, nil
		}
		if len(p) > 0 {
			left = append(left, p)
		}
	}
	for len(left) > 0 {
		n, err := d.aio.pwritev(d.fd, left, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL): // larger blocks, or a file system without it
			return false, nil
		case err != nil:
			return true, &os.PathError{Op: "write", Path: d.f.Name(), Err: err}
		case n == 0:
			return true, io.ErrShortWrite
		}
		off += int64(n)
		for n > 0 {
			k := min(n, len(left[0]))
			n -= k
			if left[0] = left[0][k:]; len(left[0]) == 0 {
				left = left[1:]
			}
		}
	}
	return true, nil
}

// AlignedBytes returns n bytes of memory that a direct write takes if n is a
// multiple of DirectAlign, as are pieces of it that lie so.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+DirectAlign-1)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % DirectAlign)
	return b[skip : skip+n : skip+n]
}

func aligned(p []byte) bool {
	return len(p)%DirectAlign == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%DirectAlign == 0
}
