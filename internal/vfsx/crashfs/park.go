package crashfs

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Parking is an FS under Pebble, which knows two answers to a device that fails:
// to panic, and to try for ever. Either is a crash, as good as another, and ends a
// test. So while a store is opening, whoever works for Pebble and meets the crash
// stops for good, as a loss of power makes everybody stop. Later, what a Pebble
// that others rely upon writes goes nowhere and succeeds: nobody is answered for
// that alone, as long as something else fails, like a log.
type Parking struct {
	*FS
	pebble, forgiven func(path string) bool
	opening          atomic.Bool
	once             sync.Once
	parked           chan struct{} // closed when somebody has stopped
}

// Park returns fs as Parking; it is opening. pebble tells Pebble's files, and
// forgiven those of them whose writes succeed after the crash.
func Park(fs *FS, pebble, forgiven func(path string) bool) *Parking {
	p := &Parking{FS: fs, pebble: pebble, forgiven: forgiven, parked: make(chan struct{})}
	p.opening.Store(true)
	return p
}

// Opened says that the store has opened, or failed to.
func (p *Parking) Opened() { p.opening.Store(false) }

// Parked is closed when somebody has stopped for good. Then the opening does not
// end.
func (p *Parking) Parked() <-chan struct{} { return p.parked }

// met passes an error on, or does not return.
func (p *Parking) met(path string, err error) error {
	if errors.Is(err, ErrCrashed) && p.opening.Load() && p.pebble(path) {
		p.once.Do(func() { close(p.parked) })
		select {}
	}
	return err
}

// changed is met for what changes a file or directory.
func (p *Parking) changed(path string, err error) error {
	if err = p.met(path, err); errors.Is(err, ErrCrashed) && p.forgiven(path) {
		return nil
	}
	return err
}

func (p *Parking) file(path string, f vfs.File, err error) (vfs.File, error) {
	if err = p.met(path, err); err != nil || !p.pebble(path) {
		return f, err
	}
	return &parkFile{File: f, fs: p, path: path}, nil
}

// made is file for one that is to be written.
func (p *Parking) made(path string, f vfs.File, err error) (vfs.File, error) {
	if err != nil && p.changed(path, err) == nil {
		f, err = vfs.NewMem().Create("nowhere", vfs.WriteCategoryUnspecified)
	}
	return p.file(path, f, err)
}

func (p *Parking) Create(path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(path, c)
	return p.made(path, f, err)
}

func (p *Parking) Open(path string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.Open(path, opts...)
	return p.file(path, f, err)
}

func (p *Parking) OpenReadWrite(path string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(path, c, opts...)
	return p.file(path, f, err)
}

func (p *Parking) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.ReuseForWrite(from, to, c)
	return p.made(to, f, err)
}

func (p *Parking) OpenDir(path string) (vfs.File, error) {
	f, err := p.FS.OpenDir(path)
	return p.file(path, f, err)
}

func (p *Parking) Remove(path string) error     { return p.changed(path, p.FS.Remove(path)) }
func (p *Parking) RemoveAll(path string) error  { return p.changed(path, p.FS.RemoveAll(path)) }
func (p *Parking) Rename(from, to string) error { return p.changed(to, p.FS.Rename(from, to)) }
func (p *Parking) Link(from, to string) error   { return p.changed(to, p.FS.Link(from, to)) }

func (p *Parking) Lock(path string) (io.Closer, error) {
	c, err := p.FS.Lock(path)
	return c, p.met(path, err)
}

func (p *Parking) List(path string) ([]string, error) {
	names, err := p.FS.List(path)
	return names, p.met(path, err)
}

func (p *Parking) Stat(path string) (vfs.FileInfo, error) {
	info, err := p.FS.Stat(path)
	return info, p.met(path, err)
}

// parkFile is a file, or directory, of Pebble's.
type parkFile struct {
	vfs.File
	fs   *Parking
	path string
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
	return f.written(n, len(b), err)
}

func (f *parkFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	return f.written(n, len(b), err)
}

func (f *parkFile) written(n, want int, err error) (int, error) {
	if err != nil && f.fs.changed(f.path, err) == nil {
		return want, nil
	}
	return n, err
}

func (f *parkFile) Sync() error { return f.fs.changed(f.path, f.File.Sync()) }

func (f *parkFile) SyncData() error { return f.Sync() }

func (f *parkFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	return info, f.fs.met(f.path, err)
}
