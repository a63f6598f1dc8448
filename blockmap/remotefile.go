package blockmap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// readAttempts, with pauses of 20 ms that double, lets a read of a table
	// outlive a short fault (0.6 s) before the look-up fails.
	readAttempts   = 6
	readBackoffMin = 20 * time.Millisecond
	// readAheadBytes is read at once where Pebble reads a table from front to
	// back, for a compaction or a scan.
	readAheadBytes = 256 << 10
)

// remoteFile is an open table whose bytes lie in an object. ReadAt may be
// called concurrently.
type remoteFile struct {
	fs         *tableFS
	name       string
	object     Object
	bytes      int64
	sequential bool

	mu    sync.Mutex // for what follows
	pos   int64      // of Read
	ahead []byte     // read ahead, from aheadAt on
	at    int64
}

func (f *remoteFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > f.bytes {
		return 0, fmt.Errorf("read table %s: offset %d of %d", f.name, off, f.bytes)
	}
	short := int64(len(p)) > f.bytes-off
	if short {
		p = p[:f.bytes-off]
	}
	if err := f.fill(p, off); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

func (f *remoteFile) fill(p []byte, off int64) error {
	if !f.sequential || len(p) >= readAheadBytes {
		return f.fetch(p, off)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if end := off + int64(len(p)); off < f.at || end > f.at+int64(len(f.ahead)) {
		f.ahead = append(f.ahead[:0], make([]byte, min(readAheadBytes, f.bytes-off))...)
		f.at = off
		if err := f.fetch(f.ahead, off); err != nil {
			f.ahead = f.ahead[:0]
			return err
		}
	}
	copy(p, f.ahead[off-f.at:])
	return nil
}

// fetch reads through Objects, again and with growing pauses after an error.
func (f *remoteFile) fetch(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	var err error
	pause := readBackoffMin
	for attempt := range readAttempts {
		if attempt > 0 {
			select {
			case <-f.fs.ctx.Done():
			case <-time.After(pause):
			}
			pause *= 2
		}
		if f.fs.ctx.Err() != nil {
			return fmt.Errorf("read table %s: %w", f.name, ErrClosed)
		}
		o := f.object
		if newer, _ := f.fs.tables.object(f.name); newer != nil {
			o = newer // it was uploaded again, and the one before may be gone
		}
		if err = f.fs.objects.ReadAt(f.fs.ctx, o, p, off); err == nil {
			return nil
		}
	}
	return fmt.Errorf("read table %s: %w", f.name, hideNotExist(err))
}

func (f *remoteFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	off := f.pos
	f.mu.Unlock()
	if off >= f.bytes {
		return 0, io.EOF
	}
	n, err := f.ReadAt(p, off)
	f.mu.Lock()
	f.pos = off + int64(n)
	f.mu.Unlock()
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *remoteFile) Stat() (vfs.FileInfo, error) {
	return tableInfo{name: f.name, bytes: f.bytes}, nil
}

func (f *remoteFile) Close() error                       { return nil }
func (f *remoteFile) Sync() error                        { return nil }
func (f *remoteFile) SyncData() error                    { return nil }
func (f *remoteFile) SyncTo(int64) (bool, error)         { return false, nil }
func (f *remoteFile) Prefetch(int64, int64) error        { return nil }
func (f *remoteFile) Preallocate(int64, int64) error     { return nil }
func (f *remoteFile) Fd() uintptr                        { return vfs.InvalidFd }
func (f *remoteFile) Write([]byte) (int, error)          { return 0, os.ErrPermission }
func (f *remoteFile) WriteAt([]byte, int64) (int, error) { return 0, os.ErrPermission }
