package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/flashcache"
	"plinth/internal/chunk"
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/internal/keyring"
	"plinth/internal/longlock"
	"plinth/internal/object"
	"plinth/internal/owner"
	"plinth/internal/ramcache"
	"plinth/internal/stripe"
)

// Host is a running agent. [Open] makes one.
type Host struct {
	node    datanode.Node
	opts    Options
	log     *slog.Logger
	catalog catalog
	keys    *keyring.Pool
	pool    *disk.Pool
	owning  *owning
	cache   *blockmap.Cache
	// flash is nil without a flash cache; flashErr says why there is none that was
	// asked for.
	flash    *flashcache.Cache
	flashErr error
	lending  *lending
	ram      *ramcache.Cache

	// budget is the process's CPU time; destages and sweeps are the background's
	// parts in it.
	budget           *gate.Budget
	destages, sweeps *gate.Flow

	began  time.Time
	life   context.Context // ends at Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	nudge  chan struct{} // destage soon
	sweep  chan struct{} // pass and reclaim soon
	colder chan struct{} // a disk has come
	// suspects are segments of which a read missed a fragment, to be repaired.
	suspects chan id.Segment

	// changing has room for one: who changes the catalog (beginChange).
	changing chan struct{}
	// snapIDs hands out numbers of snapshots; it belongs to who changes.
	snapIDs counter
	groups  *groups
	// recordMu serialises changes of disks' records and of clones and leftover.
	// It is held over calls of the registry, and never while somebody waits for a
	// round or a pass.
	recordMu longlock.Mutex
	// renameMu is held for reading where all rows of snapshots are listed, and for
	// writing where a row moves: or else a list could miss it at both places.
	renameMu longlock.RWMutex

	// reliefMu guards relief: one at a time serves all who came before it.
	reliefMu  longlock.Mutex
	relieved  time.Time    // when the last one began
	reliefErr error        // of it
	reliefFor atomic.Int64 // since when the one under way is waited for, Unix ns; 0: none is

	scrub   scrub
	rebuild rebuilding

	// learnt is the version of the layouts that this host has learnt; changed says that
	// there may be a newer one, changeWaits for whom a change waits.
	learnt      atomic.Uint64
	changed     chan struct{}
	changeWaits atomic.Pointer[string]
	// rehomed counts the bytes that were moved from data nodes that are drained.
	rehomed atomic.Int64
	// drainNext is when to look for what is to be moved, Unix ns.
	drainNext atomic.Int64
	// draining are the spindles that are to be emptied, drainLeft what is left there.
	draining  atomic.Pointer[drainingRow]
	drainLeft atomic.Pointer[drainLeft]

	// sweeping has room for one: who changes or verifies what is reclaimed.
	sweeping chan struct{}
	// cleaner is the state of reclaim.
	cleaner cleaner
	// wardenOf is since when this host is the warden.
	wardenOf atomic.Pointer[wardenship]

	mu      sync.Mutex
	byName  map[string]*export
	byID    map[id.Disk]*export // those being removed too
	closing bool
	cpuMode string // of the budget; empty: a number of cores
	// clones are the disks with a base, those being removed too; leftover are
	// removed disks whose space is not given back. Changed under recordMu too.
	clones   map[id.Disk]*cloneState
	leftover map[id.Disk]*leftover
	// owners is what is known of disks' owners, births are new clones that are not
	// open yet.
	owners map[id.Disk]ownerNote
	// formers are the hosts other than this one that were known last to own a disk.
	formers map[id.Disk]string
	stays   map[id.Disk]presence  // of those that look for a disk, or use it
	free    map[id.Disk]time.Time // disks that no host has, since when
	births  map[id.Disk]*birth
	// taken are the disks that have been opened: Options.Resume says nothing of them any
	// more.
	taken map[id.Disk]bool
	// snapBytes is the size of all snapshots' rows in the registry.
	snapBytes int64
}

