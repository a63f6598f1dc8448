package blockmap

import (
	"encoding/binary"
	"fmt"
	"math"

	"plinth/internal/id"
)

const (
	prefixBytes = 8 // of every key: what Split returns
	keyBytes    = 16
	trimBytes   = 32
	entryBytes  = 30

	trimPrefix = math.MaxUint64 - 1
	headPrefix = math.MaxUint64
)

// pointKey is the key of an entry. Newer generations sort first.
type pointKey [keyBytes]byte

func makePointKey(lba id.LBA, gen id.Gen) (k pointKey) {
	binary.BigEndian.PutUint64(k[:], uint64(lba))
	binary.BigEndian.PutUint64(k[8:], ^uint64(gen))
	return k
}

// firstKey returns the key in front of all versions of lba.
func firstKey(lba id.LBA) pointKey { return makePointKey(lba, math.MaxUint64) }

func parsePointKey(key []byte) (id.LBA, id.Gen, error) {
	if len(key) != keyBytes || binary.BigEndian.Uint64(key) >= LBAMax {
		return 0, 0, fmt.Errorf("%w: key %x", ErrCorrupt, key)
	}
	return id.LBA(binary.BigEndian.Uint64(key)), id.Gen(^binary.BigEndian.Uint64(key[8:])), nil
}

var headKey = func() pointKey {
	var k pointKey
	binary.BigEndian.PutUint64(k[:], headPrefix)
	return k
}()

// putEntry encodes an entry that is not zero; a zero one has no bytes.
func putEntry(b *[entryBytes]byte, e *Entry) {
	copy(b[:], e.Fingerprint[:])
	binary.LittleEndian.PutUint64(b[16:], uint64(e.Ref.Segment))
	binary.LittleEndian.PutUint16(b[24:], uint16(e.Ref.Slot))
	binary.LittleEndian.PutUint32(b[26:], uint32(e.Ref.Location))
}

func parseEntry(value []byte) (e Entry, err error) {
	switch len(value) {
	case 0:
		return Entry{}, nil
	case entryBytes:
	default:
		return Entry{}, fmt.Errorf("%w: an entry of %d bytes", ErrCorrupt, len(value))
	}
	copy(e.Fingerprint[:], value)
	e.Ref.Segment = id.Segment(binary.LittleEndian.Uint64(value[16:]))
	e.Ref.Slot = id.Slot(binary.LittleEndian.Uint16(value[24:]))
	e.Ref.Location = id.Location(binary.LittleEndian.Uint32(value[26:]))
	if e.Zero() {
		return Entry{}, fmt.Errorf("%w: a zero entry with bytes", ErrCorrupt)
	}
	return e, nil
}

// trim is an extent that hides what is older than gen.
type trim struct {
	Extent
	gen id.Gen
}

// trimPrefixKey is below the keys of all trims.
func trimPrefixKey() (k [prefixBytes]byte) {
	binary.BigEndian.PutUint64(k[:], trimPrefix)
	return k
}

func trimKey(t trim) []byte {
	k := make([]byte, 0, trimBytes)
	k = binary.BigEndian.AppendUint64(k, trimPrefix)
	k = binary.BigEndian.AppendUint64(k, uint64(t.gen))
	k = binary.BigEndian.AppendUint64(k, uint64(t.First))
	return binary.BigEndian.AppendUint64(k, uint64(t.End))
}

func parseTrim(key []byte) (trim, error) {
	if len(key) != trimBytes || binary.BigEndian.Uint64(key) != trimPrefix {
		return trim{}, fmt.Errorf("%w: trim key %x", ErrCorrupt, key)
	}
	t := trim{gen: id.Gen(binary.BigEndian.Uint64(key[8:]))}
	t.First = id.LBA(binary.BigEndian.Uint64(key[16:]))
	t.End = id.LBA(binary.BigEndian.Uint64(key[24:]))
	if t.First >= t.End || t.End > LBAMax {
		return trim{}, fmt.Errorf("%w: a trim from %d to %d", ErrCorrupt, t.First, t.End)
	}
	return t, nil
}
