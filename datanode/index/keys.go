package index

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"plinth/datanode/index/kv"
	"plinth/internal/id"
)

// The kinds of rows: a key's first byte. Numbers in keys are big endian, so that
// they sort.
const (
	keySuper    = 'A' // superblock
	keyCounters = 'B' // counters
	keySegment  = 'S' // ‖ segment → header and state
	keySlots    = 'T' // ‖ segment → slot table
	keyPrint    = 'F' // ‖ fingerprint ‖ segment ‖ slot → location
	keyList     = 'L' // ‖ segment ‖ disk → reference list
	keyDisk     = 'D' // ‖ disk ‖ segment: the disk holds slots of it
	keyFree     = 'C' // ‖ segment: a candidate
	keyTomb     = 'X' // ‖ segment: a tombstone
	keyMoves    = 'W' // ‖ segment → moves of one that is condemned or forwarded
	keyRecent   = 'R' // ‖ segment: the rows of some of its slots are in memory only
	keyGone     = 'G' // ‖ number / goneRow → bitmap of deleted segments
)

// goneRow is how many segment numbers share a row of deleted ones.
const goneRow = 4096

func key64(kind byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, n)
}

func segmentKey(kind byte, s id.Segment) []byte { return key64(kind, uint64(s)) }

const (
	// printPrefixBytes of a fingerprint row's key are the fingerprint's.
	printPrefixBytes = 1 + len(id.Fingerprint{})
	printKeyBytes    = printPrefixBytes + 8 + 2
)

// comparer orders keys by their bytes. Those of one fingerprint's rows have a
// prefix in common, so that a filter tells that there is none of them.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "plinth.index.v1"
	c.Split = func(key []byte) int {
		if len(key) > printPrefixBytes && key[0] == keyPrint {
			return printPrefixBytes
		}
		return len(key)
	}
	c.Separator = func(dst, a, _ []byte) []byte { return append(dst, a...) }
	c.Successor = func(dst, a []byte) []byte { return append(dst, a...) }
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		if len(prefix) == printPrefixBytes && prefix[0] == keyPrint {
			return append(dst, kv.Above(prefix)...)
		}
		return append(append(dst, prefix...), 0)
	}
	return &c
}()

func printKey(f id.Fingerprint, s id.Segment, slot id.Slot) []byte {
	return appendPrintKey(make([]byte, 0, printKeyBytes), &f, s, slot)
}

func appendPrintKey(b []byte, f *id.Fingerprint, s id.Segment, slot id.Slot) []byte {
	b = append(append(b, keyPrint), f[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(s))
	return binary.BigEndian.AppendUint16(b, uint16(slot))
}

func listKey(s id.Segment, d id.Disk) []byte {
	return binary.BigEndian.AppendUint64(segmentKey(keyList, s), uint64(d))
}

func diskKey(d id.Disk, s id.Segment) []byte {
	return binary.BigEndian.AppendUint64(key64(keyDisk, uint64(d)), uint64(s))
}

func goneKey(s id.Segment) []byte { return key64(keyGone, s.Number()/goneRow) }

// lastNumber returns the number that ends a key.
func lastNumber(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }

// span returns the bounds of all keys with a prefix, from start on.
func span(prefix []byte) (lower, upper []byte) { return prefix, kv.Above(prefix) }
