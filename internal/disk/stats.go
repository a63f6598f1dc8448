package disk

import "sync/atomic"

type counters struct {
	logged     atomic.Int64
	logFull    atomic.Int64
	chunkReads atomic.Int64
	flashReads atomic.Int64
	peerReads  atomic.Int64
	chunksBad  atomic.Int64
	rounds     atomic.Int64
	failed     atomic.Int64
	hits       atomic.Int64
	misses     atomic.Int64
	trimmed    atomic.Int64
	passes     atomic.Int64
	saves      atomic.Int64
	patched    atomic.Int64

	fromCheckpoint bool // these two are set by Open
	opsReplayed    int64
}

// Stats counts what a disk has done since it was opened.
type Stats struct {
	RecordsLogged int64 `json:"records_logged"` // operations appended to the log
	LogFull       int64 `json:"log_full"`       // appends that found the log full
	ChunkReads    int64 `json:"chunk_reads"`    // chunks read from segments
	FlashReads    int64 `json:"flash_reads"`    // chunks read from the host's flash
	PeerReads     int64 `json:"peer_reads"`     // chunks read from another host's flash
	ChunksBad     int64 `json:"chunks_bad"`     // of those from segments, which did not verify at first
	Destages      int64 `json:"destages"`       // rounds whose result is stable
	DestagesLost  int64 `json:"destages_lost"`  // rounds that failed and were repeated
	DedupeHits    int64 `json:"dedupe_hits"`    // chunks that the index knew
	DedupeMisses  int64 `json:"dedupe_misses"`  // chunks that were stored
	LogTrims      int64 `json:"log_trims"`
	Passes        int64 `json:"passes"`
	Checkpoints   int64 `json:"checkpoints"`
	ChunksMoved   int64 `json:"chunks_moved"`   // versions that followed what reclaim had moved
	BufferedBytes int64 `json:"buffered_bytes"` // of log records not yet destaged
	Layers        int   `json:"layers"`
	// FromCheckpoint says that the disk was opened at a checkpoint, and
	// OpsReplayed how many operations of the log came on top.
	FromCheckpoint bool  `json:"from_checkpoint"`
	OpsReplayed    int64 `json:"ops_replayed"`
}

// Stats returns the disk's counters.
func (d *Disk) Stats() Stats {
	s := Stats{
		RecordsLogged: d.stats.logged.Load(),
		LogFull:       d.stats.logFull.Load(),
		ChunkReads:    d.stats.chunkReads.Load(),
		FlashReads:    d.stats.flashReads.Load(),
		PeerReads:     d.stats.peerReads.Load(),
		ChunksBad:     d.stats.chunksBad.Load(),
		Destages:      d.stats.rounds.Load(),
		DestagesLost:  d.stats.failed.Load(),
		DedupeHits:    d.stats.hits.Load(),
		DedupeMisses:  d.stats.misses.Load(),
		LogTrims:      d.stats.trimmed.Load(),
		Passes:        d.stats.passes.Load(),
		Checkpoints:   d.stats.saves.Load(),
		ChunksMoved:   d.stats.patched.Load(),

		FromCheckpoint: d.stats.fromCheckpoint,
		OpsReplayed:    d.stats.opsReplayed,
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	s.Layers = len(d.layers)
	for _, l := range d.layers {
		s.BufferedBytes += l.bytes
	}
	return s
}
