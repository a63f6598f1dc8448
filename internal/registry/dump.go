package registry

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

// DumpBytesMax bounds a dump, and with it the registry: a copy is written at
// each commit.
const DumpBytesMax = 16 << 20

// RestoreGap is added to the revision of a dump that is restored: more than the
// transactions that can have been made since the dump.
const RestoreGap = 1 << 40

const (
	dumpVersion     = 2  // 1 has no leases
	dumpHeaderBytes = 12 // revision, number of entries
	dumpEntryHeader = 14 // revision, lengths of key and value
	dumpLeaseBytes  = 16 // number, TTL
	emptyDumpBytes  = 24 + dumpHeaderBytes + 4
)

var dumpMagic = kv.Magic([]byte("PLNTREGD"))

// Dump is all of a registry at one revision.
type Dump struct {
	Revision uint64
	Leases   []Lease
	Entries  []datanode.RegistryEntry // by key
}

// Lease is a lease and its time.
type Lease struct {
	ID  datanode.LeaseID
	TTL time.Duration
}

// dumpEntryBytes is what an entry takes, with the lease that it may be under.
func dumpEntryBytes(key string, value []byte) int {
	return dumpEntryHeader + 8 + len(key) + len(value)
}

// Encode returns the dump's bytes. It orders the leases.
func (d *Dump) Encode() []byte {
	slices.SortFunc(d.Leases, func(a, b Lease) int { return cmp.Compare(a.ID, b.ID) })
	n := dumpHeaderBytes + 4 + len(d.Leases)*dumpLeaseBytes
	for i := range d.Entries {
		n += dumpEntryBytes(d.Entries[i].Key, d.Entries[i].Value)
	}
	b := le.AppendUint64(make([]byte, 0, n), d.Revision)
	b = le.AppendUint32(b, uint32(len(d.Entries)))
	b = le.AppendUint32(b, uint32(len(d.Leases)))
	for _, l := range d.Leases {
		b = le.AppendUint64(b, uint64(l.ID))
		b = le.AppendUint64(b, uint64(l.TTL))
	}
	for i := range d.Entries {
		e := &d.Entries[i]
		b = le.AppendUint64(b, e.Revision)
		b = le.AppendUint16(b, uint16(len(e.Key)))
		b = le.AppendUint32(b, uint32(len(e.Value)))
		b = le.AppendUint64(b, uint64(e.Lease))
		b = append(append(b, e.Key...), e.Value...)
	}
	return kv.Seal(dumpMagic, dumpVersion, b)
}

// ParseDump decodes a dump. The values are parts of it. Errors: kv.ErrForeign,
// kv.ErrNewer.
func ParseDump(dump []byte) (*Dump, error) {
	if len(dump) > DumpBytesMax {
		return nil, fmt.Errorf("%w: a dump of %d bytes", kv.ErrForeign, len(dump))
	}
	b, err := kv.Open(dumpMagic, dumpVersion, dump)
	if err != nil {
		return nil, err
	}
	if len(b) < dumpHeaderBytes {
		return nil, fmt.Errorf("%w: a dump without header", kv.ErrForeign)
	}
	d := &Dump{Revision: le.Uint64(b)}
	count := int(le.Uint32(b[8:]))
	b = b[dumpHeaderBytes:]
	leases, header := map[datanode.LeaseID]bool{0: true}, dumpEntryHeader
	if le.Uint16(dump[8:]) > 1 {
		header += 8
		if b, err = d.parseLeases(b, leases); err != nil {
			return nil, err
		}
	}
	if count > len(b)/header {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", kv.ErrForeign, count, len(b))
	}
	d.Entries = make([]datanode.RegistryEntry, count)
	last := ""
	for i := range d.Entries {
		e := &d.Entries[i]
		if b, err = parseEntry(b, header, e); err != nil {
			return nil, fmt.Errorf("%w: entry %d", err, i)
		}
		if e.Key <= last || e.Revision == 0 || e.Revision > d.Revision || !leases[e.Lease] {
			return nil, fmt.Errorf("%w: entry %d is out of order", kv.ErrForeign, i)
		}
		last = e.Key
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last entry", kv.ErrForeign, len(b))
	}
	return d, nil
}

// parseLeases decodes the leases and returns what follows.
func (d *Dump) parseLeases(b []byte, known map[datanode.LeaseID]bool) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: a dump without leases", kv.ErrForeign)
	}
	count := int(le.Uint32(b))
	b = b[4:]
	if count > datanode.LeasesMax || count > len(b)/dumpLeaseBytes {
		return nil, fmt.Errorf("%w: %d leases in %d bytes", kv.ErrForeign, count, len(b))
	}
	last := datanode.LeaseID(0)
	for range count {
		l := Lease{datanode.LeaseID(le.Uint64(b)), time.Duration(le.Uint64(b[8:]))}
		b = b[dumpLeaseBytes:]
		if l.ID <= last || l.TTL < datanode.LeaseTTLMin || l.TTL > datanode.LeaseTTLMax {
			return nil, fmt.Errorf("%w: lease %d of %v", kv.ErrForeign, l.ID, l.TTL)
		}
		last = l.ID
		known[l.ID] = true
		d.Leases = append(d.Leases, l)
	}
	return b, nil
}

// parseEntry decodes an entry and returns what follows.
func parseEntry(b []byte, header int, e *datanode.RegistryEntry) ([]byte, error) {
	if len(b) < header {
		return nil, fmt.Errorf("%w: cut", kv.ErrForeign)
	}
	e.Revision = le.Uint64(b)
	keyLen, valueLen := int(le.Uint16(b[8:])), int(le.Uint32(b[10:]))
	if header > dumpEntryHeader {
		e.Lease = datanode.LeaseID(le.Uint64(b[dumpEntryHeader:]))
	}
	b = b[header:]
	if keyLen > datanode.RegistryKeyBytesMax || valueLen > datanode.RegistryValueBytesMax || keyLen+valueLen > len(b) {
		return nil, fmt.Errorf("%w: %d and %d bytes", kv.ErrForeign, keyLen, valueLen)
	}
	e.Key, e.Value = string(b[:keyLen]), b[keyLen:keyLen+valueLen:keyLen+valueLen]
	return b[keyLen+valueLen:], nil
}
