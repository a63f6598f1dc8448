package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/index/kv"
	"plinth/internal/id"
)

// The kinds of rows: a key's first byte.
const (
	keySuper    = 'A' // superblock: an envelope without body
	keyRevision = 'B' // u8 version ‖ u64 revision of the last transaction
	keyEntry    = 'K' // ‖ key → u8 version ‖ u64 revision [‖ u64 lease, version 2] ‖ value
	keyLease    = 'L' // ‖ u64 lease → u8 version ‖ u64 TTL in ns
)

const (
	version       = 1
	rowVersion    = 1
	leasedVersion = 2 // of the row of an entry under a lease
	entryRowBytes = 9 // without lease and value
	cacheBytes    = 16 << 20
)

var magic = kv.Magic([]byte("PLNTREGY"))

var le = binary.LittleEndian

// Options of Open. The zero value opens a registry that exists, alone.
type Options struct {
	// Create makes an empty registry where there is none: right for a new pool
	// only.
	Create bool
	// CheckEpoch returns ErrFenced when the epoch is below the disk's newest. It
	// does not call the registry. Without it, transactions with guards fail.
	CheckEpoch func(id.Disk, id.Epoch) error
	// Copies stores a dump elsewhere, durably. It is called before each commit
	// returns, and by Open, once at a time; it does not call the registry and does
	// not keep the dump. May be nil.
	Copies func(dump []byte, revision uint64) error
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Pebble implements datanode.RegistryNode.
type Pebble struct {
	store *kv.Store
	opts  Options

	// mu is held shared by reads and exclusively by commits, copies included: a
	// read never gives what could still be lost with this store.
	mu        sync.RWMutex
	revision  uint64
	dumpBytes int // of a dump's entries
	leases    map[datanode.LeaseID]*lease
	recent    recent

	queueMu sync.Mutex
	queue   []*commit // whose callers wait for mu

	clock   func() time.Duration // monotonic
	nextEnd atomic.Int64         // of a lease, by clock; 0: there is none
	closing chan struct{}        // closed by Close; ends watches
	closed  sync.Once
}

var _ datanode.RegistryNode = (*Pebble)(nil)

// Open opens the registry in dir and copies it: where that fails it warns and
// goes on, as nothing is lost. Errors: kv.ErrAbsent, kv.ErrForeign, kv.ErrNewer,
// those of the file system.
func Open(fs vfs.FS, dir string, opts Options) (*Pebble, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p, err := open(fs, dir, opts)
	if err != nil {
		return nil, err
	}
	if err := p.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open registry in %s: %w", dir, err), p.store.Close())
	}
	if err := p.copyOut(); err != nil {
		opts.Logger.Warn("cannot copy the registry", "revision", p.revision, "error", err)
	}
	return p, nil
}

