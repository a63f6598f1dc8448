package flashcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"plinth/internal/id"
)

const (
	pageBytes = 4096
	// dataStart leaves the first MiB to the superblock: it keeps regions aligned
	// for any drive, and is where other users of a device have their marks, all of
	// which must be zero before a cache is made there.
	dataStart = 1 << 20

	superBytes       = 128
	footerBytes      = 64
	entryBytes       = fingerprintBytes + 2
	fingerprintBytes = 16

	superMagic    = "PLNTFLSH"
	footerMagic   = "PLNTFREG"
	formatVersion = 1
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// errDamaged says that bytes are not what they should be: what they describe is
// not cached.
var errDamaged = errors.New("flashcache: damaged")

// superblock is what a cache begins with.
type superblock struct {
	geometry
	pool, domain [16]byte
	// incarnation is drawn when the cache is emptied: footers of another one do not
	// count.
	incarnation uint64
}

func (s *superblock) encode() []byte {
	b := make([]byte, superBytes)
	copy(b, superMagic)
	le.PutUint16(b[8:], formatVersion)
	le.PutUint32(b[16:], uint32(s.regionBytes))
	le.PutUint64(b[24:], uint64(s.bytes))
	copy(b[32:], s.pool[:])
	copy(b[48:], s.domain[:])
	le.PutUint64(b[64:], s.incarnation)
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// parseSuperblock decodes a superblock. Errors: ErrForeign for bytes that are
// none, ErrVersion, errDamaged for one that is torn.
func parseSuperblock(b []byte) (*superblock, error) {
	if len(b) < superBytes || string(b[:8]) != superMagic {
		return nil, ErrForeign
	}
	if le.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return nil, fmt.Errorf("superblock: %w", errDamaged)
	}
	if v := le.Uint16(b[8:]); v != formatVersion {
		return nil, fmt.Errorf("%w: version %d", ErrVersion, v)
	}
	if bits := le.Uint16(b[10:]); bits != 0 {
		return nil, fmt.Errorf("%w: required features %#x", ErrVersion, bits)
	}
	s := &superblock{
		geometry: geometry{int64(le.Uint64(b[24:])), int(le.Uint32(b[16:]))},
		pool:     [16]byte(b[32:48]), domain: [16]byte(b[48:64]), incarnation: le.Uint64(b[64:]),
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("superblock: %w: %w", errDamaged, err)
	}
	return s, nil
}

// footer ends a region. The table lies before it, growing downwards.
type footer struct {
	incarnation uint64
	seq         uint64 // rises with each region that is begun
	region      uint32
	queue       queue
	records     int
	tableSum    uint32
}

func (f *footer) encode() []byte {
	b := make([]byte, footerBytes)
	copy(b, footerMagic)
	le.PutUint16(b[8:], formatVersion)
	b[10] = byte(f.queue)
	le.PutUint32(b[12:], f.region)
	le.PutUint64(b[16:], f.incarnation)
	le.PutUint64(b[24:], f.seq)
	le.PutUint32(b[32:], uint32(f.records))
	le.PutUint32(b[36:], f.tableSum)
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// parseFooter decodes the footer of a region of g. Error: errDamaged, also for a
// region that was never finished.
func parseFooter(b []byte, g geometry) (*footer, error) {
	if len(b) != footerBytes || string(b[:8]) != footerMagic || le.Uint16(b[8:]) != formatVersion ||
		le.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return nil, errDamaged
	}
	f := &footer{
		queue: queue(b[10]), region: le.Uint32(b[12:]), incarnation: le.Uint64(b[16:]), seq: le.Uint64(b[24:]),
		records: int(le.Uint32(b[32:])), tableSum: le.Uint32(b[36:]),
	}
	if f.queue >= queues || int64(f.region) >= int64(g.regions()) || f.records > g.recordsMax() {
		return nil, errDamaged
	}
	return f, nil
}

// recordsMax bounds the records of a region: each has a unit at least, its
// fingerprint and an entry.
func (g geometry) recordsMax() int {
	return (g.regionBytes - footerBytes) / (id.Unit + fingerprintBytes + entryBytes)
}

// entry is a record in a region's table. Records lie one after another.
type entry struct {
	fp    id.Fingerprint
	units int // of the sealed chunk
}

// tableEntry returns the bytes of entry i in a table that ends at the end of b.
func tableEntry(b []byte, i int) []byte {
	end := len(b) - i*entryBytes
	return b[end-entryBytes : end]
}

func (e *entry) put(b []byte) {
	copy(b, e.fp[:])
	le.PutUint16(b[fingerprintBytes:], uint16(e.units))
}

// record is an entry and where its sealed chunk begins.
type record struct {
	entry
	at place
}

// parseTable appends the records of a region to out. b is the table, without
// footer. Error: errDamaged.
func parseTable(out []record, b []byte, f *footer, g geometry) ([]record, error) {
	if len(b) != f.records*entryBytes || crc32.Checksum(b, castagnoli) != f.tableSum {
		return nil, errDamaged
	}
	at, end := 0, g.regionBytes-footerBytes-len(b)
	for i := range f.records {
		raw := tableEntry(b, i)
		e := entry{id.Fingerprint(raw[:fingerprintBytes]), int(le.Uint16(raw[fingerprintBytes:]))}
		size := e.recordBytes()
		if e.units == 0 || e.units >= 1<<unitsBits || size > end-at {
			return nil, errDamaged
		}
		out = append(out, record{e, makePlace(g.offset(int(f.region)) + int64(at))})
		at += size
	}
	return out, nil
}

// recordBytes is what a record takes: the sealed chunk and its fingerprint.
func (e *entry) recordBytes() int { return e.units*id.Unit + fingerprintBytes }
