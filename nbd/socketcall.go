//go:build !race

package nbd

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// callBytesMax bounds what a system call copies, and so for how long it may keep a
// garbage collection from beginning: some 50 µs.
const callBytesMax = 256 << 10

// recvfrom receives into p, which is not empty. It does not block.
func recvfrom(fd uintptr, p []byte) (int, syscall.Errno) {
	return rawCall(unix.SYS_RECVFROM, fd, p, unix.MSG_DONTWAIT)
}

// sendto sends some of p, which is not empty; more says that more follows at once.
// It does not block.
func sendto(fd uintptr, p []byte, more bool) (int, syscall.Errno) {
	flags := unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if more {
		flags |= unix.MSG_MORE
	}
	return rawCall(unix.SYS_SENDTO, fd, p, flags)
}

func rawCall(trap, fd uintptr, p []byte, flags int) (int, syscall.Errno) {
	n := min(len(p), callBytesMax)
	done, _, errno := unix.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(n), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(done), 0
}
