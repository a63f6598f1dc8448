package blockmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"plinth/internal/id"
	"plinth/internal/longlock"
)

// flushFailuresMax flushes in a row may fail before the map does: with the
// pauses between them, the local disk is broken or full for half a minute.
const flushFailuresMax = 32

// flushedNothing is the text of the error, not exported, that Pebble gives the
// listener for a flush that went well and found nothing in memory.
const flushedNothing = "pebble: empty table"

// Map is one disk's map. Create and Attach make one; Close ends it.
type Map struct {
	opts      Options
	log       *slog.Logger
	fs        *tableFS
	scheduler *scheduler
	sweepRows int // sweepRows, but in tests
	db        *pebble.DB
	cache     *Cache // to close, if the map's own
	dbDir     string
	calls     gate
	cancel    context.CancelFunc // ends what waits for Objects
	flushes   atomic.Int32       // that failed in a row

	failure atomic.Pointer[error] // why it failed
	failed  chan struct{}         // closed at the failure
	closing chan struct{}         // closed at the beginning of Close
	told    chan struct{}         // closed when the goroutine that calls Options.Failed ends

	checkpoints chan struct{}  // of one: the right to make a checkpoint
	sweeping    longlock.Mutex // one Sweep at a time

	apply longlock.Mutex // one step of the history at a time, and what describes it:
	head  head
	// unmarked is above the generation of every snapshot: no batch is older.
	unmarked id.Gen
	// rollbacks and sweeps count those that began. A Sweep needs to know of
	// either since its Snapshot was taken.
	rollbacks, sweeps uint64
	// since counts updates since the newest checkpoint.
	since atomic.Uint64
	// only is the one generation of all entries, plus 1, where no trim hides
	// any: then the key of an LBA's entry is known. Else 0. It never takes a
	// value again that it had before, other than 0, and it changes before the
	// Apply that changes it returns: so a look-up that finds it the same before
	// and after missed nothing.
	only atomic.Uint64
	// recent spares look-ups the tables where it knows what they would find.
	recent *recent
	// holes does so where nothing is.
	holes holes

	// shown makes rows and what is below of one instant. Apply and Sweep
	// change it under both locks.
	shown sync.RWMutex
	trims trims
	view  view
	marks marks
	// marked is the number of marks, for who must not wait for those locks.
	marked atomic.Int64

	mu        sync.Mutex
	snapshots map[*Snapshot]struct{}
	pinned    []Object // named by the last checkpoint, or the one being made
}

// Create makes an empty map of generation 0 in Options.Dir, which it removes
// first. Errors: ErrInvalid and those of the file system.
func Create(opts Options) (*Map, error) {
	m, err := prepare(opts)
	if err != nil {
		return nil, err
	}
	first := head{floor: genEnd, view: wholeView(), state: []byte{}}
	if err := m.open(false); err != nil {
		return nil, errors.Join(fmt.Errorf("create map: %w", err), m.Close())
	}
	m.show(first.view, nil, nil)
	m.install(first)
	if err := m.db.Set(headKey[:], first.encode(), pebble.NoSync); err != nil {
		return nil, errors.Join(fmt.Errorf("create map: %w", err), m.Close())
	}
	return m, nil
}

// prepare makes a map without a database and an empty directory for it.
func prepare(opts Options) (*Map, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	dbDir := opts.FS.PathJoin(opts.Dir, "db")
	if err := opts.FS.RemoveAll(opts.Dir); err != nil {
		return nil, fmt.Errorf("empty %s: %w", opts.Dir, err)
	}
	if err := opts.FS.MkdirAll(dbDir, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", dbDir, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Map{
		opts: opts, log: opts.Logger, dbDir: dbDir, cancel: cancel,
		scheduler: newScheduler(), sweepRows: sweepRows, holes: holes{bits: regionBits},
		failed: make(chan struct{}), closing: make(chan struct{}), told: make(chan struct{}),
		checkpoints: make(chan struct{}, 1),
		snapshots:   map[*Snapshot]struct{}{},
	}
	m.fs = newTableFS(ctx, opts.FS, dbDir, opts.Objects, m.fail)
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	go m.tell()
	return m, nil
}

