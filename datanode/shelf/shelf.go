package shelf

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index"
	"plinth/datanode/index/kv"
	"plinth/datanode/spindle"
	"plinth/datanode/writelog"
	"plinth/internal/id"
	"plinth/internal/registry"
	"plinth/internal/vfsx"
)

// Shelf is an open data node. It is safe for concurrent use.
type Shelf struct {
	datanode.LogNode
	datanode.ReplicaNode
	datanode.FragmentNode
	datanode.IndexNode
	datanode.RegistryNode

	place  place
	super  superblock
	opts   Options
	bootID [16]byte
	logger *slog.Logger

	lockFile vfs.FileInfo // as it was when it was locked
	held     atomic.Bool  // see Held

	log      *writelog.Log
	spindles *spindle.Set
	adding   sync.Mutex // held by add
	rosterMu sync.Mutex // guards roster, and how many spindles super has, once the node is open
	roster   *roster    // which drives they are
	index    *index.Index
	registry *registry.Pebble
	copies   copies

	stop    context.CancelFunc // of watch
	watcher sync.WaitGroup
	// closers end what is open; they run from the last to the first.
	closers []func() error
	closing sync.Once
	closed  error // of Close, once closing is done
}

var _ datanode.Replica = (*Shelf)(nil)

// Open opens the data node in dir. It blocks until the log and the tables of
// the spindles are read. A spindle that is not there is served as absent.
// Errors: ErrNoNode, ErrForeign, ErrNewer, ErrDamaged, ErrLocked,
// ErrNeedsRecover, ErrLogMissing, ErrMember, those of the parts. Nothing is created in
// place of what is missing.
func Open(ctx context.Context, dir string, opts Options) (*Shelf, error) {
	s, err := enter(dir, opts)
	if err == nil {
		if err = s.open(ctx); err != nil {
			err = errors.Join(err, s.unwind())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open data node: %w", err)
	}
	s.start()
	return s, nil
}

// enter checks that dir is this pool's node and locks it.
func enter(dir string, opts Options) (*Shelf, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	p := place{opts.fs(), dir}
	super, err := p.readSuperblock()
	if err != nil {
		return nil, err
	}
	if err := opts.agree(super); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	lock, err := p.lock()
	if err != nil {
		return nil, err
	}
	s := &Shelf{place: p, super: super, opts: opts, logger: opts.logger()}
	s.owns(lock)
	if s.lockFile, err = p.fs.Stat(p.path(lockName)); err != nil {
		return nil, errors.Join(err, s.unwind())
	}
	s.held.Store(true)
	return s, nil
}

// open opens the parts and joins them.
func (s *Shelf) open(ctx context.Context) error {
	if err := s.place.remove(creatingName); err != nil {
		return err
	}
	for _, name := range []string{fingerprintsName, registryName} {
		path := s.place.path(indexName, name)
		if there, err := exists(s.place.fs, path); err != nil {
			return err
		} else if !there {
			return fmt.Errorf("%w: there is no %s: run plinth recover, which rebuilds them from the spindles", ErrNeedsRecover, path)
		}
	}
	if err := s.readRoster(); err != nil {
		return err
	}
	if err := s.openLog(false); err != nil {
		return err
	}
	if err := s.openSpindles(); err != nil {
		return err
	}
	if err := s.meetDrives(); err != nil {
		return err
	}
	return s.openIndex(ctx)
}

// openLog opens the log; it makes one only if create is set.
func (s *Shelf) openLog(create bool) error {
	dir := s.place.path(logName)
	names, err := s.place.fs.List(dir)
	switch {
	case err != nil && !isNotExist(err):
		return err
	case len(names) == 0 && !create:
		return fmt.Errorf("%w: %s is empty or not there, and with it are acknowledged writes: put it back", ErrLogMissing, dir)
	case len(names) == 0:
		rand.Read(s.roster.log[:]) // the roster first: no log is taken for the one before
		if err := errors.Join(s.place.writeRoster(s.super.poolID, s.roster), s.place.mkdir(dir)); err != nil {
			return err
		}
	}
	s.bootID = bootID(s.roster.log)
	s.log, err = writelog.Open(s.place.fs, writelog.Options{
		Dir: dir, SizeBytes: s.super.logBytes, PoolID: s.super.poolID, BootID: s.bootID, Logger: s.logger,
	})
	if errors.Is(err, datanode.ErrCorrupt) {
		return fmt.Errorf("%w: put back what was there, or move %s away and recover without it (docs/operations.md)", err, dir)
	}
	if err != nil {
		return err
	}
	s.owns(s.log)
	s.LogNode, s.ReplicaNode = s.log, s.log
	return nil
}

func (s *Shelf) readRoster() (err error) {
	s.roster, err = s.place.readRoster(s.super.poolID, s.super.spindles)
	return err
}

func (s *Shelf) openSpindles() error {
	var err error
	s.spindles, err = spindle.Open(s.place.fs, s.place.spindles(s.super.spindles), s.spindleOptions())
	if err != nil {
		return err
	}
	s.owns(s.spindles)
	s.FragmentNode = s.spindles
	s.copies = copies{spindles: s.spindles, logger: s.logger}
	return nil
}

func (s *Shelf) spindleOptions() spindle.Options {
	s.rosterMu.Lock()
	defer s.rosterMu.Unlock()
	return spindle.Options{
		PoolID: s.super.poolID, SizeBytes: s.super.spindleBytes, Width: s.opts.width(s.super.spindles), Logger: s.logger,
		Identities: s.roster.identities(),
	}
}

// openIndex opens registry and fingerprints, and takes in the segments that were written
// and not published before the node ended. An index that cannot be opened is made anew: all
// that it should know is on the spindles and in the owners' maps.
func (s *Shelf) openIndex(ctx context.Context) error {
	s.copies.floor = s.copies.newest().revision
	if err := s.openRegistry(false); err != nil {
		return err
	}
	_, revision, err := s.registry.Dump()
	if err != nil {
		return err
	}
	if revision < s.copies.floor {
		return fmt.Errorf("%w: the registry in %s is of revision %d, its copy on the spindles of %d: run plinth recover, which takes the newest",
			ErrNeedsRecover, s.place.path(indexName), revision, s.copies.floor)
	}
	if err := s.learnWidth(ctx); err != nil {
		return err
	}
	if s.opts.Keeps, err = s.learnShare(ctx); err != nil {
		return err
	}
	err = s.openFingerprints(false)
	if errors.Is(err, kv.ErrAbsent) || errors.Is(err, datanode.ErrCorrupt) || errors.Is(err, index.ErrInterrupted) {
		s.logger.Error("the index of fingerprints is damaged: it is made anew from the spindles, and finds and deletes nothing before every disk has stated what it needs", "err", err)
		if err = s.rebuildIndex(ctx, s.walk); err == nil {
			err = s.openFingerprints(false)
		}
	}
	if err != nil {
		return err
	}
	return s.adopt(ctx)
}

func (s *Shelf) openFingerprints(create bool) error {
	opts := s.indexOptions()
	opts.Create = create
	x, err := index.Open(s.place.fs, s.place.path(indexName, fingerprintsName), s.indexDeps(), opts)
	if err != nil {
		return err
	}
	s.owns(x)
	s.index, s.IndexNode = x, x
	return nil
}

func (s *Shelf) indexDeps() index.Deps {
	return index.Deps{CheckEpoch: s.log.CheckEpoch, Delete: s.spindles.Delete, Allocated: spindle.AllocatedBytes}
}

func (s *Shelf) indexOptions() index.Options {
	return index.Options{CacheBytes: s.opts.IndexCacheBytes, Logger: s.logger}
}

func (s *Shelf) openRegistry(create bool) error {
	r, err := registry.Open(s.place.fs, s.place.path(indexName, registryName), registry.Options{
		Create: create, CheckEpoch: s.log.CheckEpoch, Copies: s.copies.put, Logger: s.logger,
	})
	if err != nil {
		return err
	}
	s.owns(r)
	s.registry, s.RegistryNode = r, r
	return nil
}

// owns hands c over to Close.
func (s *Shelf) owns(c io.Closer) { s.closers = append(s.closers, c.Close) }

// unwind closes what is open, the newest first.
func (s *Shelf) unwind() error {
	var errs []error
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		errs = append(errs, s.closers[last]())
		s.closers = s.closers[:last]
	}
	return errors.Join(errs...)
}

