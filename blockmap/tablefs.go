package blockmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// createBackoffMax bounds the pause before a table is created while flushes
	// fail. The scheduler has compactions wait.
	createBackoffMax = time.Second
	createBackoffMin = 10 * time.Millisecond
)

// tableFS is the file system that a map's Pebble sees: local files that are
// never synced, since none has to survive, and remote tables that are read
// through Objects as if they were local. It never says that a table does not
// exist when it does, and knows from Remove which ones Pebble has given up.
//
// Once discarding, for a map that has failed or closes, all writing succeeds
// and goes nowhere: a writer that waits for a flush is let go instead of waiting
// for a broken disk.
type tableFS struct {
	vfs.FS            // of the local files
	db         string // the directory of Pebble's own files
	objects    Objects
	tables     tables
	ctx        context.Context // of the attachment: ends reads that are being retried
	fail       func(error)
	failures   atomic.Int32 // flushes that failed in a row
	discarding atomic.Bool
	scratch    vfs.FS
}

func newTableFS(ctx context.Context, base vfs.FS, db string, objects Objects, fail func(error)) *tableFS {
	return &tableFS{
		FS: base, db: db, objects: objects, ctx: ctx, fail: fail, scratch: vfs.NewMem(),
		tables: tables{byName: map[string]*table{}},
	}
}

// split returns the name of the table at path, if it is one.
func (t *tableFS) split(path string) (string, bool) {
	name := t.PathBase(path)
	_, ok := parseTableName(name)
	return name, ok
}

func (t *tableFS) remote(path string) (table, bool) {
	name, ok := t.split(path)
	if !ok {
		return table{}, false
	}
	return t.tables.remoteAt(name, path)
}

func (t *tableFS) Create(path string, category vfs.DiskWriteCategory) (vfs.File, error) {
	name, isTable := t.split(path)
	if isTable {
		t.pause()
	}
	if t.discarding.Load() {
		return t.discard(path, category)
	}
	vital := !isTable && t.PathDir(path) == t.db
	f, err := t.FS.Create(path, category)
	if err != nil {
		if !vital {
			return nil, err // a flush or compaction is repeated, a checkpoint fails
		}
		t.fail(fmt.Errorf("create %s: %w", path, err))
		return t.discard(path, category)
	}
	if isTable {
		t.tables.add(name, path)
	}
	return &localFile{File: f, fs: t, path: path, vital: vital}, nil
}

func (t *tableFS) discard(path string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return t.scratch.Create(t.PathBase(path), category)
}

// pause waits while tables fail to be written, so that Pebble, which
// tries again at once, does not spin.
func (t *tableFS) pause() {
	n := t.failures.Load()
	if n == 0 || t.discarding.Load() {
		return
	}
	select {
	case <-t.ctx.Done():
	case <-time.After(min(createBackoffMax, createBackoffMin<<min(n-1, 10))):
	}
}

func (t *tableFS) Link(from, to string) error {
	name, isTable := t.split(from)
	if _, ok := t.remote(from); !ok {
		if err := t.FS.Link(from, to); err != nil {
			return err
		}
	}
	if isTable {
		t.tables.add(name, to)
	}
	return nil
}

func (t *tableFS) Open(path string, opts ...vfs.OpenOption) (vfs.File, error) {
	if tab, ok := t.remote(path); ok {
		f := &remoteFile{fs: t, name: t.PathBase(path), object: tab.object, bytes: tab.bytes}
		for _, o := range opts {
			f.sequential = f.sequential || o == vfs.SequentialReadsOption
		}
		return f, nil
	}
	return t.FS.Open(path, opts...)
}

func (t *tableFS) Stat(path string) (vfs.FileInfo, error) {
	if tab, ok := t.remote(path); ok {
		return tableInfo{name: t.PathBase(path), bytes: tab.bytes}, nil
	}
	return t.FS.Stat(path)
}

func (t *tableFS) Remove(path string) error {
	name, isTable := t.split(path)
	if _, ok := t.remote(path); !ok {
		if err := t.FS.Remove(path); err != nil && !t.discarding.Load() {
			return err
		}
	}
	if isTable {
		t.tables.remove(name, path)
	}
	return nil
}

func (t *tableFS) RemoveAll(path string) error {
	if err := t.FS.RemoveAll(path); err != nil {
		return err
	}
	t.tables.removeUnder(t.inside(path))
	return nil
}

// inside returns how the paths in a directory begin.
func (t *tableFS) inside(dir string) string {
	one := t.PathJoin(dir, "x")
	return one[:len(one)-1]
}

func (t *tableFS) Rename(from, to string) error {
	if err := t.FS.Rename(from, to); err != nil && !t.discarding.Load() {
		return err
	}
	return nil
}

func (t *tableFS) List(dir string) ([]string, error) {
	names, err := t.FS.List(dir)
	if err != nil {
		return nil, err
	}
	return append(names, t.tables.remotes(t.inside(dir))...), nil
}

// OpenDir opens a directory whose Sync has nothing to do.
func (t *tableFS) OpenDir(path string) (vfs.File, error) {
	f, err := t.FS.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return &localFile{File: f, fs: t, path: path}, nil
}

// Unwrap returns nothing, so that nobody goes around the tables.
func (t *tableFS) Unwrap() vfs.FS { return nil }

// localFile is a file that is not synced. If it is vital to Pebble, a failed
// write fails the map and is reported as done, because Pebble has no way back.
type localFile struct {
	vfs.File
	fs    *tableFS
	path  string
	vital bool
}

func (f *localFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	return f.written(n, len(p), err)
}

func (f *localFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	return f.written(n, len(p), err)
}

func (f *localFile) written(n, want int, err error) (int, error) {
	if err == nil {
		return n, nil
	}
	if f.vital {
		f.fs.fail(fmt.Errorf("write %s: %w", f.path, err))
	}
	if f.fs.discarding.Load() {
		return want, nil
	}
	return n, err
}

func (f *localFile) Sync() error                { return nil }
func (f *localFile) SyncData() error            { return nil }
func (f *localFile) SyncTo(int64) (bool, error) { return false, nil }

// tableInfo is the result of Stat of a remote table.
type tableInfo struct {
	name  string
	bytes int64
}

func (i tableInfo) Name() string           { return i.name }
func (i tableInfo) Size() int64            { return i.bytes }
func (i tableInfo) Mode() os.FileMode      { return 0o444 }
func (i tableInfo) ModTime() time.Time     { return time.Time{} }
func (i tableInfo) IsDir() bool            { return false }
func (i tableInfo) Sys() any               { return nil }
func (i tableInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// hideNotExist keeps an error of Objects from looking like a missing file,
// which Pebble would take for corruption.
func hideNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}
