package spindle

import (
	"fmt"
	"log/slog"
	"math/bits"

	"plinth/datanode"
	"plinth/internal/id"
)

// Options of a Set. Sizes count at Create only: a spindle remembers its own.
type Options struct {
	// PoolID is the pool that the spindles belong to.
	PoolID [16]byte
	// SizeBytes of each spindle, tables included; 0 means SizeBytesDefault, and
	// that Create does not ask whether the file system has as much.
	SizeBytes int64
	// SlabBytes is what is preallocated at a time. 0 means a quarter of
	// SizeBytes, at most 64 MiB, but for more than 64 GiB a 1024th.
	SlabBytes int64
	// Width is the least number of fragments (k+m) that the pool's stripes
	// have: what a host reserves lands on at least so many spindles. 0 means
	// the number of spindles.
	Width int
	// Identities are those that are known of the spindles. Open takes no other drive
	// for one of these; of others it takes what is there.
	Identities map[id.Spindle]uint64
	// Logger gets what operators should know; nil means nobody does.
	Logger *slog.Logger
}

const (
	// SizeBytesDefault is the size of a spindle that nobody chose.
	SizeBytesDefault = 64 << 30
	// SizeBytesMax bounds a spindle.
	SizeBytesMax = 1 << 50
	// SlabBytesMin and SlabBytesMax bound a slab.
	SlabBytesMin = 64 << 10
	SlabBytesMax = 1 << 40

	slabBytesDefault = 64 << 20
	// slabsMax bounds a spindle's open files.
	slabsMax = 1024
	// SpindlesMax bounds a Set.
	SpindlesMax = 1024
)

func (o *Options) sizes() (size, slab int64) {
	size, slab = o.SizeBytes, o.SlabBytes
	if size == 0 {
		size = SizeBytesDefault
	}
	if slab == 0 {
		// A power of two, so that slabs fill the spindle.
		quarter := int64(1) << (bits.Len64(uint64(max(size, 4))) - 3)
		slab = min(slabBytesDefault, max(SlabBytesMin, quarter))
		for size/slab > slabsMax {
			slab *= 2
		}
	}
	return size, slab
}

// Validate returns an error that says which option cannot be.
func (o *Options) Validate() error {
	if o.Width < 0 || o.Width > datanode.WidthMax {
		return fmt.Errorf("stripes of %d fragments: at most %d", o.Width, datanode.WidthMax)
	}
	return checkSizes(o.sizes())
}

func checkSizes(size, slab int64) error {
	switch {
	case slab < SlabBytesMin || slab > SlabBytesMax || slab%blockBytes != 0:
		return fmt.Errorf("slabs of %d bytes: not a multiple of %d from %d to %d", slab, blockBytes, SlabBytesMin, int64(SlabBytesMax))
	case size < slab || size > SizeBytesMax || size/slab > slabsMax:
		return fmt.Errorf("a spindle of %d bytes is not 1 to %d slabs of %d bytes", size, slabsMax, slab)
	}
	return nil
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}
