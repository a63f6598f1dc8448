package shelf

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	benchSealed   = 2320 // a chunk of 4 KiB that compresses to half, sealed
	benchChunks   = 3500 // to a segment of 8 MiB
	benchK        = 8
	benchM        = 2
	benchRecords  = 8  // of an append: what a host gathers under load
	benchSyncEach = 16 // appends
	benchListEach = 4  // segments
)

// benchHost does to a node what a host does that writes 4 KiB at random, new data all
// the time: append, sync, look up, write a stripe, publish, append the result, trim.
type benchHost struct {
	*testing.B
	node   *Shelf
	disk   id.Disk
	rng    *rand.Rand
	record []byte
	stripe []byte
	next   [datanode.Streams]id.Pos
	seq    id.Seq
	lists  []datanode.List
	spent  [benchStages]time.Duration
}

// Stages of a host's calls.
const (
	benchAppend = iota
	benchSync
	benchLookup
	benchFragments
	benchPublish
	benchResult
	benchStages
)

func (h *benchHost) ok(err error) {
	if err != nil {
		h.Error(err)
	}
}

// run writes so many chunks.
func (h *benchHost) run(chunks int) {
	ctx := h.Context()
	_, err := h.node.Fence(ctx, &datanode.FenceRequest{Disk: h.disk, Epoch: 1})
	h.ok(err)
	h.next = [datanode.Streams]id.Pos{1, 1}
	left := benchChunks
	for n := 0; n < chunks && !h.Failed(); n += benchRecords {
		r := &datanode.AppendRequest{Disk: h.disk, Epoch: 1, Stream: datanode.Ops}
		for range benchRecords {
			r.Records = append(r.Records, datanode.Record{Pos: h.next[datanode.Ops], Type: 1, Data: h.record})
			h.next[datanode.Ops]++
		}
		h.time(benchAppend, func() error { _, err := h.node.Append(ctx, r); return err })
		if n/benchRecords%benchSyncEach == 0 {
			h.sync()
		}
		if left -= benchRecords; left < benchRecords {
			h.destage(benchChunks)
			left = benchChunks
		}
	}
}

func (h *benchHost) time(stage int, call func() error) {
	began := time.Now()
	h.ok(call())
	h.spent[stage] += time.Since(began)
}

func (h *benchHost) sync() {
	h.time(benchSync, func() error { return h.node.Sync(h.Context(), &datanode.SyncRequest{Disk: h.disk, Epoch: 1}) })
}

