package index

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
	"plinth/internal/id"
)

// ErrInterrupted is returned by Open for an index whose rebuild did not end.
// The caller rebuilds it.
var ErrInterrupted = errors.New("the rebuild of the index was interrupted")

// version 2 has dense slot tables, and rows of fingerprints in memory.
const version = 2

var magic = kv.Magic([]byte("PLNTINDX"))

// Deps is what the index needs of the other parts of its data node. All are
// required.
type Deps struct {
	// CheckEpoch returns ErrFenced when the epoch is below the disk's newest. It
	// does not call the index.
	CheckEpoch func(id.Disk, id.Epoch) error
	// Delete removes all fragments of a segment, durably. There may be none.
	Delete func(context.Context, id.Segment) error
	// Allocated returns how many bytes of a spindle a fragment of that many takes.
	Allocated func(dataBytes int) int
}

// Options of Open. The zero value is right for an index that exists.
type Options struct {
	// Create makes an index, empty and complete, where there is none: right for a
	// new pool only.
	Create bool
	// CacheBytes is the size of the block cache; 0 means kv.CacheBytesDefault. New
	// fingerprints take up to an eighth of it, and a filter of all a quarter, besides.
	CacheBytes int64
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Index implements datanode.IndexNode.
type Index struct {
	store *kv.Store
	deps  Deps
	log   *slog.Logger

	counters atomic.Pointer[counters] // changed under rows
	super    atomic.Pointer[super]    // changed under rows

	reclaim sync.Mutex // held by one Reclaim at a time
	rows    sync.Mutex // held while any row changes, except a registration
	holds   sync.Mutex // held while lists and states of segments change

	transit map[id.Segment]*transit // of segments condemned or forwarded; under holds

	recent    *recent // grows and shrinks under rows; cleared under holds too
	recentMax int     // rows
	filter    *filter

	filling sync.WaitGroup // what fills the filter; Close waits for it
	closing atomic.Bool    // set under rows
}

var _ datanode.IndexNode = (*Index)(nil)

// super is the superblock's body.
type super struct {
	incarnation uint64
	complete    bool
	building    bool
}

const (
	flagComplete = 1
	flagBuilding = 2
	superBytes   = 9
)

func (s super) encode() []byte {
	b := le.AppendUint64(make([]byte, 0, superBytes), s.incarnation)
	var flags byte
	if s.complete {
		flags |= flagComplete
	}
	if s.building {
		flags |= flagBuilding
	}
	return kv.Seal(magic, version, append(b, flags))
}

func decodeSuper(b []byte) (super, error) {
	body, err := kv.Open(magic, version, b)
	if err != nil {
		return super{}, err
	}
	if len(body) != superBytes || body[8]&^(flagComplete|flagBuilding) != 0 {
		return super{}, kv.ErrForeign
	}
	return super{le.Uint64(body), body[8]&flagComplete != 0, body[8]&flagBuilding != 0}, nil
}

// Open opens the index in dir, or creates one if Options say so. Errors:
// kv.ErrAbsent, kv.ErrForeign, kv.ErrNewer, datanode.ErrCorrupt, ErrInterrupted, those of
// the file system.
func Open(fs vfs.FS, dir string, deps Deps, opts Options) (*Index, error) {
	x, err := open(fs, dir, deps, opts)
	if err != nil {
		return nil, err
	}
	if err := x.load(opts.Create); err != nil {
		return nil, errors.Join(fmt.Errorf("open index in %s: %w", dir, err), x.store.Close())
	}
	x.startFilter()
	return x, nil
}

func open(fs vfs.FS, dir string, deps Deps, opts Options) (*Index, error) {
	if deps.CheckEpoch == nil || deps.Delete == nil || deps.Allocated == nil {
		return nil, errors.New("an index needs CheckEpoch, Delete and Allocated")
	}
	store, err := kv.OpenStore(fs, dir, kv.Options{
		Name: "index", Create: opts.Create, Comparer: comparer, CacheBytes: opts.CacheBytes, Logger: opts.Logger,
	})
	if err != nil {
		return nil, err
	}
	x := &Index{
		store: store, deps: deps, log: opts.Logger, transit: map[id.Segment]*transit{}, recent: newRecent(),
		recentMax: int(cmp.Or(opts.CacheBytes, kv.CacheBytesDefault) / bytesPerRecent),
		filter:    newFilter(cmp.Or(opts.CacheBytes, kv.CacheBytesDefault)),
	}
	if x.log == nil {
		x.log = slog.New(slog.DiscardHandler)
	}
	x.counters.Store(&counters{})
	return x, nil
}

// load reads superblock and counters, or writes those of a new index.
func (x *Index) load(create bool) error {
	var s super
	old := false
	found, err := x.store.View([]byte{keySuper}, func(v []byte) (err error) {
		s, err = decodeSuper(v)
		old = err == nil && kv.Version(v) < version
		return err
	})
	if err != nil {
		return err
	}
	if !found {
		switch {
		case !x.empty():
			return fmt.Errorf("%w: no superblock", kv.ErrForeign)
		case !create:
			return ErrInterrupted
		}
		return x.putSuper(super{incarnation: newIncarnation(), complete: true})
	}
	if s.building {
		return ErrInterrupted
	}
	x.super.Store(&s)
	_, err = x.store.View([]byte{keyCounters}, func(v []byte) error {
		c, err := decodeCounters(v)
		x.counters.Store(&c)
		return err
	})
	if err == nil && old { // from here on older programs refuse it
		err = x.putSuper(s)
	}
	if err == nil {
		err = x.loadRecent()
	}
	if err != nil {
		return err
	}
	return x.loadTransit()
}

func (x *Index) empty() bool {
	it, err := x.store.DB.NewIter(nil)
	if err != nil {
		return false
	}
	defer it.Close()
	return !it.First() && it.Error() == nil
}

// newIncarnation draws a number that no earlier incarnation had.
func newIncarnation() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return le.Uint64(b[:])>>1 + 1
}

