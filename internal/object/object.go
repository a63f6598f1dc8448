// Package object keeps checkpoint objects, tables and manifests of maps, on the
// spindles.
//
// Nouns: an object is a sequence of bytes, written once and named by its
// [Descriptor], which lies in a manifest or in the registry. Its bytes are
// sealed in units of [UnitBytes] (the last may be shorter), each bound to object
// and number, so that any range is read and verified without the rest, and the
// shelf learns nothing of the map. Sealed units lie in segments of kind object,
// whole units in each fragment.
//
// # Descriptor, version 1
//
// Integers are big-endian.
//
//	 0  u8   version, 1
//	 1  3B   zero
//	 4  24B  object id: disk, epoch (u64 each), a count of that epoch (u64)
//	28  u64  length in bytes
//	36  u32  unit, bytes
//	40  u32  number of segments, n
//	44  12B  n times: segment (u64), bytes of each of its fragments (u32)
//
// # Invariants
//
//  1. An object id is never used twice: the epoch is not.
//  2. An object is published, and its fragments are stable, before Put returns.
//  3. Every segment belongs to the disk that put it: by birth, until a pass of
//     the disk finds that nothing names the object.
//
// A crash leaves segments that nothing names; a pass frees them. Methods may be
// called at once; nothing here starts a goroutine.
//
// Errors: [ErrCorrupt], and those of the data node and of package chunk.
package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"plinth/blockmap"
	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/id"
	"plinth/internal/stripe"
)

// UnitBytes is the plaintext of a unit: about what a small range read costs
// anyway, and 48 sealed bytes of overhead are 0.15 % of it.
const UnitBytes = 32 << 10

// ErrCorrupt is returned for a descriptor or a stored unit that fails its checks and
// could not be reconstructed.
var ErrCorrupt = errors.New("checkpoint object is corrupt")

// Number returns a segment number that was never used.
type Number = func(ctx context.Context) (uint64, error)

// Store is where a host session keeps objects.
type Store struct {
	Index   datanode.IndexNode
	Stripes *stripe.Store
	Sealer  *chunk.Sealer
	Opener  *chunk.Opener
	// Geometry is the stripes'.
	Geometry stripe.Geometry
	Number   Number
}

// Owner puts and reads one disk's objects under an epoch. It implements
// blockmap.Objects.
type Owner struct {
	store *Store
	disk  id.Disk
	epoch id.Epoch
	count atomic.Uint64
}

// Owner returns the objects of a disk under an epoch. One Owner is made for an
// epoch: it counts its objects.
func (s *Store) Owner(disk id.Disk, epoch id.Epoch) *Owner {
	return &Owner{store: s, disk: disk, epoch: epoch}
}

// Put stores size bytes of r as an object, stable at return. The name is for
// messages.
func (o *Owner) Put(ctx context.Context, name string, size int64, r io.Reader) (blockmap.Object, error) {
	d := descriptor{id: objectID(o.disk, o.epoch, o.count.Add(1)), bytes: size}
	if err := o.put(ctx, &d, r); err != nil {
		for _, p := range d.segments {
			o.store.Stripes.Discard(ctx, p.segment)
		}
		return nil, fmt.Errorf("store object %s of disk %d: %w", name, o.disk, err)
	}
	return d.marshal(), nil
}

