package kv

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/vfsx"
)

// CacheBytesDefault holds the filters and the hot blocks of some ten million
// fingerprints.
const CacheBytesDefault = 128 << 20

// MemTableBytes bounds what is replayed at an open, twice.
const MemTableBytes = 16 << 20

// Options of Open.
type Options struct {
	// Name says in errors and logs what the store is.
	Name string
	// Create makes a store where there is none.
	Create bool
	// Comparer orders and splits keys; nil is Pebble's default. A store is opened
	// with the one it was made with, or not at all.
	Comparer *pebble.Comparer
	// CacheBytes is the block cache's size; 0 means CacheBytesDefault.
	CacheBytes int64
	// Logger gets Pebble's warnings; nil discards them.
	Logger *slog.Logger
}

// ErrAbsent is returned by OpenStore for a directory without a store when Create
// is not set. The caller creates, restores or rebuilds one.
var ErrAbsent = errors.New("there is none")

// Store is one Pebble.
type Store struct {
	DB   *pebble.DB // for batches and iterators, between Enter and Leave
	fs   vfs.FS
	dir  string
	opts *pebble.Options
	name string
	log  *slog.Logger
	dead atomic.Pointer[datanode.Error] // set once

	life   sync.RWMutex // held shared by users, exclusively by Close
	closed bool
}

// OpenStore opens the store in dir. Errors: ErrAbsent, also if files are missing that it
// should have, datanode.ErrCorrupt, those of the file system.
func OpenStore(fs vfs.FS, dir string, opts Options) (*Store, error) {
	s := &Store{fs: fs, dir: dir, name: opts.Name, log: opts.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if opts.Create {
		if err := vfsx.MakeDir(fs, dir, 0o755); err != nil {
			return nil, fmt.Errorf("create %s in %s: %w", opts.Name, dir, err)
		}
	}
	if err := settle(fs, dir); err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", opts.Name, dir, err)
	}
	patient := newPatientFS(fs)
	o := s.options(patient, opts)
	patient.listen(o.EventListener)
	db, err := patient.open(dir, o)
	if errors.Is(err, pebble.ErrDBDoesNotExist) || errors.Is(err, pebble.ErrDBNotPristine) || !opts.Create && errors.Is(err, iofs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	if err != nil && (pebble.IsCorruptionError(err) || strings.Contains(err.Error(), "object size mismatch")) { // of which Pebble has no kind
		err = datanode.Errorf(datanode.ErrCorrupt, "%v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", opts.Name, dir, err)
	}
	s.DB, s.opts = db, o
	return s, nil
}

// settle makes the logs and manifests in dir stable as they can be read now, and their
// names: a process that was killed may have left what is not, and Pebble builds on it. A
// loss of power that took it away later would leave a log that ends too early before
// another one, which Pebble refuses.
func settle(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") && !strings.HasPrefix(name, "MANIFEST-") {
			continue
		}
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return vfsx.SyncDir(fs, dir)
}

func (s *Store) options(fs vfs.FS, opts Options) *pebble.Options {
	o := &pebble.Options{
		FS:                          fs,
		Comparer:                    opts.Comparer,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		ErrorIfNotExists:            !opts.Create,
		CacheSize:                   opts.CacheBytes,
		MemTableSize:                MemTableBytes,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       1000,
		LBaseMaxBytes:               64 << 20,
		MemTableStopWritesThreshold: 4,
		Logger:                      (*logger)(s),
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { s.log.Error("background error", "store", s.name, "error", err) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				s.log.Error("corruption", "store", s.name, "path", i.Path, "details", i.Details)
			},
		},
	}
	if o.CacheSize == 0 {
		o.CacheSize = CacheBytesDefault
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	// Lookups are of random keys: that a table is read often says nothing.
	o.Experimental.ReadSamplingMultiplier = -1
	o.EnsureDefaults()
	return o
}

// Enter begins a use. It fails with ErrClosed or ErrDead; the caller then does
// not call Leave.
func (s *Store) Enter() error {
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return datanode.ErrClosed
	}
	if err := s.Err(); err != nil {
		s.life.RUnlock()
		return err
	}
	return nil
}

// Leave ends a use.
func (s *Store) Leave() { s.life.RUnlock() }

// Err returns why the store is dead, or nil.
func (s *Store) Err() error {
	if e := s.dead.Load(); e != nil {
		return e
	}
	return nil
}

// Close waits for users and closes Pebble. What was committed is stable then,
// unless the store is dead. Later calls do nothing.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.DB.Close(); err != nil {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}

// View calls f with a key's value, which is valid during the call only, and
// reports whether there is one. f may be nil.
func (s *Store) View(key []byte, f func(value []byte) error) (bool, error) {
	v, closer, err := s.DB.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, s.Wrap(err)
	}
	defer closer.Close()
	if f == nil {
		return true, nil
	}
	return true, f(v)
}

// Commit applies a batch and closes it. It is visible at return, not yet
// stable.
func (s *Store) Commit(b *pebble.Batch) error {
	defer b.Close()
	if err := s.Err(); err != nil {
		return err
	}
	return s.committed(b.Commit(pebble.NoSync))
}

// Sync returns when every Commit that returned before the call is stable. One
// fdatasync serves many callers.
func (s *Store) Sync() error {
	return s.committed(s.DB.LogData(nil, pebble.Sync))
}

// committed marks the store dead after a failed commit: Pebble's memtable may
// be ahead of its log.
func (s *Store) committed(err error) error {
	if err != nil {
		s.kill(err.Error())
	}
	return s.Err()
}

func (s *Store) kill(why string) {
	if s.dead.CompareAndSwap(nil, datanode.Errorf(datanode.ErrDead, "%s: %s", s.name, why)) {
		s.log.Error("store has failed", "store", s.name, "error", why)
	}
}

// Wrap makes a read error of Pebble one of the contract.
func (s *Store) Wrap(err error) error {
	if err == nil {
		return nil
	}
	if pebble.IsCorruptionError(err) {
		return datanode.Errorf(datanode.ErrCorrupt, "%s: %v", s.name, err)
	}
	return &datanode.Error{Code: datanode.CodeUnknown, Text: fmt.Sprintf("%s: %v", s.name, err)}
}

// logger is a Store as Pebble's Logger.
type logger Store

func (l *logger) Infof(string, ...any) {}

func (l *logger) Errorf(format string, args ...any) {
	l.log.Warn(fmt.Sprintf(format, args...), "store", l.name)
}

// Fatalf is Pebble's way to say that it cannot go on.
func (l *logger) Fatalf(format string, args ...any) {
	(*Store)(l).kill(fmt.Sprintf(format, args...))
}

// Remove removes what is in a store's directory, durably: files that came back later would
// mix with those of a new store. The directory stays, or is made.
func Remove(fs vfs.FS, dir string) error {
	if err := vfsx.MakeDir(fs, dir, 0o755); err != nil {
		return err
	}
	return vfsx.ClearDir(fs, dir)
}

// Above returns the smallest key above all keys with a prefix; nil, which stands
// for the end, if there is none.
func Above(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}
