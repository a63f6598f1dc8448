package spindle

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx"
)

// spindle is one directory. Locks are taken in the order growMu, mu; no lock
// but growMu is held during I/O.
type spindle struct {
	number id.Spindle
	fs     vfs.FS
	dir    string
	pool   [16]byte
	is     *uint64 // its identity, nil: not known
	log    *slog.Logger
	super  super        // zero if it could not be read
	info   vfs.FileInfo // of the superblock's file, when it was opened
	aio    *vfsx.AIO    // of its slabs

	writing, reading chan struct{} // semaphores
	probing          atomic.Bool
	calls            sync.WaitGroup // at work on its files; none begins once it does not serve
	available        atomic.Int64   // bytes, this spindle's share of what the file system has left
	metaMu           sync.Mutex

	growMu sync.Mutex // held while a slab is made, and while free blocks are taken in pieces
	newest *slab      // guarded by growMu; the only slab whose free blocks are real

	mu         sync.Mutex
	state      datanode.SpindleState
	reason     string
	slabs      []*slab // by number
	freeBlocks int64   // of slabs, made and not
	serial     uint64  // last used
	catalog    catalog
	pending    map[name]*pending
}

// pending is a fragment that is being written.
type pending struct{ cancelled bool }

const (
	// writersMax bounds the writes at work on one spindle, and with it their
	// buffers of a fragment each; more would wait for the same syncs.
	writersMax = 8
	// readersMax bounds the reads at work on one spindle.
	readersMax = 16
)

// openSpindle never fails for what is wrong with one drive: that is its state.
// It returns only ErrVersion.
func openSpindle(fs vfs.FS, dir string, number id.Spindle, opts *Options) (*spindle, error) {
	sp := &spindle{
		number: number, fs: fs, dir: dir, pool: opts.PoolID, log: opts.logger().With("spindle", number),
		writing: make(chan struct{}, writersMax), reading: make(chan struct{}, readersMax),
		pending: map[name]*pending{}, state: datanode.SpindleOK, aio: vfsx.NewAIO(),
	}
	if is, known := opts.Identities[number]; known {
		sp.is = &is
	}
	err := sp.readSuper()
	if err == nil {
		err = sp.load()
	}
	if errors.Is(err, ErrVersion) {
		sp.close()
		return nil, fmt.Errorf("open spindle %d (%s): %w", number, dir, err)
	}
	if err != nil {
		sp.fault(err)
	}
	return sp, nil
}

// errAbsent: not there, or another one in its place.
var errAbsent = errors.New("absent")

func (sp *spindle) readSuper() error {
	s, info, err := sp.peek()
	if err != nil {
		return err
	}
	sp.super, sp.info = *s, info
	return nil
}

// peek reads the superblock by its path.
func (sp *spindle) peek() (*super, vfs.FileInfo, error) {
	path := sp.fs.PathJoin(sp.dir, superName)
	f, err := sp.fs.Open(path)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return nil, nil, fmt.Errorf("%w: no superblock at %s%s", errAbsent, path, sp.hint())
	case err != nil:
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b := make([]byte, headBytes)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, nil, fmt.Errorf("read superblock: %w", err)
	}
	s, err := decodeSuper(b)
	switch {
	case err != nil:
		return nil, nil, err
	case s.pool != sp.pool:
		return nil, nil, fmt.Errorf("%w: %s is of another pool (%x)", errAbsent, path, s.pool)
	case s.spindle != sp.number:
		return nil, nil, fmt.Errorf("%w: %s is spindle %d", errAbsent, path, s.spindle)
	case sp.is != nil && s.identity != *sp.is:
		return nil, nil, fmt.Errorf("%w: %s is not the drive that is this spindle now (%012x): it is %012x, which was replaced",
			errAbsent, path, *sp.is, s.identity)
	}
	return s, info, nil
}

