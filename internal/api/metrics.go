package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"plinth/datanode"
	"plinth/internal/host"
)

// scrapeTimeMax bounds one collection.
const scrapeTimeMax = 5 * time.Second

// Metrics answers /metrics with the host's status and the process's own figures.
func Metrics(h func() *host.Host) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{h},
	)
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// collector turns a status into metrics at each scrape, so that nothing is
// counted twice.
type collector struct{ host func() *host.Host }

// metric is a value of a status.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*host.Status) float64
}

func gauge(name, help string, value func(*host.Status) float64) metric {
	return metric{prometheus.NewDesc("plinth_"+name, help, nil, nil), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(*host.Status) float64) metric {
	return metric{prometheus.NewDesc("plinth_"+name, help, nil, nil), prometheus.CounterValue, value}
}

var poolMetrics = []metric{
	gauge("logical_bytes", "Mapped by disks, as of their last pass.", func(s *host.Status) float64 { return float64(s.Space.LogicalBytes) }),
	gauge("unique_bytes", "After deduplication.", func(s *host.Status) float64 { return float64(s.Space.UniqueBytes) }),
	gauge("compressed_bytes", "After compression and sealing.", func(s *host.Status) float64 { return float64(s.Space.CompressedBytes) }),
	gauge("stored_bytes", "Fragments on the spindles, with parity and headers.", func(s *host.Status) float64 { return float64(s.Space.StoredBytes) }),
	gauge("capacity_bytes", "Of all spindles.", func(s *host.Status) float64 { return float64(s.Space.CapacityBytes) }),
	gauge("free_bytes", "What can still be promised to writes, parity included.", func(s *host.Status) float64 { return float64(s.Space.FreeBytes) }),
	gauge("buffered_bytes", "Acknowledged and not destaged, at its worst case.", func(s *host.Status) float64 { return float64(s.Space.BufferedBytes) }),
	gauge("log_used_bytes", "Log files in use.", func(s *host.Status) float64 { return float64(s.Node.Log.UsedBytes) }),
	gauge("log_capacity_bytes", "Size of the log.", func(s *host.Status) float64 { return float64(s.Node.Log.CapacityBytes) }),
	counter("log_written_bytes_total", "Records of the log with their headers.", func(s *host.Status) float64 { return float64(s.Node.Log.WrittenBytes) }),
	gauge("index_segments", "Segments that the index knows.", func(s *host.Status) float64 { return float64(s.Node.Index.Segments) }),
	gauge("index_fingerprints", "Places of chunks that the index knows.", func(s *host.Status) float64 { return float64(s.Node.Index.Fingerprints) }),
	gauge("index_complete", "1 if every disk has stated what it needs.", func(s *host.Status) float64 { return oneIf(s.Node.Index.Complete) }),
	gauge("ram_cache_bytes", "Chunks ready to be read.", func(s *host.Status) float64 { return float64(s.RAMCache.Bytes) }),
	gauge("ram_cache_max_bytes", "Bound of ram_cache_bytes.", func(s *host.Status) float64 { return float64(s.RAMCache.BytesMax) }),
	counter("ram_cache_hits_total", "Pages of 4 KiB that were asked for and in the RAM cache.", func(s *host.Status) float64 { return float64(s.RAMCache.Hits) }),
	counter("ram_cache_misses_total", "Pages that were not.", func(s *host.Status) float64 { return float64(s.RAMCache.Misses) }),
	counter("map_memo_hits_total", "Chunks whose content was known without their disk's map.", func(s *host.Status) float64 { return float64(s.RAMCache.MemoHits) }),
	counter("map_memo_misses_total", "Chunks of which it was not known.", func(s *host.Status) float64 { return float64(s.RAMCache.MemoMisses) }),
	gauge("cpu_cores", "That the process may use.", func(s *host.Status) float64 { return s.CPU.Cores }),
	gauge("cpu_used_cores", "In use, on average over the last second or two.", func(s *host.Status) float64 { return s.CPU.Used }),
	gauge("cpu_wanted_cores", "In use, and one for each request that waited for CPU time.", func(s *host.Status) float64 { return s.CPU.Wanted }),
	counter("ranges_reconstructed_total", "Ranges computed from other fragments.", func(s *host.Status) float64 { return float64(s.Repairs["ranges_reconstructed"]) }),
	gauge("scrub_progress", "Of the pass under way, from 0 to 1.", func(s *host.Status) float64 { return s.Scrub.Progress }),
	counter("rehomed_bytes_total", "Sealed chunks that this host has moved from data nodes that are drained.", func(s *host.Status) float64 { return float64(s.RehomedBytes) }),
	gauge("rebuild_spindles", "Spindles that are being rebuilt.", func(s *host.Status) float64 { return float64(len(s.Rebuild.Spindles)) }),
	gauge("rebuild_hosts", "Hosts that restore.", func(s *host.Status) float64 { return float64(s.Rebuild.HostsAtIt()) }),
	gauge("rebuild_restored_bytes", "Of fragments, that the newest rebuild has restored.", func(s *host.Status) float64 { return float64(s.Rebuild.Bytes) }),
	gauge("rebuild_left_bytes", "Of fragments, that it has still to restore: an estimate.", func(s *host.Status) float64 { return float64(s.Rebuild.BytesLeft) }),
	gauge("rebuild_lost_segments", "Segments that it could not restore.", func(s *host.Status) float64 { return float64(s.Rebuild.LostSegments) }),
	counter("fragments_rewritten_total", "Damaged fragments rewritten.", func(s *host.Status) float64 { return float64(s.Repairs["fragments_rewritten"]) }),
}

// diskMetric is a value of a disk, labelled with its name.
type diskMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*host.DiskInfo) float64
}

