package index

import (
	"encoding/binary"

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
	keyPrint    = 'F' // ‖ fingerprint → segment, slot, location
	keyList     = 'L' // ‖ segment ‖ disk → reference list
	keyDisk     = 'D' // ‖ disk ‖ segment: the disk holds slots of it
	keyFree     = 'C' // ‖ segment: a candidate
	keyTomb     = 'X' // ‖ segment: a tombstone
	keyGone     = 'G' // ‖ number / goneRow → bitmap of deleted segments
)

// goneRow is how many segment numbers share a row of deleted ones.
const goneRow = 4096

func key64(kind byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, n)
}

func segmentKey(kind byte, s id.Segment) []byte { return key64(kind, uint64(s)) }

func printKey(f id.Fingerprint) []byte { return append([]byte{keyPrint}, f[:]...) }

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
