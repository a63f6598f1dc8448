//go:build race

package nbd

import (
	"errors"
	"syscall"
)

// The race detector learns from syscall's Read and Write what a socket orders, and
// not from raw calls: without them it would find races between what both ends do.

const callBytesMax = 256 << 10

func recvfrom(fd uintptr, p []byte) (int, syscall.Errno) {
	return errnoOfCall(syscall.Read(int(fd), p))
}

func sendto(fd uintptr, p []byte, _ bool) (int, syscall.Errno) {
	return errnoOfCall(syscall.Write(int(fd), p[:min(len(p), callBytesMax)]))
}

func errnoOfCall(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = syscall.EIO
	}
	return max(n, 0), errno
}
