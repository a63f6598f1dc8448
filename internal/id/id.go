// Package id holds the names of durable things, as types that do not mix.
//
// Nouns: a [Disk] is a virtual disk's number (not its name), an [Epoch] proves
// who may write to it, a [Pos] is a place in one of its two log streams, a
// [Seq] numbers its list updates, a [Gen] is a version of its map, a [Snapshot]
// is one that is kept, an [LBA] is a chunk's number in it. A [Segment] is a
// write-once pack of sealed chunks, a [Slot] a chunk's number in the pack, a
// [Fingerprint] the name of a chunk's content, and a [Location] where a segment
// keeps it.
//
// Invariant: none of Disk, Snapshot, Segment, Key or (Disk, Epoch) is ever used
// twice in a pool. Zero is "none" for all of them.
package id

import (
	"encoding/hex"
	"fmt"
)

// Disk numbers a virtual disk. It is not the disk's name: a new disk of an old
// name has a new number, so it never meets the old one's log.
type Disk uint64

// Epoch increases with every change of a disk's owner. The data node refuses
// any call under an epoch below the disk's newest (I1).
type Epoch uint64

// Pos is a record's place in one stream of a disk's log: 1, 2, 3 … without
// holes and never reused.
type Pos uint64

// Seq numbers a disk's reference list updates within an epoch.
type Seq uint64

// Gen is a generation of a disk's map. It rises only with a mark.
type Gen uint64

// Snapshot numbers a snapshot of a disk, over all disks of the pool.
type Snapshot uint64

// LBA is a chunk's number in a disk: byte offset divided by the chunk size.
type LBA uint64

// Key numbers a wrapped data key in the registry.
type Key uint32

// Node numbers a data node of the pool.
type Node uint16

// Spindle numbers a drive of the pool.
type Spindle uint16

// Layout numbers a stripe layout: a list of k+m spindles.
type Layout uint16

// Tag names a change that a host forwards to the disk's owner, so that sending it again
// does not do it again. A session has at most [TagSlots] under way, each in a slot of its
// own, Number % TagSlots; the next one in the slot has a higher number, and says that
// nobody waits for the one before any more.
type Tag struct {
	Session [16]byte // drawn by who sends it
	Number  uint64   // below 1 << TagNumberBits
}

const (
	TagSlots      = 128
	TagNumberBits = 48
)

// Slot is a chunk's number in its segment, in the order in which they lie.
type Slot uint16

// SlotsMax is the largest number of slots of one segment.
const SlotsMax = 1 << 15

// Fingerprint is the keyed hash of a chunk's plaintext: equal in one dedupe
// domain exactly for equal content.
type Fingerprint [16]byte

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// Segment names a segment: its layout in the upper 16 bits, and a number
// unique in the pool (over all layouts) in the lower 48. Placement needs no
// look-up.
type Segment uint64

// SegmentNumberMax is the largest number a segment can have.
const SegmentNumberMax = 1<<48 - 1

// MakeSegment returns the id of segment number n in layout l. It panics if n
// exceeds SegmentNumberMax: numbers come from the registry, which ends there.
func MakeSegment(l Layout, n uint64) Segment {
	if n > SegmentNumberMax {
		panic(fmt.Sprintf("segment number %d out of range", n))
	}
	return Segment(uint64(l)<<48 | n)
}

// Layout returns the stripe layout that the segment was written under.
func (s Segment) Layout() Layout { return Layout(s >> 48) }

// Number returns the pool-wide number of the segment.
func (s Segment) Number() uint64 { return uint64(s) & SegmentNumberMax }

func (s Segment) String() string { return fmt.Sprintf("%d.%012x", s.Layout(), s.Number()) }

// Unit is the alignment of sealed chunks in a segment, in bytes.
const Unit = 16

// SegmentBytesMax is the largest data size of a segment, without parity.
const SegmentBytesMax = 8 << 20

// Location is the place of a sealed chunk in its segment's address space,
// packed in 32 bits: the start in units of 16 bytes (19 bits, upper) and the
// length in units (13 bits, lower). Address a lies in fragment a/N at byte
// a%N, where N is the nominal fragment length (package stripe); a chunk never
// straddles a fragment.
type Location uint32

// MakeLocation packs a start and a length, both in bytes and multiples of
// Unit. It reports false when they do not fit.
func MakeLocation(start, length int) (Location, bool) {
	if start < 0 || length <= 0 || start%Unit != 0 || length%Unit != 0 ||
		start >= SegmentBytesMax || length/Unit >= 1<<13 {
		return 0, false
	}
	return Location(start/Unit<<13 | length/Unit), true
}

// Start returns the first byte's address.
func (l Location) Start() int { return int(l>>13) * Unit }

// Len returns the length in bytes, padding included.
func (l Location) Len() int { return int(l&(1<<13-1)) * Unit }

// Ref says where a chunk is: a slot of a segment and the place of that slot.
type Ref struct {
	Segment  Segment
	Slot     Slot
	Location Location
}