func (o *Owner) put(ctx context.Context, d *descriptor, r io.Reader) error {
	if d.bytes < 0 || d.bytes > bytesMax {
		return fmt.Errorf("%d bytes are more than an object may have", d.bytes)
	}
	var entries []datanode.SegmentEntry
	unitsMax := stripe.ObjectUnitsMax(o.store.Geometry, chunk.UnitSealedBytes(UnitBytes))
	plain := make([]byte, UnitBytes)
	for first := uint64(0); first < d.units(); {
		n := min(uint64(unitsMax), d.units()-first)
		units := make([][]byte, n)
		for i := range units {
			p := plain[:d.unitLen(first+uint64(i))]
			if _, err := io.ReadFull(r, p); err != nil {
				return err
			}
			var err error
			ad := chunk.UnitAD{Object: d.id, Unit: first + uint64(i)}
			if units[i], err = o.store.Sealer.SealUnit(nil, ad, p); err != nil {
				return err
			}
		}
		segment, err := stripe.PackObject(o.store.Geometry, o.disk, o.epoch, units)
		if err != nil {
			return err
		}
		if err := o.store.Stripes.Write(ctx, segment, o.store.Number); err != nil {
			return err
		}
		segment.Free()
		d.segments = append(d.segments, piece{segment.Header.Segment, segment.FragmentBytes})
		entries = append(entries, segment.Entry())
		first += n
	}
	for len(entries) > 0 {
		n := min(len(entries), datanode.SegmentsMax)
		if err := o.store.Index.Publish(ctx, &datanode.PublishRequest{Segments: entries[:n]}); err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// ReadAt fills p from byte off of an object; a range beyond its end is
// ErrCorrupt.
func (o *Owner) ReadAt(ctx context.Context, obj blockmap.Object, p []byte, off int64) error {
	return o.store.ReadAt(ctx, obj, p, off)
}

// ReadAt fills p from byte off of any disk's object.
func (s *Store) ReadAt(ctx context.Context, obj blockmap.Object, p []byte, off int64) error {
	d, err := unmarshal(obj)
	if err != nil {
		return err
	}
	if off < 0 || off > d.bytes || int64(len(p)) > d.bytes-off {
		return fmt.Errorf("%d bytes at %d of an object of %d: %w", len(p), off, d.bytes, ErrCorrupt)
	}
	if len(p) == 0 {
		return nil
	}
	first, last := uint64(off)/UnitBytes, uint64(off+int64(len(p))-1)/UnitBytes
	unitsMax := uint64(stripe.ObjectUnitsMax(s.Geometry, chunk.UnitSealedBytes(UnitBytes)))
	ranges := make([]stripe.Range, 0, last-first+1)
	for u := first; u <= last; u++ {
		at := u / unitsMax
		if at >= uint64(len(d.segments)) {
			return fmt.Errorf("unit %d is in no segment: %w", u, ErrCorrupt)
		}
		seg := d.segments[at]
		sealed := chunk.UnitSealedBytes(d.unitLen(u))
		ranges = append(ranges, stripe.ObjectRange(seg.segment, seg.fragmentBytes,
			chunk.UnitSealedBytes(UnitBytes), int(u%unitsMax), sealed))
	}
	for i, data := range s.Stripes.Read(ctx, ranges) {
		u := first + uint64(i)
		plain, err := s.openUnit(ctx, d, u, ranges[i], data)
		if err != nil {
			return fmt.Errorf("unit %d of an object of disk %d in segment %s: %w: %w", u, d.disk(), ranges[i].Segment, ErrCorrupt, err)
		}
		start := int64(u) * UnitBytes
		from := max(off-start, 0)
		copy(p[max(start-off, 0):], plain[from:])
	}
	return nil
}

// openUnit opens what a read gave, or what reconstruction gives.
func (s *Store) openUnit(ctx context.Context, d *descriptor, u uint64, r stripe.Range, data stripe.Data) (plain []byte, err error) {
	ad := chunk.UnitAD{Object: d.id, Unit: u}
	open := func(sealed []byte) error {
		plain, err = s.Opener.OpenUnit(nil, sealed, ad)
		if err == nil && len(plain) != d.unitLen(u) {
			err = fmt.Errorf("unit of %d bytes, not %d", len(plain), d.unitLen(u))
		}
		return err
	}
	if err = data.Err; err == nil {
		err = open(data.Bytes)
	}
	if err != nil && ctx.Err() == nil {
		_, err = s.Stripes.Reconstruct(ctx, r, open)
	}
	return plain, err
}

// Segments returns the segments that hold an object.
func Segments(obj blockmap.Object) ([]id.Segment, error) {
	d, err := unmarshal(obj)
	if err != nil {
		return nil, err
	}
	out := make([]id.Segment, len(d.segments))
	for i, p := range d.segments {
		out[i] = p.segment
	}
	return out, nil
}

// Bytes returns an object's length.
func Bytes(obj blockmap.Object) (int64, error) {
	d, err := unmarshal(obj)
	if err != nil {
		return 0, err
	}
	return d.bytes, nil
}
