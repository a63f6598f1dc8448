package blockmap

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options says where a map lives.
type Options struct {
	// FS and Dir are for files that need not survive. Dir belongs to the map:
	// Create and Attach remove it first, Close removes it last.
	FS  vfs.FS
	Dir string
	// Objects keeps the tables.
	Objects Objects
	// Stale, if not nil, tells objects that lie where they should not stay: the next
	// checkpoint uploads their tables again.
	Stale func(Object) bool
	// Cache is shared by the maps of a host. Nil: the map has a small one of
	// its own.
	Cache *Cache
	// Failed is called once, without locks, when the map can no longer serve
	// because its local files are broken; all methods return ErrFailed from
	// then on. Close waits for it, so it must not close the map. It may be nil.
	Failed func(error)
	// Logger takes what Pebble has to say; nil: nobody.
	Logger *slog.Logger
}

func (o *Options) validate() error {
	if o.FS == nil || o.Dir == "" || o.Objects == nil {
		return fmt.Errorf("%w: options without FS, Dir or Objects", ErrInvalid)
	}
	return nil
}

const (
	// ownCacheBytes and ownCacheFiles are for a map without a shared cache.
	ownCacheBytes = 8 << 20
	ownCacheFiles = 1024
	// cacheShards splits the file cache's locks; more only cost goroutines.
	cacheShards = 4
)

// Cache holds entries, blocks and open files of maps, in memory.
type Cache struct {
	entries *entries
	blocks  *pebble.Cache
	files   *pebble.FileCache
}

// NewCache returns a cache of so many bytes, a quarter of them at most for entries,
// and so many open files, which should exceed the number of tables in use: a look-up
// takes 38 µs instead of 8 when files thrash.
func NewCache(bytes int64, files int) *Cache {
	e := newEntries(bytes / entriesShare)
	return &Cache{
		entries: e,
		blocks:  pebble.NewCache(max(bytes-e.bytes(), 0)),
		files:   pebble.NewFileCache(cacheShards, max(files, cacheShards)),
	}
}

// Close gives the cache up. Maps that use it keep it until they are closed.
func (c *Cache) Close() {
	c.files.Unref()
	c.blocks.Unref()
}

const (
	tableBytes     = 16 << 20 // of a table: an object of two stripes
	memtableBytes  = 4 << 20  // Pebble begins with 256 KiB: an idle disk stays small
	memtablesMax   = 4        // then Apply waits for a flush
	manifestBytes  = 128 << 10
	compactionsMax = 2
	indexBytes     = 1 << 20 // more than that of any table: one block to search, not two
	filterBits     = 10      // for each LBA of a table: one in a hundred is read in vain
)

// pebbleOptions returns the measured options of docs/design/map.md.
func (m *Map) pebbleOptions(c *Cache, attached bool) *pebble.Options {
	o := &pebble.Options{
		FS:                          m.fs,
		Cache:                       c.blocks,
		FileCache:                   c.files,
		Comparer:                    comparer,
		FormatMajorVersion:          pebble.FormatColumnarBlocks,
		DisableWAL:                  true,
		ErrorIfNotExists:            attached,
		NoSyncOnClose:               true,
		DisableTableStats:           attached, // else each table is read at once
		MemTableSize:                memtableBytes,
		MemTableStopWritesThreshold: memtablesMax,
		LBaseMaxBytes:               64 << 20,
		L0CompactionThreshold:       16,
		L0StopWritesThreshold:       1 << 10,
		MaxManifestFileSize:         manifestBytes,
		CompactionConcurrencyRange:  func() (int, int) { return 1, compactionsMax },
		Logger:                      (*pebbleLogger)(m),
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { m.log.Warn("map: background error", "error", err) },
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				m.fail(fmt.Errorf("%w: %s: %w", ErrCorrupt, i.Path, i.Details))
			},
			FlushEnd:      func(i pebble.FlushInfo) { m.flushed(i.Err) },
			CompactionEnd: func(i pebble.CompactionInfo) { m.scheduler.ended(i.Err) },
		},
	}
	o.Experimental.LevelMultiplier = 10
	o.Experimental.ReadSamplingMultiplier = -1
	o.Experimental.CompactionScheduler = m.scheduler
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = tableBytes
		o.Levels[i].BlockSize = 4 << 10
		o.Levels[i].IndexBlockSize = indexBytes
		o.Levels[i].Compression = m.compression
		if i < len(o.Levels)-1 { // the bottom has nearly every LBA
			o.Levels[i].FilterPolicy = bloom.FilterPolicy(filterBits)
		}
	}
	return o
}

// compressedMarks is how many snapshots a map has at most whose new tables are
// compressed.
const compressedMarks = 64

// compression is asked for each table. Blocks of many versions of few LBAs save less
// by it, and take five times as long to decompress.
func (m *Map) compression() *sstable.CompressionProfile {
	if m.marked.Load() > compressedMarks {
		return sstable.NoCompression
	}
	return sstable.SnappyCompression
}

// comparer orders keys by their bytes. The first 8 stand for an LBA, so that
// Pebble can step over the versions of one.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "plinth.map.v1"
	c.Split = func(key []byte) int { return min(prefixBytes, len(key)) }
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	c.Successor = func(dst, a []byte) []byte { return append(dst, a...) }
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		n := len(dst)
		dst = append(dst, prefix...)
		for i := len(dst) - 1; i >= n; i-- {
			dst[i]++
			if dst[i] != 0 {
				return dst
			}
		}
		// The successor of the last prefix: no key of ours is above it.
		return append(append(dst[:n], prefix...), 0)
	}
	return &c
}()

// pebbleLogger is a map as Pebble's logger. What is fatal to Pebble, like a
// manifest that cannot be written, is fatal to this map only.
type pebbleLogger Map

func (l *pebbleLogger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("map: " + l.text(format, args))
	}
}

func (l *pebbleLogger) Errorf(format string, args ...any) { l.log.Warn("map: " + l.text(format, args)) }

func (l *pebbleLogger) Fatalf(format string, args ...any) {
	(*Map)(l).fail(fmt.Errorf("pebble: %s", l.text(format, args)))
}

func (l *pebbleLogger) text(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}