// start begins the health checks. The shelf is complete.
func (s *Shelf) start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.watcher.Go(func() { s.watch(ctx) })
}

// Close stops the health checks, closes registry, index, spindles and log in
// this order, and gives the directory free. Calls under way end first; later
// ones get ErrClosed. It is idempotent.
func (s *Shelf) Close() error {
	s.closing.Do(func() {
		s.held.Store(false)
		s.stop()
		s.watcher.Wait()
		s.closed = s.unwind()
	})
	return s.closed
}

// Held returns nil while this process is known to hold the directory's lock,
// which on one machine stands for the lease of every disk (I6). It costs an
// atomic load: the lock is looked at with the spindles, every few seconds.
func (s *Shelf) Held() error {
	if s.held.Load() {
		return nil
	}
	return datanode.Errorf(datanode.ErrClosed, "the lock of %s is not held", s.place.dir)
}

// checkLock notices that the lock file was removed or replaced, so that another
// process may hold another one by the same name.
func (s *Shelf) checkLock() {
	now, err := s.place.fs.Stat(s.place.path(lockName))
	if err == nil && vfsx.SameFile(s.lockFile, now) {
		return
	}
	if s.held.CompareAndSwap(true, false) {
		s.logger.Error("the lock file was removed or replaced: nothing is served any more", "dir", s.place.dir)
	}
}

