package flashcache

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

const (
	// SealedBytesMax is the longest sealed chunk that is kept: what the 13 bits of
	// a length in the index hold, as in id.Location.
	SealedBytesMax = (1<<unitsBits - 1) * id.Unit
	// Slack is the room that Get needs behind a sealed chunk for what it checks.
	Slack = fingerprintBytes

	// SizeMax is what the 40 bits of a place in the index address.
	SizeMax = 1 << (placeBits + 4)

	// regionBytesMax makes one write large enough for any drive and keeps buffers
	// at 32 MiB; regionBytesMin bounds the syncs of a small cache and lets a burst of
	// 4 MiB into its buffers.
	regionBytesMax = 8 << 20
	regionBytesMin = 1 << 20
	// regionsMin is the least with which a hot region's neighbours are not
	// evicted for it: buffers, free regions and two queues.
	regionsMin = 32
	// regionsWanted decides the size of regions: an eviction takes at most a
	// 128th of the cache.
	regionsWanted = 128
)

// Options of a Cache. The zero value is right for a raw device; a file needs a
// size.
type Options struct {
	// FS is where the file lies. Default: the operating system's.
	FS vfs.FS
	// Size is what the cache takes, in bytes. Default, and maximum: a raw device's
	// own size, or that of a cache file which exists. Another size than the file
	// was made with empties it.
	Size int64
	// RegionBytes is the unit of writing and eviction, a multiple of 4 KiB. Default:
	// a 128th of Size, as a power of two from 1 to 8 MiB. Four regions are
	// buffered in RAM.
	RegionBytes int
	// Pool and Domain say whose chunks these are. A file of another pool or dedupe
	// domain is emptied.
	Pool, Domain [16]byte
	// Logger is told when the cache is emptied or turned off. Default:
	// slog.Default().
	Logger *slog.Logger
}

// ErrInvalid is returned by Open for options or a size that cannot work; the
// operator corrects them.
var ErrInvalid = errors.New("flashcache: invalid")

// ErrForeign is returned by Open for a file or device that holds something else
// than a cache: it is not touched.
var ErrForeign = errors.New("flashcache: it holds something else: name another, or blank its first MiB")

// ErrVersion is returned by Open for a cache of a newer format, which is not
// touched either.
var ErrVersion = errors.New("flashcache: format is not known to this version")

// ErrInUse is returned by Open where another process has the cache open, or the
// device is mounted.
var ErrInUse = errors.New("flashcache: in use")

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// geometry says where regions lie: region i at dataStart + i × regionBytes.
type geometry struct {
	bytes       int64 // of all
	regionBytes int
}

// newGeometry lays size bytes out.
func newGeometry(size int64, regionBytes int) (geometry, error) {
	if regionBytes == 0 {
		for regionBytes = regionBytesMax; regionBytes > regionBytesMin && int64(regionBytes)*regionsWanted > size; {
			regionBytes /= 2
		}
	}
	g := geometry{size, regionBytes}
	return g, g.validate()
}

func (g geometry) validate() error {
	switch {
	case g.regionBytes < pageBytes || g.regionBytes > 1<<30 || g.regionBytes%pageBytes != 0:
		return fmt.Errorf("%w: regions of %d bytes", ErrInvalid, g.regionBytes)
	case g.bytes > SizeMax:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrInvalid, g.bytes, int64(SizeMax))
	case g.bytes < dataStart || g.regions() < regionsMin:
		return fmt.Errorf("%w: %d bytes, at least %d", ErrInvalid, g.bytes, dataStart+int64(regionsMin)*int64(g.regionBytes))
	}
	return nil
}

func (g geometry) regions() int { return int((g.bytes - dataStart) / int64(g.regionBytes)) }

// offset returns where a region begins.
func (g geometry) offset(region int) int64 { return dataStart + int64(region)*int64(g.regionBytes) }

// region returns where a place lies.
func (g geometry) region(p place) int { return int((p.offset() - dataStart) / int64(g.regionBytes)) }
