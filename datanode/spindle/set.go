package spindle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

// Set is the spindles of a data node. It implements datanode.FragmentNode, and
// its methods may be called at once.
type Set struct {
	replacing sync.Mutex // held by Replace and Add, which alone change current
	// current are the spindles by number, a list that never changes.
	current atomic.Pointer[[]*spindle]
	width   atomic.Int64
	layout  atomic.Uint64
	probes  sync.WaitGroup

	life   sync.RWMutex // held for reading by each call, for writing by Close
	closed bool

	spaceMu      sync.Mutex
	reservations map[string]int64
}

var _ datanode.FragmentNode = (*Set)(nil)

// Create makes new spindles: dirs[i], created if need be, becomes spindle i. It
// refuses a directory that is one already, and sizes that were chosen and that
// the file systems do not have.
func Create(fs vfs.FS, dirs []string, opts Options) error {
	if err := checkDirs(dirs); err != nil {
		return fmt.Errorf("create spindles: %w", err)
	}
	all := make(map[id.Spindle]string, len(dirs))
	for i, dir := range dirs {
		all[id.Spindle(i)] = dir
	}
	return create(fs, all, opts)
}

// CreateOne makes spindle n in a directory, with opts.Identities[n] if that is given.
func CreateOne(fs vfs.FS, dir string, n id.Spindle, opts Options) error {
	return create(fs, map[id.Spindle]string{n: dir}, opts)
}

func create(fs vfs.FS, dirs map[id.Spindle]string, opts Options) error {
	if err := opts.Validate(); err != nil {
		return fmt.Errorf("create spindles: %w", err)
	}
	numbers := slices.Sorted(maps.Keys(dirs))
	for _, i := range numbers {
		dir := dirs[i]
		if err := fs.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create spindle: %w", err)
		}
		path := fs.PathJoin(dir, superName)
		if _, err := fs.Stat(path); err == nil {
			return fmt.Errorf("create spindle in %s: it is one already: remove it first if nothing in it is needed", dir)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("create spindle in %s: %w", dir, err)
		}
	}
	size, slab := opts.sizes()
	if opts.SizeBytes != 0 {
		if err := checkRoom(fs, slices.Collect(maps.Values(dirs)), size); err != nil {
			return fmt.Errorf("create spindles: %w", err)
		}
	}
	for _, i := range numbers {
		dir := dirs[i]
		identity, given := opts.Identities[i]
		if !given {
			identity = NewIdentity()
		}
		s := super{pool: opts.PoolID, spindle: i, identity: identity, sizeBytes: size, slabBytes: slab}
		if err := writeSuper(fs, dir, &s); err != nil {
			return fmt.Errorf("create spindle in %s: %w", dir, err)
		}
	}
	return nil
}

// NewIdentity draws a spindle's identity.
func NewIdentity() uint64 {
	for {
		if n := rand.Uint64() >> 16; n != 0 {
			return n
		}
	}
}

// Unfinished is all that an interrupted CreateOne leaves in its directory, and SuperName with it
// what one leaves that was not.
const (
	Unfinished = superName + TempSuffix
	SuperName  = superName
)

// Fresh reports whether names are those of a directory where CreateOne was, and nothing
// was written since. Those of ignore may be there too.
func Fresh(names []string, ignore string) bool {
	return slices.Contains(names, superName) &&
		!slices.ContainsFunc(names, func(name string) bool { return name != superName && name != Unfinished && name != ignore })
}

// writeSuper makes a superblock appear whole and durably.
func writeSuper(fs vfs.FS, dir string, s *super) error {
	path := fs.PathJoin(dir, superName)
	if err := writeFile(fs, path+TempSuffix, s.encode()); err != nil {
		return err
	}
	if err := fs.Rename(path+TempSuffix, path); err != nil {
		return err
	}
	return errors.Join(vfsx.SyncDir(fs, dir), vfsx.SyncDir(fs, fs.PathDir(dir)))
}

func checkDirs(dirs []string) error {
	if len(dirs) == 0 || len(dirs) > SpindlesMax {
		return fmt.Errorf("%d spindles: not 1 to %d", len(dirs), SpindlesMax)
	}
	seen := map[string]bool{}
	for _, d := range dirs {
		if seen[d] {
			return fmt.Errorf("%s is named twice", d)
		}
		seen[d] = true
	}
	return nil
}

// checkRoom tests the sum of sizes on each file system.
func checkRoom(fs vfs.FS, dirs []string, size int64) error {
	on := map[vfs.DeviceID]int64{}
	for _, dir := range dirs {
		info, err := fs.Stat(dir)
		if err != nil {
			return err
		}
		on[info.DeviceID()]++
		has, err := vfsx.Available(fs, dir)
		if err != nil {
			return err
		}
		if n := on[info.DeviceID()]; has/n < size {
			return fmt.Errorf("the file system of %s has %d bytes left, %d spindles of %d bytes need %d: choose a smaller size",
				dir, has, n, size, n*size)
		}
	}
	return nil
}

