package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

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
	keyEntry    = 'K' // ‖ key → u8 version ‖ u64 revision ‖ value
)

const (
	version       = 1
	rowVersion    = 1
	entryRowBytes = 9 // without value
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
	dumpBytes int // of a dump
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
	return &Pebble{store: store, opts: opts, dumpBytes: emptyDumpBytes}, nil
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
		return p.fill(0, nil)
	}
	for i := range entries {
		p.dumpBytes += dumpEntryBytes(entries[i].Key, entries[i].Value)
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
	return err
}

// fill writes superblock, revision and entries in one step, durably.
func (p *Pebble) fill(revision uint64, entries []datanode.RegistryEntry) error {
	b := p.store.DB.NewBatch()
	set(b, []byte{keySuper}, kv.Seal(magic, version, nil))
	set(b, []byte{keyRevision}, revisionRow(revision))
	for i := range entries {
		e := &entries[i]
		set(b, entryKey(e.Key), entryRow(e.Value, e.Revision))
	}
	if err := p.store.Commit(b); err != nil {
		return err
	}
	return p.store.Sync()
}

// Close waits for calls and closes the registry.
func (p *Pebble) Close() error { return p.store.Close() }

// Dump returns the whole registry as bytes that Restore takes, and its revision.
func (p *Pebble) Dump() ([]byte, uint64, error) {
	if err := p.store.Enter(); err != nil {
		return nil, 0, err
	}
	defer p.store.Leave()
	p.mu.RLock()
	defer p.mu.RUnlock()
	dump, err := p.dump()
	return dump, p.revision, err
}

func (p *Pebble) dump() ([]byte, error) {
	entries, err := p.entries(entryKey(""), kv.Above(entryKey("")), 0)
	if err != nil {
		return nil, err
	}
	return encodeDump(p.revision, entries), nil
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

// Restore makes a registry in dir from a dump, whatever is there now. Nothing is
// touched before the dump has proven whole. Errors: kv.ErrForeign, kv.ErrNewer,
// those of the file system.
func Restore(fs vfs.FS, dir string, dump []byte) error {
	revision, entries, err := ParseDump(dump)
	if err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	if err := kv.Remove(fs, dir); err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	p, err := open(fs, dir, Options{Create: true})
	if err != nil {
		return err
	}
	if err := errors.Join(p.fill(revision, entries), p.store.Close()); err != nil {
		return fmt.Errorf("restore registry in %s: %w", dir, err)
	}
	return nil
}

func entryKey(key string) []byte { return append([]byte{keyEntry}, key...) }

func entryRow(value []byte, revision uint64) []byte {
	b := append(make([]byte, 0, entryRowBytes+len(value)), rowVersion)
	return append(le.AppendUint64(b, revision), value...)
}

func revisionRow(revision uint64) []byte { return le.AppendUint64([]byte{rowVersion}, revision) }

// decodeEntry returns a value and its revision. The value is a copy.
func decodeEntry(b []byte) ([]byte, uint64, error) {
	if len(b) < entryRowBytes || len(b) > entryRowBytes+datanode.RegistryValueBytesMax || b[0] != rowVersion {
		return nil, 0, corrupt("entry")
	}
	return append([]byte{}, b[entryRowBytes:]...), le.Uint64(b[1:]), nil
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
		value, revision, err := decodeEntry(v)
		if err != nil {
			it.Close()
			return nil, err
		}
		out = append(out, datanode.RegistryEntry{Key: string(it.Key()[1:]), Value: value, Revision: revision})
	}
	return out, p.store.Wrap(it.Close())
}

// entry returns one entry and whether it is there.
func (p *Pebble) entry(key string) (e datanode.RegistryEntry, found bool, err error) {
	e.Key = key
	found, err = p.store.View(entryKey(key), func(v []byte) (err error) {
		e.Value, e.Revision, err = decodeEntry(v)
		return err
	})
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