func perDisk(kind prometheus.ValueType, name, help string, value func(*host.DiskInfo) float64) diskMetric {
	return diskMetric{prometheus.NewDesc("plinth_disk_"+name, help, []string{"disk"}, nil), kind, value}
}

var diskMetrics = []diskMetric{
	perDisk(prometheus.GaugeValue, "up", "1 if the disk serves.", func(d *host.DiskInfo) float64 { return oneIf(d.State == "ok") }),
	perDisk(prometheus.GaugeValue, "size_bytes", "Size of the disk.", func(d *host.DiskInfo) float64 { return float64(d.Bytes) }),
	perDisk(prometheus.GaugeValue, "logical_bytes", "Mapped, as of the last pass.", func(d *host.DiskInfo) float64 { return float64(d.LogicalBytes) }),
	perDisk(prometheus.GaugeValue, "exclusive_bytes", "Sealed chunks that no other disk needs, as of the last pass: an estimate.", func(d *host.DiskInfo) float64 { return float64(d.ExclusiveBytes) }),
	perDisk(prometheus.GaugeValue, "snapshots", "Snapshots of the disk.", func(d *host.DiskInfo) float64 { return float64(d.Snapshots) }),
	perDisk(prometheus.GaugeValue, "clients", "NBD connections.", func(d *host.DiskInfo) float64 { return float64(d.Clients) }),
	perDisk(prometheus.GaugeValue, "buffered_bytes", "Log records not yet destaged.", func(d *host.DiskInfo) float64 { return float64(d.Stats.BufferedBytes) }),
	perDisk(prometheus.CounterValue, "limit_waits_total", "Requests that waited for the disk's limits.", func(d *host.DiskInfo) float64 { return float64(d.Waits.Limit) }),
	perDisk(prometheus.CounterValue, "limit_wait_seconds_total", "How long requests waited for the disk's limits.", func(d *host.DiskInfo) float64 { return d.Waits.LimitSeconds }),
	perDisk(prometheus.CounterValue, "cpu_waits_total", "Requests that waited for CPU time.", func(d *host.DiskInfo) float64 { return float64(d.Waits.CPU) }),
	perDisk(prometheus.CounterValue, "cpu_wait_seconds_total", "How long requests waited for CPU time.", func(d *host.DiskInfo) float64 { return d.Waits.CPUSeconds }),
	perDisk(prometheus.CounterValue, "log_records_total", "Operations appended to the log.", func(d *host.DiskInfo) float64 { return float64(d.Stats.RecordsLogged) }),
	perDisk(prometheus.CounterValue, "log_full_total", "Appends that found the log full.", func(d *host.DiskInfo) float64 { return float64(d.Stats.LogFull) }),
	perDisk(prometheus.CounterValue, "chunk_reads_total", "Chunks read from segments.", func(d *host.DiskInfo) float64 { return float64(d.Stats.ChunkReads) }),
	perDisk(prometheus.CounterValue, "flash_reads_total", "Chunks read from the host's flash.", func(d *host.DiskInfo) float64 { return float64(d.Stats.FlashReads) }),
	perDisk(prometheus.CounterValue, "peer_reads_total", "Chunks read from the flash of the host that had the disk before.", func(d *host.DiskInfo) float64 { return float64(d.Stats.PeerReads) }),
	perDisk(prometheus.CounterValue, "chunks_bad_total", "Chunks that did not verify when first read.", func(d *host.DiskInfo) float64 { return float64(d.Stats.ChunksBad) }),
	perDisk(prometheus.CounterValue, "destages_total", "Destage commits.", func(d *host.DiskInfo) float64 { return float64(d.Stats.Destages) }),
	perDisk(prometheus.CounterValue, "dedupe_hits_total", "Destaged chunks that were known.", func(d *host.DiskInfo) float64 { return float64(d.Stats.DedupeHits) }),
	perDisk(prometheus.CounterValue, "dedupe_misses_total", "Destaged chunks that were stored.", func(d *host.DiskInfo) float64 { return float64(d.Stats.DedupeMisses) }),
	perDisk(prometheus.CounterValue, "checkpoints_total", "Checkpoints of the map.", func(d *host.DiskInfo) float64 { return float64(d.Stats.Checkpoints) }),
	perDisk(prometheus.CounterValue, "passes_total", "Owner's scans.", func(d *host.DiskInfo) float64 { return float64(d.Stats.Passes) }),
}

