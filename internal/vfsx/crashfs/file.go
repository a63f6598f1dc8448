package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// file is an open file or directory.
type file struct {
	fs    *FS
	n     *node
	name  string
	write bool
	// The FS's mutex guards these.
	pos    int64
	closed bool
}

var _ vfs.File = (*file)(nil)

// check says whether the file can be used. The caller holds the FS's mutex.
func (f *file) check() error {
	switch {
	case f.closed:
		return fs.ErrClosed
	case f.fs.crashed:
		return ErrCrashed
	}
	return nil
}

// Close never fails for the crash alone, so that a test may always clean up.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}

func (f *file) Read(p []byte) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.readAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.readAt(p, off)
}

func (f *file) readAt(p []byte, off int64) (int, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	switch {
	case f.n.dir:
		return 0, errors.New("crashfs: read of a directory")
	case off < 0:
		return 0, fs.ErrInvalid
	case off >= f.n.content.size:
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := f.n.content.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Write(p []byte) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := f.writeAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.writeAt(p, off)
}

// writeAt writes all of p, or as much as the budget has left.
func (f *file) writeAt(p []byte, off int64) (int, error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	if f.n.dir || !f.write || off < 0 {
		return 0, fs.ErrPermission
	}
	left := f.fs.budget
	if err := f.fs.spend(int64(len(p))); err != nil {
		f.n.writeAt(p[:left], off)
		return int(left), err
	}
	f.n.writeAt(p, off)
	return len(p), nil
}

func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check(); err != nil {
		return err
	}
	if err := f.fs.spend(OpCost); err != nil {
		return err
	}
	f.n.sync()
	return nil
}

func (f *file) SyncData() error { return f.Sync() }

// SyncTo promises nothing and does nothing.
func (f *file) SyncTo(int64) (bool, error) { return false, nil }

func (f *file) Preallocate(int64, int64) error { return nil }
func (f *file) Prefetch(int64, int64) error    { return nil }
func (f *file) Fd() uintptr                    { return vfs.InvalidFd }

func (f *file) Stat() (vfs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check(); err != nil {
		return nil, err
	}
	return f.n.info(f.name), nil
}

// info describes a file or directory at one instant.
type info struct {
	name    string
	size    int64
	modTime time.Time
	dir     bool
}

func (n *node) info(name string) info {
	return info{name, n.content.size, n.modTime, n.dir}
}

func (i info) Name() string           { return i.name }
func (i info) Size() int64            { return i.size }
func (i info) ModTime() time.Time     { return i.modTime }
func (i info) IsDir() bool            { return i.dir }
func (i info) Sys() any               { return nil }
func (i info) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i info) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o755
	}
	return 0o644
}
