package writelog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/vfsx"
)

const (
	superName = "superblock"
	lockName  = "LOCK"
	category  = vfs.WriteCategoryUnspecified
)

func slotName(slot int) string { return fmt.Sprintf("log-%04d", slot) }

// Open opens the log in opts.Dir, or creates it there, and begins a new file.
// On return everything that was found is stable. Creation takes SizeBytes from
// the file system. Errors: ErrCorrupt with file and offset for damage to what
// was stable, an error that says so for a newer format or another pool's log,
// and those of the file system.
func Open(fs vfs.FS, opts Options) (*Log, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	if err := fs.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &Log{fs: fs, opts: opts, geometry: opts.geometry(), state: newState(), turns: rand.Uint64() >> 1}
	var err error
	if l.lock, err = fs.Lock(l.path(lockName)); err != nil {
		return nil, fmt.Errorf("open log %s: in use: %w", opts.Dir, err)
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open log %s: %w", opts.Dir, err), l.release())
	}
	l.startFlusher()
	return l, nil
}

func (l *Log) path(name string) string { return l.fs.PathJoin(l.opts.Dir, name) }

func (l *Log) open() error {
	names, err := l.fs.List(l.opts.Dir)
	if err != nil {
		return err
	}
	if !slices.Contains(names, superName) {
		if err := l.create(names); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	} else if err := l.readSuper(); err != nil {
		return err
	} else if err := l.openSlots(names); err != nil {
		return err
	}
	if err := l.recover(); err != nil {
		return err
	}
	l.writing.Lock()
	err = l.roll()
	l.writing.Unlock()
	if err != nil {
		return err
	}
	return l.flush()
}

// create makes the slots and then, as the last thing, the superblock: what is
// there without it is an attempt that a crash ended.
func (l *Log) create(names []string) error {
	for slot := range l.slots {
		path := l.path(slotName(slot))
		if slices.Contains(names, slotName(slot)) {
			if err := l.refuseUsed(path); err != nil {
				return err
			}
		}
		f, err := l.fs.Create(path, category)
		if err != nil {
			return err
		}
		l.files = append(l.files, &file{slot: slot, name: path, f: f})
		if err := vfsx.Allocate(f, 0, l.fileBytes); err != nil {
			return fmt.Errorf("take %d bytes for %s: %w", l.fileBytes, path, err)
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := vfsx.SyncDir(l.fs, l.opts.Dir); err != nil {
		return err
	}
	if err := l.writeSuper(); err != nil {
		return err
	}
	return vfsx.SyncDir(l.fs, l.fs.PathDir(l.opts.Dir))
}

// refuseUsed protects the files of a log that has lost its superblock.
func (l *Log) refuseUsed(path string) error {
	f, err := l.fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h, _, err := readHeader(f)
	if err != nil || h.seq != 0 {
		return datanode.Errorf(datanode.ErrCorrupt, "%s is in use, but there is no %s", path, superName)
	}
	return nil
}

func (l *Log) writeSuper() error {
	s := super{pool: l.opts.PoolID, geometry: l.geometry}
	temp := l.path(superName + ".tmp")
	f, err := l.fs.Create(temp, category)
	if err != nil {
		return err
	}
	_, err = f.Write(s.encode())
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := l.fs.Rename(temp, l.path(superName)); err != nil {
		return err
	}
	return vfsx.SyncDir(l.fs, l.opts.Dir)
}

// readSuper takes the geometry of an existing log.
func (l *Log) readSuper() error {
	f, err := l.fs.Open(l.path(superName))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, superBytes)
	if _, err := io.ReadFull(f, b); err != nil {
		return datanode.Errorf(datanode.ErrCorrupt, "%s: %v", l.path(superName), err)
	}
	s, err := parseSuper(b)
	switch {
	case errors.Is(err, errUnsupported):
		return fmt.Errorf("%s: %w", l.path(superName), err)
	case err != nil:
		return datanode.Errorf(datanode.ErrCorrupt, "%s: %v", l.path(superName), err)
	case s.pool != l.opts.PoolID:
		return datanode.Errorf(datanode.ErrInvalid, "log is of pool %x, not %x", s.pool, l.opts.PoolID)
	case s.geometry != l.geometry:
		l.opts.Logger.Warn("log: keeps the size it was created with",
			"dir", l.opts.Dir, "files", s.slots, "file_bytes", s.fileBytes)
	}
	l.geometry = s.geometry
	return nil
}

func (l *Log) openSlots(names []string) error {
	for slot := range l.slots {
		path := l.path(slotName(slot))
		if !slices.Contains(names, slotName(slot)) {
			return datanode.Errorf(datanode.ErrCorrupt, "%s is missing", path)
		}
		f, err := l.fs.OpenReadWrite(path, category)
		if err != nil {
			return err
		}
		l.files = append(l.files, &file{slot: slot, name: path, f: f})
	}
	return nil
}

// readHeader returns the newer of a slot's header copies, the zero header for
// a slot that was never used, and the offsets of copies that are bad beside it.
// A crash in the middle of the first use may leave one copy zero and the other
// torn; two that are neither whole nor zero are damage. Errors: errNoFrame,
// errUnsupported, those of reading.
func readHeader(f vfs.File) (best header, bad []int64, err error) {
	b := make([]byte, dataStart)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return header{}, nil, err
	}
	clear(b[n:])
	valid, blank := 0, 0
	for _, off := range []int64{0, pageBytes} {
		copied := b[off : off+headerBytes]
		h, err := parseFileHeader(copied)
		switch {
		case err == nil:
			valid++
			if h.seq > best.seq {
				best = h
			}
		case errors.Is(err, errUnsupported):
			return header{}, nil, err
		case [headerBytes]byte(copied) == [headerBytes]byte{}:
			blank++
			bad = append(bad, off)
		default:
			bad = append(bad, off)
		}
	}
	switch {
	case valid == 0 && blank == 0:
		return header{}, nil, errNoFrame
	case valid == 0 && blank == 2:
		bad = nil
	}
	return best, bad, nil
}

// repair makes a slot's header copies whole again. Without it the next use of
// the slot, torn in its first copy, could leave none: so it is stable before
// any slot is written to.
func repair(f *file, h header, bad []int64) error {
	b := make([]byte, headerBytes)
	if h.seq != 0 {
		b = h.encode()
	}
	for _, off := range bad {
		if _, err := f.f.WriteAt(b, off); err != nil {
			return fmt.Errorf("repair %s at %d: %w", f.name, off, err)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return f.f.SyncData()
}
