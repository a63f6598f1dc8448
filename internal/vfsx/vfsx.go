// Package vfsx adds to Pebble's vfs what plinth's stores need of a file system:
// to give back the space inside a file, to take it, and to know how much there
// is.
//
// Files with a descriptor are asked through it. Files without one (vfs.MemFS
// and the wrappers around it) get the same bytes by plain writes, so that a
// test sees what a drive would show. The functions are as safe for concurrent
// use as the file is, and make nothing durable by themselves: the file's Sync
// does.
package vfsx

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"math"
	"os"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// zeros is what files without a descriptor are filled with, piece by piece.
var zeros [64 << 10]byte

// PunchHole gives the n bytes of f at off back to the file system; they read
// as zeros and the file's size stays. off and n should be multiples of the file
// system's block. Where the file system has no holes it does nothing: the space
// stays with the file and the old bytes stay readable.
func PunchHole(f vfs.File, off, n int64) error {
	if f.Fd() == vfs.InvalidFd {
		return writeZeros(f, off, n)
	}
	err := fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// Allocate makes sure that the n bytes of f at off have real blocks, so that a
// later write to them cannot run out of space, and that the file's size is at
// least off+n. Bytes that had blocks before keep their content. A full file
// system gives an error for which [IsNoSpace] holds. A file system that cannot
// allocate ahead is left to find the space at the write.
func Allocate(f vfs.File, off, n int64) error {
	if f.Fd() == vfs.InvalidFd {
		return Extend(f, off+n)
	}
	err := fallocate(f, 0, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return Extend(f, off+n)
	}
	return err
}

// Extend makes f at least size bytes long without giving it blocks.
func Extend(f vfs.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() >= size {
		return nil
	}
	if f.Fd() == vfs.InvalidFd {
		return writeZeros(f, info.Size(), size-info.Size())
	}
	return retryInterrupted(func() error { return unix.Ftruncate(int(f.Fd()), size) })
}

// Available returns the bytes that the file system of path can still give this
// process. A file system that does not say, like vfs.MemFS, counts as endless.
func Available(fs vfs.FS, path string) (int64, error) {
	usage, err := fs.GetDiskUsage(path)
	if errors.Is(err, vfs.ErrUnsupported) {
		return math.MaxInt64, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read free space of %s: %w", path, err)
	}
	return int64(min(usage.AvailBytes, math.MaxInt64)), nil
}

// SyncDir makes the names in a directory durable: files created, renamed and
// removed before the call.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MakeDir makes a directory and those above it that are missing, durably: their
// names are on stable media when it returns, and that of dir also if another
// made it. perm is for those that it makes.
func MakeDir(fs vfs.FS, dir string, perm os.FileMode) error {
	parent := fs.PathDir(dir)
	if _, err := fs.Stat(parent); errors.Is(err, iofs.ErrNotExist) && parent != dir {
		if err := MakeDir(fs, parent, perm); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, perm); err != nil {
		return err
	}
	return SyncDir(fs, parent)
}

// ClearDir removes what is in a directory but for some names, durably. It goes on after an
// error.
func ClearDir(fs vfs.FS, dir string, but ...string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(but, name) {
			err = errors.Join(err, fs.RemoveAll(fs.PathJoin(dir, name)))
		}
	}
	return errors.Join(err, SyncDir(fs, dir))
}

// SameFile reports whether two results of Stat are of one file, by device and
// inode. Where a file system has neither, it cannot tell and says true.
func SameFile(a, b vfs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	y, ok := b.Sys().(*syscall.Stat_t)
	return ok && x.Dev == y.Dev && x.Ino == y.Ino
}

// IsNoSpace reports whether err says that the file system is full or the
// process's quota of it is used up.
func IsNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func fallocate(f vfs.File, mode uint32, off, n int64) error {
	return retryInterrupted(func() error { return unix.Fallocate(int(f.Fd()), mode, off, n) })
}

func retryInterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func writeZeros(f vfs.File, off, n int64) error {
	for n > 0 {
		piece := zeros[:min(n, int64(len(zeros)))]
		if _, err := f.WriteAt(piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
		n -= int64(len(piece))
	}
	return nil
}