// flashMetric is a value of the flash cache; there is none without a cache.
type flashMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*host.FlashStatus) float64
}

func perFlash(kind prometheus.ValueType, name, help string, value func(*host.FlashStatus) float64) flashMetric {
	return flashMetric{prometheus.NewDesc("plinth_flash_"+name, help, nil, nil), kind, value}
}

var flashMetrics = []flashMetric{
	perFlash(prometheus.GaugeValue, "up", "1 if the cache's device works.", func(f *host.FlashStatus) float64 { return oneIf(f.Failure == "") }),
	perFlash(prometheus.GaugeValue, "capacity_bytes", "Size of all regions.", func(f *host.FlashStatus) float64 { return float64(f.CapacityBytes) }),
	perFlash(prometheus.GaugeValue, "used_bytes", "Regions that are written.", func(f *host.FlashStatus) float64 { return float64(f.UsedBytes) }),
	perFlash(prometheus.GaugeValue, "chunks", "Chunks that are cached.", func(f *host.FlashStatus) float64 { return float64(f.Chunks) }),
	perFlash(prometheus.GaugeValue, "index_bytes", "RAM of the index.", func(f *host.FlashStatus) float64 { return float64(f.IndexBytes) }),
	perFlash(prometheus.GaugeValue, "loading", "1 while the index is being loaded.", func(f *host.FlashStatus) float64 { return oneIf(f.Loading) }),
	perFlash(prometheus.CounterValue, "hits_total", "Chunks that were found.", func(f *host.FlashStatus) float64 { return float64(f.Hits) }),
	perFlash(prometheus.CounterValue, "misses_total", "Chunks that were not found.", func(f *host.FlashStatus) float64 { return float64(f.Misses) }),
	perFlash(prometheus.CounterValue, "puts_total", "Chunks that were taken.", func(f *host.FlashStatus) float64 { return float64(f.Puts) }),
	perFlash(prometheus.CounterValue, "put_bytes_total", "Of chunks that were taken.", func(f *host.FlashStatus) float64 { return float64(f.PutBytes) }),
	perFlash(prometheus.CounterValue, "dropped_total", "Chunks that were offered and not taken.", func(f *host.FlashStatus) float64 { return float64(f.Dropped) }),
	perFlash(prometheus.CounterValue, "evicted_total", "Chunks that had to leave.", func(f *host.FlashStatus) float64 { return float64(f.Evicted) }),
	perFlash(prometheus.CounterValue, "reinserted_bytes_total", "Written again when their region was evicted.", func(f *host.FlashStatus) float64 { return float64(f.ReinsertedBytes) }),
	perFlash(prometheus.CounterValue, "written_bytes_total", "All that went to the device.", func(f *host.FlashStatus) float64 { return float64(f.WrittenBytes) }),
	perFlash(prometheus.CounterValue, "discarded_total", "Chunks that did not verify.", func(f *host.FlashStatus) float64 { return float64(f.Discarded) }),
	perFlash(prometheus.CounterValue, "damaged_total", "Records and tables that were not what the index took them for.", func(f *host.FlashStatus) float64 { return float64(f.Damaged) }),
}

// lendingMetric is a value of what hosts have from each other's flash; there is none of a
// host that takes no part.
type lendingMetric struct {
	desc  *prometheus.Desc
	value func(*host.LendingStatus) int64
}

func ofLending(name, help string, value func(*host.LendingStatus) int64) lendingMetric {
	return lendingMetric{prometheus.NewDesc("plinth_"+name+"_total", help, nil, nil), value}
}