func open(fs vfs.FS, dir string, opts Options) (*Pebble, error) {
	store, err := kv.OpenStore(fs, dir, kv.Options{Name: "registry", Create: opts.Create, CacheBytes: cacheBytes, Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	start := time.Now()
	return &Pebble{
		store: store, opts: opts, dumpBytes: emptyDumpBytes,
		leases:  make(map[datanode.LeaseID]*lease),
		recent:  recent{changed: make(chan struct{})},
		clock:   func() time.Duration { return time.Since(start) },
		closing: make(chan struct{}),
	}, nil
}

// load reads all of the registry once, or makes a new one.
func (p *Pebble) load() error {
	found, err := p.store.View([]byte{keySuper}, func(v []byte) error {
		body, err := kv.Open(magic, version, v)
		if err == nil && len(body) != 0 {
			err = kv.ErrForeign
		}
		return err
	})
	if err != nil {
		return err
	}
	entries, err := p.entries(entryKey(""), kv.Above(entryKey("")), 0)
	if err != nil {
		return err
	}
	if !found {
		if !p.opts.Create || len(entries) > 0 {
			return fmt.Errorf("%w: no superblock", kv.ErrForeign)
		}
		return p.fill(&Dump{})
	}
	if err := p.loadLeases(); err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		p.dumpBytes += dumpEntryBytes(e.Key, e.Value)
		if e.Lease == 0 {
			continue
		}
		if p.leases[e.Lease] == nil {
			return corrupt("an entry under no lease")
		}
		p.leases[e.Lease].keys[e.Key] = true
	}
	found, err = p.store.View([]byte{keyRevision}, func(v []byte) error {
		if len(v) != 9 || v[0] != rowVersion {
			return corrupt("revision")
		}
		p.revision = le.Uint64(v[1:])
		return nil
	})
	if err == nil && !found {
		err = corrupt("no revision")
	}
	p.recent.forgotten = p.revision
	return err
}

// fill writes superblock, revision, leases and entries in one step, durably.
func (p *Pebble) fill(d *Dump) error {
	b := p.store.DB.NewBatch()
	set(b, []byte{keySuper}, kv.Seal(magic, version, nil))
	set(b, []byte{keyRevision}, revisionRow(d.Revision))
	for _, l := range d.Leases {
		set(b, leaseKey(l.ID), leaseRow(l.TTL))
	}
	for i := range d.Entries {
		e := &d.Entries[i]
		set(b, entryKey(e.Key), entryRow(e.Value, e.Revision, e.Lease))
	}
	if err := p.store.Commit(b); err != nil {
		return err
	}
	return p.store.Sync()
}

// Close ends watches, waits for calls and closes the registry. It may be repeated.
func (p *Pebble) Close() error {
	p.closed.Do(func() { close(p.closing) })
	return p.store.Close()
}

// Dump returns the whole registry as bytes that Restore takes, and its revision.
func (p *Pebble) Dump() ([]byte, uint64, error) {
	var dump []byte
	var revision uint64
	err := p.reading(func() (err error) {
		revision = p.revision
		dump, err = p.dump()
		return err
	})
	return dump, revision, err
}

func (p *Pebble) dump() ([]byte, error) {
	entries, err := p.entries(entryKey(""), kv.Above(entryKey("")), 0)
	if err != nil {
		return nil, err
	}
	d := Dump{Revision: p.revision, Entries: entries}
	for number, l := range p.leases {
		d.Leases = append(d.Leases, Lease{number, l.ttl})
	}
	return d.Encode(), nil
}

// copyOut gives Copies the whole registry.
func (p *Pebble) copyOut() error {
	if p.opts.Copies == nil {
		return nil
	}
	dump, err := p.dump()
	if err != nil {
		return err
	}
	return p.opts.Copies(dump, p.revision)
}

// Restore makes a registry in dir from a dump, whatever is there now. All of it
// has a new revision, above all that were given out before, also after the dump was
// made (see RestoreGap), and its leases last their TTL from the next Open.
// Nothing is touched before the dump has proven whole. Errors: kv.ErrForeign,
// kv.ErrNewer, those of the file system.
func Restore(fs vfs.FS, dir string, dump []byte) error {
	d, err := ParseDump(dump)
	if err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	d.Revision += RestoreGap
	for i := range d.Entries {
		d.Entries[i].Revision = d.Revision
	}
	if err := kv.Remove(fs, dir); err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	p, err := open(fs, dir, Options{Create: true})
	if err != nil {
		return err
	}
	if err := errors.Join(p.fill(d), p.store.Close()); err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	return nil
}

func entryKey(key string) []byte { return append([]byte{keyEntry}, key...) }

func entryRow(value []byte, revision uint64, lease datanode.LeaseID) []byte {
	b := append(make([]byte, 0, entryRowBytes+8+len(value)), rowVersion)
	b = le.AppendUint64(b, revision)
	if lease != 0 {
		b[0] = leasedVersion
		b = le.AppendUint64(b, uint64(lease))
	}
	return append(b, value...)
}

func revisionRow(revision uint64) []byte { return le.AppendUint64([]byte{rowVersion}, revision) }

// decodeEntry fills in what an entry's row says. The value is a copy.
func decodeEntry(b []byte, e *datanode.RegistryEntry) error {
	if len(b) < entryRowBytes || b[0] != rowVersion && b[0] != leasedVersion {
		return corrupt("entry")
	}
	e.Revision = le.Uint64(b[1:])
	value := b[entryRowBytes:]
	if b[0] == leasedVersion {
		if len(value) < 8 {
			return corrupt("entry under a lease")
		}
		e.Lease, value = datanode.LeaseID(le.Uint64(value)), value[8:]
	}
	if len(value) > datanode.RegistryValueBytesMax {
		return corrupt("entry's length")
	}
	e.Value = append([]byte{}, value...)
	return nil
}

// entries returns up to max entries of a span, all for 0.
func (p *Pebble) entries(lower, upper []byte, max int) ([]datanode.RegistryEntry, error) {
	it, err := p.store.DB.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, p.store.Wrap(err)
	}
	var out []datanode.RegistryEntry
	for ok := it.First(); ok && (max == 0 || len(out) < max); ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			break // the iterator has it too
		}
		e := datanode.RegistryEntry{Key: string(it.Key()[1:])}
		if err := decodeEntry(v, &e); err != nil {
			it.Close()
			return nil, err
		}
		out = append(out, e)
	}
	return out, p.store.Wrap(it.Close())
}

// entry returns one entry and whether it is there.
func (p *Pebble) entry(key string) (e datanode.RegistryEntry, found bool, err error) {
	e.Key = key
	found, err = p.store.View(entryKey(key), func(v []byte) error { return decodeEntry(v, &e) })
	return e, found, err
}

func corrupt(what string) error {
	return datanode.Errorf(datanode.ErrCorrupt, "registry: %s", what)
}

// set changes a batch that is not indexed and not closed, which cannot fail.
func set(b *pebble.Batch, key, value []byte) {
	if err := b.Set(key, value, nil); err != nil {
		panic(err)
	}
}

// unset is set's likeness.
func unset(b *pebble.Batch, key []byte) {
	if err := b.Delete(key, nil); err != nil {
		panic(err)
	}
}