// open opens the database. On an error the caller closes the map.
func (m *Map) open(attached bool) error {
	cache := m.opts.Cache
	if cache == nil {
		cache = NewCache(ownCacheBytes, ownCacheFiles)
		m.cache = cache
	}
	m.recent = newRecent(cache.entries)
	db, err := pebble.Open(m.dbDir, m.pebbleOptions(cache, attached))
	if err != nil {
		return err
	}
	m.db = db
	return m.cause()
}

// show sets the trims, the view and the snapshots of the database's rows. Once
// the map is in use, the caller holds m.apply and m.shown.
func (m *Map) show(v view, t trims, k marks) {
	m.view, m.trims, m.marks = v, t, k
	m.marked.Store(int64(len(k)))
}

// install sets the head, after show. Once the map is in use, the caller holds
// m.apply.
func (m *Map) install(h head) {
	m.head = h
	only := uint64(0)
	if len(m.trims) == 0 && h.floor == h.gen {
		only = uint64(h.gen) + 1
	}
	m.only.Store(only)
}

// tell calls Options.Failed, outside of whatever lock the failure was met
// under.
func (m *Map) tell() {
	defer close(m.told)
	select {
	case <-m.closing:
	case <-m.failed:
		if m.opts.Failed != nil {
			m.opts.Failed(m.cause())
		}
	}
}

// fail makes the map fail, once. It never blocks.
func (m *Map) fail(err error) {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if m.failure.CompareAndSwap(nil, &err) {
		m.fs.discarding.Store(true)
		close(m.failed)
	}
}

// cause returns why the map has failed, or nil.
func (m *Map) cause() error {
	if err := m.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// flushed notes how a flush went. It may be called under Pebble's lock.
func (m *Map) flushed(err error) {
	if err == nil || err.Error() == flushedNothing {
		m.flushes.Store(0)
		m.fs.failures.Store(0)
		return
	}
	m.fs.failures.Add(1)
	if m.flushes.Add(1) == flushFailuresMax {
		m.fail(fmt.Errorf("flush: %w", err))
	}
}

// begin starts a call; if it returns nil, m.calls.leave ends it.
func (m *Map) begin() error {
	if !m.calls.enter() {
		return ErrClosed
	}
	if err := m.cause(); err != nil {
		m.calls.leave()
		return err
	}
	return nil
}

// Close waits for calls that have begun, ending those that wait for Objects,
// and gives up everything, Options.Dir and open snapshots included. What was
// applied since the last checkpoint is gone. It may be called again, and on a
// map that has failed.
func (m *Map) Close() error {
	if !m.calls.close() {
		return nil
	}
	close(m.closing)
	m.fs.discarding.Store(true)
	m.cancel()
	m.calls.wait()
	<-m.told
	var err error
	if m.db != nil {
		for _, s := range m.openSnapshots() {
			err = errors.Join(err, s.release())
		}
		failed := m.cause() != nil
		if e := m.db.Close(); !failed {
			err = errors.Join(err, e)
		}
	}
	m.scheduler.Unregister()
	if m.cache != nil {
		m.cache.Close()
	}
	if e := m.opts.FS.RemoveAll(m.opts.Dir); e != nil && m.cause() == nil {
		err = errors.Join(err, e)
	}
	return err
}

// gate counts calls, so that Close can wait for them.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside int
	empty  chan struct{} // made by close, closed when nobody is inside
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.closed && g.inside == 0 {
		close(g.empty)
	}
}

// close keeps further calls out and reports whether it was the first to.
func (g *gate) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.closed = true
	g.empty = make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	return true
}

func (g *gate) wait() { <-g.empty }
