package blockmap

// typicalEntryBytes is what an entry takes in tables, with its key.
const typicalEntryBytes = 31

// Stats describes a map.
type Stats struct {
	// Entries estimates the entries from the size of the tables, superseded
	// ones that are not compacted away included.
	Entries uint64
	// DiskBytes is the size of the tables, remote ones included.
	DiskBytes uint64
	// UpdatesSinceCheckpoint counts updates applied since the last Checkpoint
	// that succeeded, or since Attach.
	UpdatesSinceCheckpoint uint64
	// Trims is how many extents of trims a look-up chooses from; a sweep removes
	// those that hide nothing.
	Trims int
	// Tables and RemoteTables count files, and those that are read through
	// Objects.
	Tables, RemoteTables int
}

// Stats returns figures of now; all zero after Close.
func (m *Map) Stats() Stats {
	if !m.calls.enter() {
		return Stats{}
	}
	defer m.calls.leave()
	m.shown.RLock()
	trims := len(m.trims)
	m.shown.RUnlock()
	metrics := m.db.Metrics()
	total := metrics.Total()
	s := Stats{
		DiskBytes:              uint64(max(0, total.TablesSize)),
		UpdatesSinceCheckpoint: m.since.Load(),
		Trims:                  trims,
		Tables:                 int(total.TablesCount),
		RemoteTables:           m.fs.tables.remoteCount(),
	}
	s.Entries = s.DiskBytes/typicalEntryBytes + metrics.MemTable.Size/(keyBytes+entryBytes+50)
	return s
}
