package disk

import (
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"slices"

	"plinth/internal/id"
)

// A warm list names regions of a disk that were being read when its checkpoint was
// made, so that who opens it next, on this host or another, can read them before
// they are asked for. It is a hint: one that is missing or makes no sense is none.
const (
	warmVersion = 1
	// warmRegionBytes is the unit: large enough to be read in one go.
	warmRegionBytes = 1 << 20
	// warmRegionsMax bounds the list to 4 GiB of the disk and some 16 KiB of the
	// registry. The regions of which most is known are taken.
	warmRegionsMax = 4096
	// warmShare: of a region's chunks one in so many must have been read lately, or
	// the rest costs more than it saves.
	warmShare = 4
	// warmFull: warming up ends when one in so many bytes of RAM is taken, since
	// what clients have read meanwhile is hotter.
	warmFull = 2
)

// warmList returns the disk's present list, nil if nothing is hot.
func (d *Disk) warmList() []byte {
	chunks := map[uint64]int{}
	shift := warmRegionBytes / uint64(d.size)
	d.memo.Each(func(lba id.LBA) { chunks[uint64(lba)/shift]++ })
	maps.DeleteFunc(chunks, func(_ uint64, n int) bool { return uint64(n)*warmShare < shift })
	regions := slices.SortedFunc(maps.Keys(chunks), func(a, b uint64) int {
		return cmp.Or(cmp.Compare(chunks[b], chunks[a]), cmp.Compare(a, b))
	})
	return marshalWarm(regions[:min(len(regions), warmRegionsMax)])
}

// marshalWarm encodes regions: the version, and then, in order, how far each is
// behind the one before, less 1 but for the first.
func marshalWarm(regions []uint64) []byte {
	if len(regions) == 0 {
		return nil
	}
	slices.Sort(regions)
	b := []byte{warmVersion}
	next := uint64(0)
	for _, r := range regions {
		b = binary.AppendUvarint(b, r-next)
		next = r + 1
	}
	return b
}

// unmarshalWarm decodes a list; nil for one that this program does not understand.
func unmarshalWarm(b []byte) []uint64 {
	if len(b) == 0 || b[0] != warmVersion {
		return nil
	}
	var regions []uint64
	next := uint64(0)
	for b = b[1:]; len(b) > 0; {
		skip, n := binary.Uvarint(b)
		if n <= 0 || len(regions) == warmRegionsMax || next+skip < next || next+skip == 1<<64-1 {
			return nil
		}
		regions = append(regions, next+skip)
		next, b = next+skip+1, b[n:]
	}
	return regions
}

// WarmUp reads what was hot when the disk's newest checkpoint was made, as of Open,
// into RAM and flash, until ctx ends, RAM has enough, or something fails: reads that
// are waited for will tell. pause is called before so many bytes are read.
func (d *Disk) WarmUp(ctx context.Context, pause func(ctx context.Context, bytes int64) error) error {
	if len(d.warm) == 0 {
		return nil
	}
	p := make([]byte, warmRegionBytes)
	for _, region := range d.warm {
		if s := d.pool.RAM.Stats(); s.Bytes >= s.BytesMax/warmFull {
			return nil
		}
		if err := pause(ctx, warmRegionBytes); err != nil {
			return err
		}
		if size := uint64(d.Size()); region < size/warmRegionBytes {
			if err := d.ReadAt(ctx, p, int64(region)*warmRegionBytes); err != nil {
				return err
			}
		}
	}
	return nil
}