// destage does a round for the last chunks.
func (h *benchHost) destage(chunks int) {
	ctx := h.Context()
	h.seq++
	number := uint64(h.disk)<<20 | uint64(h.seq)
	prints := make([]id.Fingerprint, chunks)
	slots := make([]datanode.SlotEntry, chunks)
	for i := range prints {
		for k := 0; k < len(prints[i]); k += 8 {
			binary.LittleEndian.PutUint64(prints[i][k:], h.rng.Uint64())
		}
		location, _ := id.MakeLocation(i*benchSealed/16*16, benchSealed)
		slots[i] = datanode.SlotEntry{Slot: id.Slot(i), Fingerprint: prints[i], Location: location, PlainBytes: 4096}
	}
	h.time(benchLookup, func() error {
		_, err := h.node.Lookup(ctx, &datanode.LookupRequest{Disk: h.disk, Epoch: 1, Seq: h.seq, Fingerprints: prints})
		return err
	})
	header := datanode.SegmentHeader{
		Segment: id.MakeSegment(0, number), Kind: datanode.KindChunks, K: benchK, M: benchM, DataBytes: uint32(chunks * benchSealed),
		Births: []datanode.Birth{{Disk: h.disk, Epoch: 1, Slots: uint16(chunks)}},
	}
	w := &datanode.WriteFragmentsRequest{Header: header, LayoutVersion: 1}
	size := len(h.stripe) / (benchK + benchM)
	for i := range benchK + benchM {
		w.Fragments = append(w.Fragments, datanode.Fragment{Spindle: id.Spindle(i), Index: uint8(i), Data: h.stripe[i*size:][:size]})
	}
	h.time(benchFragments, func() error {
		reply, err := h.node.WriteFragments(ctx, w)
		for i := 0; err == nil && i < len(reply.Errors); i++ {
			if e := reply.Errors[i]; e != nil {
				err = e
			}
		}
		return err
	})
	h.time(benchPublish, func() error {
		return h.node.Publish(ctx, &datanode.PublishRequest{Segments: []datanode.SegmentEntry{{Header: header, FragmentBytes: uint32(size), Slots: slots}}})
	})
	bits := make([]byte, (chunks+7)/8)
	for slot := range chunks {
		bits[slot/8] |= 1 << (slot % 8)
	}
	h.lists = append(h.lists, datanode.List{Segment: header.Segment, Bits: bits})
	if len(h.lists) == benchListEach {
		h.time(benchPublish, func() error {
			_, err := h.node.SetLists(ctx, &datanode.SetListsRequest{Disk: h.disk, Epoch: 1, Seq: h.seq, Lists: h.lists})
			return err
		})
		h.lists = h.lists[:0]
	}
	result := datanode.Record{Pos: h.next[datanode.Results], Type: 1, Data: make([]byte, chunks*40)}
	h.next[datanode.Results]++
	h.time(benchResult, func() error {
		_, err := h.node.Append(ctx, &datanode.AppendRequest{Disk: h.disk, Epoch: 1, Stream: datanode.Results, Class: datanode.ClassMark, Records: []datanode.Record{result}})
		return err
	})
	h.sync()
	for stream, next := range h.next {
		h.time(benchResult, func() error {
			return h.node.TrimLog(ctx, &datanode.TrimLogRequest{Disk: h.disk, Epoch: 1, Stream: datanode.Stream(stream), Through: next - 1})
		})
	}
}

// BenchmarkHosts is what a data node does for random writes of 4 KiB, by so many
// hosts at once, with the host's own work and the wire left out: an operation is one
// write. The CPU time is the whole process's.
func BenchmarkHosts(b *testing.B) {
	for _, hosts := range []int{1, 8, 32, 128} {
		b.Run(fmt.Sprint(hosts), func(b *testing.B) { benchmarkHosts(b, hosts) })
	}
}

func benchmarkHosts(b *testing.B, hosts int) {
	o := Options{
		PoolID: [16]byte{1}, Spindles: benchK + benchM, SpindleBytes: int64(b.N/benchChunks+2*hosts)*(1100<<10) + 64<<20, LogBytes: 4 << 30,
		Logger: slog.New(slog.DiscardHandler),
	}
	dir := b.TempDir() + "/node"
	if err := Create(dir, o); err != nil {
		b.Fatal(err)
	}
	node, err := Open(b.Context(), dir, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { node.Close() })
	all := make([]*benchHost, hosts)
	for i := range all {
		h := &benchHost{B: b, node: node, disk: id.Disk(i + 1), rng: rand.New(rand.NewPCG(uint64(i), 1))}
		h.record, h.stripe = make([]byte, benchSealed), make([]byte, (benchK+benchM)*(benchChunks*benchSealed/benchK/datanode.BlockBytes+1)*datanode.BlockBytes)
		fill(h.rng, h.record)
		fill(h.rng, h.stripe)
		all[i] = h
	}
	b.ResetTimer()
	before := cpuTime(b)
	var running sync.WaitGroup
	for _, h := range all {
		running.Go(func() { h.run(b.N / hosts) })
	}
	running.Wait()
	b.ReportMetric(float64(cpuTime(b)-before)/1000/float64(b.N), "cpu-µs/write")
	var spent [benchStages]time.Duration
	for _, h := range all {
		for i, d := range h.spent {
			spent[i] += d
		}
	}
	for i, name := range []string{"append", "sync", "lookup", "fragments", "index", "result"} {
		b.ReportMetric(float64(spent[i])/1000/float64(b.N), name+"-µs/write")
	}
}

func fill(rng *rand.Rand, p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