// export is a disk of the catalog, open unless err says why not. When that changes
// another one takes its place.
type export struct {
	rec     DiskRecord // as it was when the disk was opened
	claimed id.Epoch   // under which this host has it; 0: it has it not
	term    *term      // of the lease under which it claimed it
	// installed is since when.
	installed time.Time
	// bare are clones of it that an earlier owner left without a checkpoint.
	bare []DiskRecord
	disk *disk.Disk
	door *gate.Door // of its clients and those of its snapshots
	err  error

	// Guarded by Host.mu:
	now       DiskRecord // as the catalog has it
	cold      bool       // it is to be warmed up
	clients   int
	busy      chan struct{} // not nil: clients that come wait until it is closed
	snaps     map[string]*snapshot
	logical   int64  // mapped bytes at the last pass
	stored    stored // what of it the spindles have
	removals  int64  // counts snapshots that were removed
	listed    int64  // removals when existing snapshots were last listed
	forgotten int64  // removals that the last pass knew of

	independent time.Duration // that a clone took to become it
	passedAt    time.Time     // of these figures
	passed      uint64        // incarnation of the index in which it has passed, plus 1
	destages    int64         // when the host last looked
	quietFrom   time.Time     // since when destages has not changed
	sweptAt     int64         // rounds and checkpoints at the last pass
}

// mapCacheFiles bounds the open tables of all maps together; map.md: above the
// number of files, or a get costs five times as much.
const mapCacheFiles = 10000

// suspectsMax bounds the segments that wait for repair. More are found again by
// the next read or verify.
const suspectsMax = 256