var lendingMetrics = []lendingMetric{
	ofLending("peer_flash_asked", "Chunks that another host was asked for.", func(l *host.LendingStatus) int64 { return l.Asked }),
	ofLending("peer_flash_hits", "Chunks that it had in its flash.", func(l *host.LendingStatus) int64 { return l.Here }),
	ofLending("peer_flash_misses", "Chunks that it had not, or that did not verify.", func(l *host.LendingStatus) int64 { return l.Asked - l.Here }),
	ofLending("peer_flash_bytes", "Of sealed chunks that it had.", func(l *host.LendingStatus) int64 { return l.Bytes }),
	ofLending("peer_flash_bad", "Chunks from it that did not verify.", func(l *host.LendingStatus) int64 { return l.Bad }),
	ofLending("peer_flash_failures", "Connections and answers that did not come.", func(l *host.LendingStatus) int64 { return l.Failures }),
	ofLending("flash_lent_chunks", "Chunks that other hosts were given.", func(l *host.LendingStatus) int64 { return l.LentChunks }),
	ofLending("flash_lent_bytes", "Of sealed chunks that other hosts were given.", func(l *host.LendingStatus) int64 { return l.LentBytes }),
	ofLending("flash_lent_refused", "Chunks that they were not, for lack of CPU time.", func(l *host.LendingStatus) int64 { return l.Refused }),
}

var (
	spindleUp   = prometheus.NewDesc("plinth_spindle_up", "1 if the spindle serves.", []string{"spindle"}, nil)
	spindleSlow = prometheus.NewDesc("plinth_spindle_slow", "1 if this host's reads go around the spindle, because it takes far longer than the others.", []string{"spindle"}, nil)
	nodeUp      = prometheus.NewDesc("plinth_node_up", "1 if the data node answers.", []string{"node"}, nil)
	nodeIn      = prometheus.NewDesc("plinth_node_in", "1 if the data node takes new segments: it is neither joining nor being drained.", []string{"node"}, nil)
	nodeLeaving = prometheus.NewDesc("plinth_node_leaving_bytes", "Of fragments that are left on a data node that is being drained.", []string{"node"}, nil)
	nodeLogs    = prometheus.NewDesc("plinth_node_logs_missing", "Disks whose logs should be on the data node and are not, or not yet.", []string{"node"}, nil)
	spindleUsed = prometheus.NewDesc("plinth_spindle_allocated_bytes", "Fragments on the spindle.", []string{"spindle"}, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range poolMetrics {
		out <- m.desc
	}
	for _, m := range diskMetrics {
		out <- m.desc
	}
	for _, m := range flashMetrics {
		out <- m.desc
	}
	for _, m := range lendingMetrics {
		out <- m.desc
	}
	out <- nodeUp
	out <- nodeIn
	out <- nodeLeaving
	out <- nodeLogs
	out <- spindleUp
	out <- spindleSlow
	out <- spindleUsed
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeMax)
	defer cancel()
	s, err := c.host().Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(poolMetrics[0].desc, err)
		return
	}
	for _, m := range poolMetrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s))
	}
	for i := range s.Disks {
		for _, m := range diskMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s.Disks[i]), s.Disks[i].Name)
		}
	}
	if s.Flash != nil {
		for _, m := range flashMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s.Flash))
		}
	}
	if s.Lending != nil {
		for _, m := range lendingMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(m.value(s.Lending)))
		}
	}
	for _, n := range s.Nodes {
		label := strconv.Itoa(int(n.Number))
		out <- prometheus.MustNewConstMetric(nodeUp, prometheus.GaugeValue, oneIf(n.Answers), label)
		out <- prometheus.MustNewConstMetric(nodeIn, prometheus.GaugeValue, oneIf(n.State == "in"), label)
		if n.Leaving != nil {
			out <- prometheus.MustNewConstMetric(nodeLeaving, prometheus.GaugeValue, float64(n.Leaving.Bytes), label)
		}
		out <- prometheus.MustNewConstMetric(nodeLogs, prometheus.GaugeValue, float64(n.LogsMissingCount), label)
	}
	for _, sp := range s.Node.Spindles {
		label := strconv.Itoa(int(sp.Spindle))
		out <- prometheus.MustNewConstMetric(spindleUp, prometheus.GaugeValue, oneIf(sp.State == datanode.SpindleOK), label)
		out <- prometheus.MustNewConstMetric(spindleSlow, prometheus.GaugeValue, oneIf(slices.Contains(s.SlowSpindles, sp.Spindle)), label)
		out <- prometheus.MustNewConstMetric(spindleUsed, prometheus.GaugeValue, float64(sp.AllocatedBytes), label)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