// putSuper makes a superblock, and all before it, stable.
func (x *Index) putSuper(s super) error {
	b := x.store.DB.NewBatch()
	set(b, []byte{keySuper}, s.encode())
	if err := x.store.Commit(b); err != nil {
		return err
	}
	if err := x.store.Sync(); err != nil {
		return err
	}
	x.super.Store(&s)
	return nil
}

// Close waits for calls and closes the index. Everything is stable then.
func (x *Index) Close() error {
	entered := x.store.Enter() == nil
	x.rows.Lock()
	if entered {
		if err := x.putTable(); err != nil { // Open brings the rows back
			x.log.Warn("cannot make a table of fingerprints", "error", err)
		}
	}
	x.closing.Store(true)
	x.rows.Unlock()
	if entered {
		x.store.Leave()
	}
	x.filling.Wait()
	return x.store.Close()
}

// Status describes the index from counters that are kept with each change. It
// does no I/O.
func (x *Index) Status() datanode.IndexStatus {
	s, c := x.super.Load(), x.counters.Load()
	return datanode.IndexStatus{
		Incarnation: s.incarnation, Complete: s.complete, Segments: c.segments, Fingerprints: c.fingerprints,
		PlainBytes: c.plainBytes, SealedBytes: c.sealedBytes, ObjectBytes: c.objectBytes,
	}
}

// CompleteIndex ends an incomplete incarnation, durably. ErrInvalid for another
// one than the index's own.
func (x *Index) CompleteIndex(_ context.Context, r *datanode.CompleteIndexRequest) error {
	if err := x.store.Enter(); err != nil {
		return err
	}
	defer x.store.Leave()
	x.rows.Lock()
	defer x.rows.Unlock()
	s := *x.super.Load()
	if r.Incarnation != s.incarnation {
		return invalid("incarnation %d is not the index's own", r.Incarnation)
	}
	if s.complete {
		return nil
	}
	s.complete = true
	return x.putSuper(s)
}

// segment returns a segment's row, nil if it is not known.
func (x *Index) segment(s id.Segment) (*segmentRow, error) {
	var row *segmentRow
	_, err := x.store.View(segmentKey(keySegment, s), func(v []byte) (err error) {
		row, err = decodeSegment(v)
		return err
	})
	return row, err
}

// slots returns a segment's slot table, empty if there is none.
func (x *Index) slots(s id.Segment) ([]datanode.SlotEntry, error) {
	var slots []datanode.SlotEntry
	_, err := x.store.View(segmentKey(keySlots, s), func(v []byte) (err error) {
		slots, err = decodeSlots(v)
		return err
	})
	return slots, err
}

// list returns a disk's list of a segment, nil if there is none.
func (x *Index) list(s id.Segment, d id.Disk) (*listRow, error) {
	var row *listRow
	_, err := x.store.View(listKey(s, d), func(v []byte) (err error) {
		row, err = decodeList(v)
		return err
	})
	return row, err
}

// gone reports whether a segment was deleted.
func (x *Index) gone(s id.Segment) (gone bool, err error) {
	_, err = x.store.View(goneKey(s), func(v []byte) error {
		if len(v) != 1+goneRow/8 || v[0] != rowVersion {
			return corrupt("row of deleted segments")
		}
		n := s.Number() % goneRow
		gone = v[1+n>>3]&(1<<(n&7)) != 0
		return nil
	})
	return gone, err
}

// scan calls f with the keys and values of a span, in order, until f returns
// false. Both are valid during the call only.
func (x *Index) scan(lower, upper []byte, f func(key, value []byte) (bool, error)) error {
	it, err := x.store.DB.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return x.store.Wrap(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			break // the iterator has it too
		}
		more, err := f(it.Key(), v)
		if err != nil {
			it.Close()
			return err
		}
		if !more {
			break
		}
	}
	return x.store.Wrap(it.Close())
}

// set and del change a batch that is not indexed and not closed, which cannot
// fail.
func set(b *pebble.Batch, key, value []byte) {
	if err := b.Set(key, value, nil); err != nil {
		panic(err)
	}
}

func del(b *pebble.Batch, key []byte) {
	if err := b.Delete(key, nil); err != nil {
		panic(err)
	}
}
