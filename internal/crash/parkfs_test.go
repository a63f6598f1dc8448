package crash

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx/crashfs"
)

// parkFS is a crashfs under Pebble, which knows two answers to a device that
// fails: to panic, where a directory with its markers cannot be synced or where
// Open fails with a compaction under way, and to try for ever. Either is a crash,
// as good as another, and ends a test. So while a pool is opening, whoever works
// for Pebble and meets the crash stops for good, as power losses make everybody
// stop; and later the syncs of those directories pretend to succeed, when
// everything else fails.
type parkFS struct {
	*crashfs.FS
	opening atomic.Bool
	once    sync.Once
	parked  chan struct{} // closed when somebody has stopped
}

func newParkFS(fs *crashfs.FS) *parkFS {
	return &parkFS{FS: fs, parked: make(chan struct{})}
}

// ofPebble tells the files of Pebble from those of log and spindles.
func ofPebble(path string) bool {
	return strings.Contains(path, "/index/") || strings.Contains(path, "/host/")
}

// met passes an error on, or does not return.
func (p *parkFS) met(path string, err error) error {
	if errors.Is(err, crashfs.ErrCrashed) && p.opening.Load() && ofPebble(path) {
		p.once.Do(func() { close(p.parked) })
		select {}
	}
	return err
}

func (p *parkFS) file(path string, f vfs.File, err error) (vfs.File, error) {
	if err = p.met(path, err); err != nil || !ofPebble(path) {
		return f, err
	}
	return &parkFile{File: f, fs: p, path: path}, nil
}

func (p *parkFS) Create(path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(path, c)
	return p.file(path, f, err)
}

func (p *parkFS) Open(path string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.Open(path, opts...)
	return p.file(path, f, err)
}

func (p *parkFS) OpenReadWrite(path string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(path, c, opts...)
	return p.file(path, f, err)
}

func (p *parkFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.ReuseForWrite(from, to, c)
	return p.file(to, f, err)
}

func (p *parkFS) OpenDir(path string) (vfs.File, error) {
	f, err := p.FS.OpenDir(path)
	if f, err = p.file(path, f, err); err == nil && ofPebble(path) {
		f.(*parkFile).dir = true
	}
	return f, err
}

// Remove removes a file. Pebble counts on it that a directory's changes reach the
// medium in their order, as file systems with a journal have it: its markers move
// by a creation and then a removal, with one sync after both. crashfs mixes them,
// so what came before is synced here.
func (p *parkFS) Remove(path string) error {
	if ofPebble(path) {
		d, err := p.OpenDir(p.PathDir(path))
		if err != nil {
			return err
		}
		if err := errors.Join(p.met(path, d.(*parkFile).File.Sync()), d.Close()); err != nil {
			return err
		}
	}
	return p.met(path, p.FS.Remove(path))
}

func (p *parkFS) RemoveAll(path string) error  { return p.met(path, p.FS.RemoveAll(path)) }
func (p *parkFS) Rename(from, to string) error { return p.met(to, p.FS.Rename(from, to)) }
func (p *parkFS) Link(from, to string) error   { return p.met(to, p.FS.Link(from, to)) }

func (p *parkFS) Lock(path string) (io.Closer, error) {
	c, err := p.FS.Lock(path)
	return c, p.met(path, err)
}

func (p *parkFS) List(path string) ([]string, error) {
	names, err := p.FS.List(path)
	return names, p.met(path, err)
}

func (p *parkFS) Stat(path string) (vfs.FileInfo, error) {
	info, err := p.FS.Stat(path)
	return info, p.met(path, err)
}

// parkFile is a file, or directory, of Pebble's.
type parkFile struct {
	vfs.File
	fs   *parkFS
	path string
	dir  bool
}

func (f *parkFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	return n, f.fs.met(f.path, err)
}

func (f *parkFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	return n, f.fs.met(f.path, err)
}

func (f *parkFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	return n, f.fs.met(f.path, err)
}

func (f *parkFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	return n, f.fs.met(f.path, err)
}

func (f *parkFile) Sync() error {
	err := f.fs.met(f.path, f.File.Sync())
	if f.dir && errors.Is(err, crashfs.ErrCrashed) {
		return nil
	}
	return err
}

func (f *parkFile) SyncData() error { return f.Sync() }

func (f *parkFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	return info, f.fs.met(f.path, err)
}