// hint says what to do with a directory that is empty.
func (sp *spindle) hint() string {
	names, err := sp.fs.List(sp.dir)
	if err != nil || slices.ContainsFunc(names, func(n string) bool { return n != "lost+found" }) {
		return ""
	}
	return fmt.Sprintf(", %s is empty: a new drive takes the old one's place by plinth spindle replace %d", sp.dir, sp.number)
}

// load opens the slabs and builds the catalog from their tables.
func (sp *spindle) load() error {
	names, err := sp.fs.List(sp.dir)
	if err != nil {
		return err
	}
	// A process that died while it made a slab has left its name without a sync.
	if err := vfsx.SyncDir(sp.fs, sp.dir); err != nil {
		return err
	}
	sp.slabs = make([]*slab, sp.super.sizeBytes/sp.super.slabBytes)
	var rows []located
	for _, n := range names {
		number, ok := parseSlabName(n)
		if !ok {
			continue
		}
		if int(number) >= len(sp.slabs) {
			return fmt.Errorf("%s is beyond the spindle's size", n)
		}
		s, found, err := sp.openSlab(number)
		if err != nil {
			return err
		}
		sp.slabs[number] = s
		rows = append(rows, found...)
	}
	sp.freeBlocks = sp.capacityBlocks()
	if err := sp.drop(sp.assemble(rows)); err != nil {
		return err
	}
	for _, s := range sp.slabs {
		if s != nil {
			sp.newest = s
		}
	}
	for _, s := range sp.slabs {
		if s == nil || s == sp.newest {
			continue
		}
		for _, e := range s.free.list {
			if err := s.punch(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseSlabName(n string) (uint32, bool) {
	var number uint32
	if !strings.HasPrefix(n, "slab-") {
		return 0, false
	}
	if _, err := fmt.Sscanf(n, "slab-%d", &number); err != nil || slabName(number) != n {
		return 0, false
	}
	return number, true
}

// assemble takes fragments whose parts are all there into the catalog and
// returns the rows of the others: what a crash left of a write, a replacement
// or a removal. Of two of one name, or of one place, the newer one is right.
func (sp *spindle) assemble(rows []located) (losers []located) {
	slices.SortFunc(rows, func(a, b located) int {
		return cmp.Or(cmp.Compare(b.serial, a.serial), a.name.compare(b.name), cmp.Compare(a.part, b.part))
	})
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].serial == rows[0].serial && rows[n].name == rows[0].name {
			n++
		}
		group := rows[:n]
		rows = rows[n:]
		sp.serial = max(sp.serial, group[0].serial)
		if !sp.adopt(group) {
			losers = append(losers, group...)
		}
	}
	return losers
}

func (sp *spindle) adopt(group []located) bool {
	first := group[0]
	f := &fragment{segment: first.segment, index: first.index, bytes: first.bytes, serial: first.serial}
	sum := uint64(0)
	for i, r := range group {
		if int(r.part) != i || int(r.parts) != len(group) || r.bytes != f.bytes {
			return false
		}
		sum += uint64(r.n)
		f.parts = append(f.parts, part{r.slab, r.slot, r.extent})
	}
	if sum != uint64(f.blocks()) || sp.catalog.get(f.name()) != nil {
		return false
	}
	for i, p := range f.parts {
		if !p.slab.free.claim(p.extent) {
			sp.log.Error("fragments share blocks: the older one is dropped", "segment", f.segment, "index", f.index)
			for _, q := range f.parts[:i] {
				q.slab.free.put(q.extent)
			}
			return false
		}
	}
	for _, p := range f.parts {
		p.slab.slots.mark(p.slot)
	}
	sp.freeBlocks -= int64(f.blocks())
	sp.catalog.put(f)
	return true
}

// drop clears rows durably.
func (sp *spindle) drop(rows []located) error {
	touched := map[*slab]bool{}
	for _, r := range rows {
		if err := r.slab.clearEntry(r.slot); err != nil {
			return err
		}
		touched[r.slab] = true
	}
	for s := range touched {
		if err := s.sync(); err != nil {
			return err
		}
	}
	return nil
}

func (sp *spindle) capacityBlocks() int64 {
	if sp.super.slabBytes == 0 {
		return 0
	}
	return sp.super.sizeBytes / sp.super.slabBytes * int64(slabGeometry(sp.super.slabBytes).data().n)
}

// fault takes the spindle out of service for an error of its file system, and
// returns the error to hand on. Only Open brings it back: what is in memory may
// no longer be what is there.
func (sp *spindle) fault(err error) *datanode.Error {
	state := datanode.SpindleFailed
	if errors.Is(err, errAbsent) {
		state = datanode.SpindleAbsent
	} else if sp.info != nil {
		if gone := sp.present(); errors.Is(gone, errAbsent) {
			state, err = datanode.SpindleAbsent, gone
		}
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.state == datanode.SpindleOK {
		sp.state, sp.reason = state, err.Error()
		sp.log.Error("spindle is out of service", "path", sp.dir, "state", state, "reason", err)
	}
	return sp.unavailable()
}

// unavailable returns nil if the spindle serves. Callers hold mu.
func (sp *spindle) unavailable() *datanode.Error {
	if sp.state == datanode.SpindleOK {
		return nil
	}
	return datanode.Errorf(datanode.ErrSpindle, "spindle %d (%s) is %s: %s", sp.number, sp.dir, sp.state, sp.reason)
}

// present tests that the superblock's file is still the one that was opened.
// Descriptors of a removed directory go on working, its fragments are lost.
func (sp *spindle) present() error {
	path := sp.fs.PathJoin(sp.dir, superName)
	info, err := sp.fs.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %s is gone", errAbsent, path)
	case err != nil:
		return err
	case !vfsx.SameFile(info, sp.info):
		return fmt.Errorf("%w: %s is another file", errAbsent, path)
	}
	return nil
}

// probe is the health test of one spindle.
func (sp *spindle) probe() {
	if sp.enter() != nil {
		return
	}
	defer sp.leave()
	err := sp.present()
	if err == nil {
		_, _, err = sp.peek()
	}
	if err == nil {
		err = sp.slabsPresent()
	}
	if err != nil {
		sp.fault(err)
	}
}

func (sp *spindle) slabsPresent() error {
	sp.mu.Lock()
	slabs := slices.Clone(sp.slabs)
	sp.mu.Unlock()
	names, err := sp.fs.List(sp.dir)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, n := range names {
		there[n] = true
	}
	for n, s := range slabs {
		if s != nil && !there[slabName(uint32(n))] {
			return fmt.Errorf("%s is gone", s.path)
		}
	}
	return nil
}

// enter begins a call that uses the spindle's files, which leave ends.
func (sp *spindle) enter() *datanode.Error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err := sp.unavailable(); err != nil {
		return err
	}
	sp.calls.Add(1)
	return nil
}

func (sp *spindle) leave() { sp.calls.Done() }

func (sp *spindle) serving() *datanode.Error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.unavailable()
}

func (sp *spindle) status() datanode.SpindleStatus {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return datanode.SpindleStatus{
		Spindle: sp.number, Path: sp.dir, State: sp.state, Reason: sp.reason,
		CapacityBytes:  sp.capacityBlocks() * blockBytes,
		AllocatedBytes: sp.catalog.blocks * blockBytes,
		Fragments:      sp.catalog.count,
	}
}

// close closes the files. It may be repeated.
func (sp *spindle) close() error {
	sp.mu.Lock()
	slabs := sp.slabs
	sp.slabs = nil
	sp.mu.Unlock()
	var errs []error
	for _, s := range slabs {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	sp.aio.Close()
	return errors.Join(errs...)
}

// holds reports whether the spindle serves and has, or is about to have,
// fragments of the segment.
func (sp *spindle) holds(s id.Segment) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.unavailable() != nil {
		return false
	}
	for n := range sp.pending {
		if n.segment == s {
			return true
		}
	}
	return len(sp.catalog.of(s)) > 0
}
