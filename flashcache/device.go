package flashcache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/internal/vfsx"
)

// device is the file or raw device under a cache.
type device struct {
	path string
	file vfs.File
	raw  bool
	size int64 // of a raw device
	// claim keeps a raw device from being mounted, and is nil for a file.
	claim *os.File
}

// openDevice opens a file, which it makes if it does not exist, or a raw device,
// for this process alone.
func openDevice(fs vfs.FS, path string) (_ *device, err error) {
	d := &device{path: path}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	info, err := fs.Stat(path)
	missing := errors.Is(err, iofs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return nil, err
	case missing:
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		// For a block device O_EXCL fails where it is mounted or claimed.
		if d.claim, err = os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0); err != nil {
			if errors.Is(err, unix.EBUSY) {
				err = fmt.Errorf("%w: %w", ErrInUse, err)
			}
			return nil, err
		}
		d.raw = true
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is neither a file nor a block device", ErrInvalid, path)
	}
	if d.file, err = fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return nil, err
	}
	if fd := d.file.Fd(); fd != vfs.InvalidFd {
		if err := unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrInUse
			}
			return nil, err
		}
	}
	if d.raw {
		if d.size, err = d.claim.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	if missing {
		return d, vfsx.SyncDir(fs, fs.PathDir(path))
	}
	return d, nil
}

// length returns how many bytes there are now.
func (d *device) length() (int64, error) {
	if d.raw {
		return d.size, nil
	}
	info, err := d.file.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// blank reports whether nothing but zeros lies before dataStart: nobody's data.
func (d *device) blank(length int64) (bool, error) {
	head := make([]byte, min(length, dataStart))
	if _, err := d.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return len(bytes.Trim(head, "\x00")) == 0, nil
}

// take gives a file size bytes with real blocks, so that no later write runs out
// of space.
func (d *device) take(size int64) error {
	if d.raw {
		return nil
	}
	return vfsx.Allocate(d.file, 0, size)
}

// close gives the device up. Locks end with their descriptors.
func (d *device) close() error {
	var err error
	if d.file != nil {
		err = errors.Join(d.file.SyncData(), d.file.Close())
	}
	if d.claim != nil {
		err = errors.Join(err, d.claim.Close())
	}
	return err
}