// Open starts an agent on a pool. Disks that cannot be opened are served as
// failed; anything else that is wrong is an error: ErrNoPool, keyring.ErrWrongRoot
// and those of the data node.
func Open(ctx context.Context, node datanode.Node, root *keyring.Root, opts Options) (*Host, error) {
	st, err := node.Status(ctx)
	if err != nil {
		return nil, err
	}
	opts = opts.withDefaults(st.Log.CapacityBytes)
	if opts.Dir == "" {
		return nil, fmt.Errorf("%w: the agent needs a directory", ErrInvalid)
	}
	if err := validateHostName(opts.Name); err != nil {
		return nil, err
	}
	if _, several := node.(datanode.Several); several {
		if _, ok := node.(Members); !ok { // or else it would be taken for one node
			return nil, fmt.Errorf("%w: several data nodes that do not say how they change", ErrInvalid)
		}
	}
	cores, err := opts.CPU.Number()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	h := &Host{
		node: node, opts: opts, log: opts.Logger, catalog: catalog{node}, began: time.Now(),
		nudge: make(chan struct{}, 1), sweep: make(chan struct{}, 1), colder: make(chan struct{}, 1),
		changed: make(chan struct{}, 1), sweeping: make(chan struct{}, 1), changing: make(chan struct{}, 1), groups: newGroups(),
		clones: make(map[id.Disk]*cloneState), leftover: make(map[id.Disk]*leftover),
		owners: make(map[id.Disk]ownerNote), formers: make(map[id.Disk]string), stays: make(map[id.Disk]presence), free: make(map[id.Disk]time.Time), births: make(map[id.Disk]*birth), taken: make(map[id.Disk]bool),
		suspects: make(chan id.Segment, suspectsMax), byName: make(map[string]*export), byID: make(map[id.Disk]*export),
	}
	maps.Copy(h.formers, opts.Formers)
	h.rebuild.wake, h.rebuild.crew = make(chan struct{}, 1), newCrew(h)
	h.openBudget(cores)
	h.lending = newLending(h.budget)
	h.life, h.cancel = context.WithCancel(context.Background())
	if err := h.openSession(ctx, root, st); err != nil {
		h.cancel()
		h.closeFlash()
		h.budget.Close()
		if h.owning != nil {
			h.owning.stop()
			err = errors.Join(err, h.owning.giveUp())
		}
		return nil, errors.Join(fmt.Errorf("open the pool: %w", err), h.ram.Close())
	}
	if err := h.openDisks(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if !h.opts.Sole {
		h.watchOthers()
	}
	h.work.Add(7)
	go h.warmLoop()
	go h.destageLoop()
	go h.sweepLoop()
	go h.scrubLoop()
	go h.rebuildLoop()
	go h.probeLoop()
	go h.membersLoop()
	return h, nil
}

// openSession makes what all disks share.
func (h *Host) openSession(ctx context.Context, root *keyring.Root, st *datanode.Status) error {
	var err error
	var layouts *stripe.Layouts
	if h.keys, layouts, err = h.catalog.openPool(ctx, root); err != nil {
		return err
	}
	// Before this host is seen, or becomes the warden.
	if want, has := h.opts.Geometry, layouts.Geometry; want != (stripe.Geometry{}) && want != has {
		return fmt.Errorf("the pool was made with stripes of %s, not %s: a pool does not change them; leave the setting out", has, want)
	}
	if m, ok := h.node.(Members); ok {
		if layouts, err = m.Learn(ctx); err != nil {
			return err
		}
	}
	h.learnt.Store(layouts.Version)
	if h.owning, err = openOwning(ctx, h); err != nil {
		return err
	}
	if err := h.openFlash(); err != nil {
		return err
	}
	g := layouts.Geometry
	stripes, err := stripe.NewStore(h.node, layouts, stripe.Options{Suspect: h.suspected, Closing: h.life.Done()})
	if err != nil {
		return err
	}
	stripes.UpdateHealth(st.Spindles)
	sealer, err := newSealer(ctx, h.life, h.catalog, h.keys)
	if err != nil {
		return err
	}
	hasher := chunk.NewHasher(h.keys.FingerprintKey())
	opener := chunk.NewOpener(keyring.NewRing(h.life, h.keys, h.catalog.loadKey), hasher, chunk.OpenerOptions{})
	seq := &numbers{catalog: h.catalog}
	if h.opts.RAMCacheBytes > 0 {
		if h.ram, err = ramcache.New(h.opts.RAMCacheBytes); err != nil {
			return err
		}
	}
	h.cache = blockmap.NewCache(h.opts.CacheBytes, mapCacheFiles)
	h.pool = &disk.Pool{
		Node: h.node, Stripes: stripes, Sealer: sealer, Opener: opener, Hasher: hasher, RAM: h.ram,
		Logger: h.log, Geometry: g, LogBytes: st.Log.CapacityBytes, Number: seq.take, MayReply: h.opts.MayReply, Pace: h.paceRound,
		Objects: &object.Store{
			Index: h.node, Stripes: stripes, Sealer: sealer, Opener: opener, Geometry: g, Number: seq.take,
		},
		Space: disk.NewSpace(h.node, disk.SpaceOptions{
			Host: h.owning.reservation(h.owning.life), ChargedBytesMax: h.opts.BufferBytesMax, K: g.K, M: g.M,
			Nudge: func() { wake(h.nudge) }, Relieve: h.relieve,
		}),
	}
	if h.flash != nil {
		h.pool.Flash = h.flash
	}
	if err := h.loadDraining(ctx); err != nil {
		return err
	}
	h.avoidDraining(st.Spindles)
	// What changed before others saw this host is seen now, and what changes later they
	// wait for it.
	return h.learn(ctx)
}

// openDisks opens every disk of the catalog that no other host has, and goes on
// with removals.
func (h *Host) openDisks(ctx context.Context) error {
	recs, err := h.catalog.disks(ctx)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if rec.Base != nil {
			h.clones[rec.ID] = &cloneState{base: *rec.Base, revision: rec.revision}
		}
		if rec.Removing {
			if h.opts.Sole { // or else whoever removes it may live
				h.leftover[rec.ID] = &leftover{rec: rec}
			}
			continue
		}
		h.know(rec)
	}
	for _, rec := range recs { // a clone may need that its parent is open
		if rec.Removing {
			continue
		}
		if h.opts.Resume != nil && h.opts.Resume[rec.ID] == nil {
			continue // others come back, too, to what they had
		}
		var e owner.Event = owner.Adopt{Disk: rec.ID}
		if h.opts.Sole { // who has it is cut off, and its lease is about to end
			e = owner.Want{Disk: rec.ID}
		}
		if err := h.owning.acquire(ctx, rec.ID, e); err != nil {
			if ctx.Err() != nil {
				return err
			}
			h.log.Error("disk is not served yet", "disk", rec.Name, "id", rec.ID, "err", err)
		}
	}
	return h.releaseLeftover(ctx)
}