// DiscardFragments implements datanode.Node.
func (s *Shelf) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	reply, err := s.index.DescribeSegments(ctx, &datanode.DescribeSegmentsRequest{Segments: []id.Segment{r.Segment}})
	if err != nil {
		return err
	}
	if reply.Segments[0].Known {
		return datanode.Errorf(datanode.ErrInvalid, "discard fragments of segment %s, which is published", r.Segment)
	}
	return s.spindles.DiscardFragments(ctx, r)
}

// Status implements datanode.Node.
func (s *Shelf) Status(ctx context.Context) (*datanode.Status, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The spindles first: see replace.
	space, spindles := s.spindles.Space(), s.spindles.Status()
	for i := range spindles {
		spindles[i].Incarnation = s.incarnation(spindles[i].Spindle)
	}
	return &datanode.Status{
		PoolID: s.super.poolID, BootID: s.bootID, LayoutVersion: s.spindles.LayoutVersion(),
		Spindles: spindles, Log: s.log.Usage(), Streams: s.log.Streams(), Index: s.index.Status(),
		ReservedBytes: space.Reserved, FreeBytes: space.Free, SpareBytes: space.Spare,
	}, nil
}

// SetLayoutVersion makes the spindles refuse writes under older stripe layouts.
// It is not durable: who keeps the layouts says it again after Open.
func (s *Shelf) SetLayoutVersion(version uint64) { s.spindles.SetLayoutVersion(version) }

// bootID names this run of the machine with a log: what was written before another run
// and not synced may be gone, and what is in another log was never written to this one.
// Where the kernel does not say, each call is a new run.
func bootID(log [16]byte) (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
		if b, err := hex.DecodeString(digits); err == nil && len(b) == len(id) {
			if log == [16]byte{} {
				return [16]byte(b)
			}
			sum := sha256.Sum256(append(b, log[:]...))
			return [16]byte(sum[:])
		}
	}
	rand.Read(id[:]) // never fails: the runtime ends the process instead
	return id
}
