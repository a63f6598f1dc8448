package registry

import (
	"fmt"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

// DumpBytesMax bounds a dump, and with it the registry: a copy is written at
// each commit.
const DumpBytesMax = 16 << 20

const (
	dumpVersion     = 1
	dumpHeaderBytes = 12 // revision, number of entries
	dumpEntryHeader = 14 // revision, lengths of key and value
	emptyDumpBytes  = 24 + dumpHeaderBytes
)

var dumpMagic = kv.Magic([]byte("PLNTREGD"))

func dumpEntryBytes(key string, value []byte) int {
	return dumpEntryHeader + len(key) + len(value)
}

func encodeDump(revision uint64, entries []datanode.RegistryEntry) []byte {
	n := dumpHeaderBytes
	for i := range entries {
		n += dumpEntryBytes(entries[i].Key, entries[i].Value)
	}
	b := le.AppendUint64(make([]byte, 0, n), revision)
	b = le.AppendUint32(b, uint32(len(entries)))
	for i := range entries {
		e := &entries[i]
		b = le.AppendUint64(b, e.Revision)
		b = le.AppendUint16(b, uint16(len(e.Key)))
		b = le.AppendUint32(b, uint32(len(e.Value)))
		b = append(append(b, e.Key...), e.Value...)
	}
	return kv.Seal(dumpMagic, dumpVersion, b)
}

// ParseDump returns a dump's revision and entries, in key order. The values are
// parts of dump. Errors: kv.ErrForeign, kv.ErrNewer.
func ParseDump(dump []byte) (revision uint64, entries []datanode.RegistryEntry, err error) {
	if len(dump) > DumpBytesMax {
		return 0, nil, fmt.Errorf("%w: a dump of %d bytes", kv.ErrForeign, len(dump))
	}
	b, err := kv.Open(dumpMagic, dumpVersion, dump)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < dumpHeaderBytes {
		return 0, nil, fmt.Errorf("%w: a dump without header", kv.ErrForeign)
	}
	revision = le.Uint64(b)
	count := int(le.Uint32(b[8:]))
	b = b[dumpHeaderBytes:]
	if count > len(b)/dumpEntryHeader {
		return 0, nil, fmt.Errorf("%w: %d entries in %d bytes", kv.ErrForeign, count, len(b))
	}
	entries = make([]datanode.RegistryEntry, 0, count)
	last := ""
	for i := range count {
		if len(b) < dumpEntryHeader {
			return 0, nil, fmt.Errorf("%w: entry %d is cut", kv.ErrForeign, i)
		}
		e := datanode.RegistryEntry{Revision: le.Uint64(b)}
		keyLen, valueLen := int(le.Uint16(b[8:])), int(le.Uint32(b[10:]))
		b = b[dumpEntryHeader:]
		if keyLen > datanode.RegistryKeyBytesMax || valueLen > datanode.RegistryValueBytesMax || keyLen+valueLen > len(b) {
			return 0, nil, fmt.Errorf("%w: entry %d of %d and %d bytes", kv.ErrForeign, i, keyLen, valueLen)
		}
		e.Key, e.Value = string(b[:keyLen]), b[keyLen:keyLen+valueLen:keyLen+valueLen]
		b = b[keyLen+valueLen:]
		if e.Key <= last || e.Revision == 0 || e.Revision > revision {
			return 0, nil, fmt.Errorf("%w: entry %d is out of order", kv.ErrForeign, i)
		}
		last = e.Key
		entries = append(entries, e)
	}
	if len(b) > 0 {
		return 0, nil, fmt.Errorf("%w: %d bytes after the last entry", kv.ErrForeign, len(b))
	}
	return revision, entries, nil
}