// writeFile creates a file durably; its name is the directory's to make so.
func writeFile(fs vfs.FS, path string, pieces ...[]byte) error {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := f.Write(p); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// Open opens the spindles that Create made in these directories, in this order.
// A directory that is missing or empty, or is another pool's, another spindle or one
// that was replaced (Options.Identities), becomes an absent spindle, and one with damage or I/O errors a failed one: Status
// says so, and the caller decides. Errors: ErrVersion.
func Open(fs vfs.FS, dirs []string, opts Options) (*Set, error) {
	if err := opts.Validate(); err != nil {
		return nil, fmt.Errorf("open spindles: %w", err)
	}
	if err := checkDirs(dirs); err != nil {
		return nil, fmt.Errorf("open spindles: %w", err)
	}
	s := &Set{reservations: map[string]int64{}}
	spindles := make([]*spindle, len(dirs))
	s.SetWidth(cmp.Or(opts.Width, len(dirs)))
	errs := make([]error, len(dirs))
	turns := make(chan struct{}, opensMax)
	var wg sync.WaitGroup
	for i, dir := range dirs {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			spindles[i], errs[i] = openSpindle(fs, dir, id.Spindle(i), &opts)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, sp := range spindles {
			if sp != nil {
				sp.close()
			}
		}
		return nil, err
	}
	measure(spindles)
	s.current.Store(&spindles)
	return s, nil
}

// opensMax bounds the spindles whose tables are read at once.
const opensMax = 16

// Close waits for calls under way and closes all files. It may be repeated.
func (s *Set) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.probes.Wait()
	var errs []error
	for _, sp := range s.all() {
		errs = append(errs, sp.close())
	}
	return errors.Join(errs...)
}

// all returns the spindles by number, as they are now.
func (s *Set) all() []*spindle { return *s.current.Load() }

// enter begins a call, which s.life.RUnlock ends if there is no error.
func (s *Set) enter() error {
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return datanode.Errorf(datanode.ErrClosed, "spindles")
	}
	return nil
}

// Identity returns which drive a spindle is, if its superblock could be read.
func (s *Set) Identity(n id.Spindle) (uint64, bool) {
	sp := s.all()[n]
	return sp.super.identity, sp.info != nil
}

// Status describes all spindles, by number. It does no I/O.
func (s *Set) Status() []datanode.SpindleStatus {
	all := s.all()
	out := make([]datanode.SpindleStatus, len(all))
	for i, sp := range all {
		out[i] = sp.status()
	}
	return out
}

// SetWidth replaces Options.Width.
func (s *Set) SetWidth(width int) { s.width.Store(int64(width)) }

// SetLayoutVersion refuses writes under layouts older than v from now on. It
// never goes back.
func (s *Set) SetLayoutVersion(v uint64) {
	for {
		old := s.layout.Load()
		if old >= v || s.layout.CompareAndSwap(old, v) {
			return
		}
	}
}

// LayoutVersion returns the version that SetLayoutVersion set.
func (s *Set) LayoutVersion() uint64 { return s.layout.Load() }

// Check tests that each spindle that serves is still there, by its path, and
// takes those out of service that are not. It returns when all have answered,
// or with the context's error.
func (s *Set) Check(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	all := s.all()
	done := make(chan struct{}, len(all))
	for _, sp := range all {
		// One probe of a spindle at a time, however long its drive hangs.
		if !sp.probing.CompareAndSwap(false, true) {
			done <- struct{}{}
			continue
		}
		s.probes.Go(func() {
			defer func() {
				sp.probing.Store(false)
				done <- struct{}{}
			}()
			sp.probe()
		})
	}
	for range all {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	measure(all)
	return nil
}

// DiscardFragments implements datanode.FragmentNode. Whether the segment is known
// to an index is for the caller to test.
func (s *Set) DiscardFragments(ctx context.Context, r *datanode.DiscardFragmentsRequest) error {
	return s.Delete(ctx, r.Segment)
}

// Delete removes all fragments of a segment from the spindles that serve,
// durably. Those that come back later have an orphan, which Segments lists. It
// may be repeated. Error: ErrSpindle if a spindle failed over it.
func (s *Set) Delete(ctx context.Context, segment id.Segment) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.life.RUnlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	all := s.all()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, sp := range all {
		if !sp.holds(segment) {
			continue
		}
		wg.Go(func() {
			if err := sp.remove(segment); err != nil {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