// openDisk opens a disk under an epoch that was claimed under a lease's term.
func (h *Host) openDisk(ctx context.Context, rec DiskRecord, epoch id.Epoch, t *term, b *birth) (*disk.Disk, error) {
	suite, err := chunk.ParseSuite(rec.Cipher)
	if err != nil {
		return nil, err
	}
	var under *disk.Image
	if b != nil {
		under = b.under
	} else {
		if err := h.regrow(ctx, &rec); err != nil {
			return nil, fmt.Errorf("clone %s (%d): %w", rec.Name, rec.ID, err)
		}
	}
	d, err := disk.Open(ctx, h.pool, disk.Config{
		ID: rec.ID, Name: rec.Name, Bytes: rec.Bytes, Chunk: chunk.Size(rec.Chunk), Suite: suite,
		Stable: rec.Stable, AcceptLostLog: h.opts.AcceptLostLog, Epoch: epoch, MACKey: h.keys.MACKey(rec.ID),
		Resume: h.resumeOf(rec.ID), Under: under, Peer: h.former(rec.ID), MayReply: func() error {
			if !t.valid() {
				return ErrNoLease
			}
			return h.opts.MayReply()
		},
		Map: blockmap.Options{
			FS: h.opts.FS, Dir: h.mapDir(rec.ID), Cache: h.cache, Logger: h.log,
		},
	})
	if err == nil {
		h.resumed(d)
	}
	return d, err
}

func (h *Host) mapDir(d id.Disk) string {
	return h.opts.FS.PathJoin(h.opts.Dir, fmt.Sprintf("map-%016x", uint64(d)))
}

// LayoutVersion returns the version of the stripe layouts that the host uses.
func (h *Host) LayoutVersion() uint64 { return h.layouts().Version }

// exports returns all disks in the order of their names.
func (h *Host) exports() []*export {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]*export, 0, len(h.byName))
	for _, e := range h.byName {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *export) int { return cmp.Compare(a.now.Name, b.now.Name) })
	return out
}

// serving returns those that are open and have not failed.
func (h *Host) serving() []*export {
	return slices.DeleteFunc(h.exports(), func(e *export) bool { return e.disk == nil || e.disk.Err() != nil })
}

// disks returns those that are open.
func (h *Host) disks() []*disk.Disk {
	var out []*disk.Disk
	for _, e := range h.exports() {
		if e.disk != nil {
			out = append(out, e.disk)
		}
	}
	return out
}

// Close stops serving: calls under way end, background work stops, disks close.
// What is acknowledged is in the log; Quiesce before makes the next start fast.
func (h *Host) Close() error {
	h.mu.Lock()
	closed := h.closing
	h.closing = true
	h.mu.Unlock()
	if closed {
		return nil
	}
	h.cancel()
	h.budget.Close()
	h.lending.close()
	h.pool.Space.Close()
	h.changing <- struct{}{} // nothing is opened or removed any more, no work begins
	defer h.endChange()
	h.work.Wait()
	h.owning.stop()
	err := errors.Join(h.closeDisks(), h.owning.giveUp())
	h.cache.Close()
	h.closeFlash()
	return errors.Join(err, h.ram.Close())
}

// wake sends a signal that need not be sent twice.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
