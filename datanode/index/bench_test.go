package index

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// benchSlots is the number of chunks in a typical segment.
const benchSlots = 2000

// filled is an index of that many segments, each content once, on a real file
// system.
func filled(b *testing.B, segments int) *house {
	h := &house{TB: b, fs: vfs.Default, epochs: map[id.Disk]id.Epoch{}, deleted: map[id.Segment]int{}}
	x, err := Open(h.fs, b.TempDir(), h.deps(), Options{Create: true})
	h.ok(err)
	h.Index = x
	b.Cleanup(func() { x.Close() })
	for n := range segments {
		h.publish(benchPack(n))
	}
	h.rows.Lock()
	h.ok(h.putTable())
	h.rows.Unlock()
	h.ok(h.store.DB.Flush())
	return h
}

func benchPack(n int) datanode.SegmentEntry {
	contents := make([]int, benchSlots)
	for i := range contents {
		contents[i] = n*benchSlots + i
	}
	return pack(uint64(n+1), contents)
}

func benchmarkLookup(b *testing.B, first int) {
	const segments = 100
	h := filled(b, segments)
	r := &datanode.LookupRequest{Disk: 2, Epoch: 1}
	for b.Loop() {
		b.StopTimer()
		r.Seq++
		r.Fingerprints = r.Fingerprints[:0]
		start := rand.IntN(segments*benchSlots - datanode.FingerprintsMax)
		for i := range datanode.FingerprintsMax {
			r.Fingerprints = append(r.Fingerprints, fp(first+start+i))
		}
		b.StartTimer()
		_, err := h.Lookup(context.Background(), r)
		h.ok(err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/datanode.FingerprintsMax, "ns/fingerprint")
}

func BenchmarkLookupHit(b *testing.B)  { benchmarkLookup(b, 0) }
func BenchmarkLookupMiss(b *testing.B) { benchmarkLookup(b, 1<<40) }

// All hits are in segments that are condemned.
func BenchmarkLookupCondemned(b *testing.B) {
	const segments = 100
	h := filled(b, segments)
	for n := range uint64(segments) {
		h.condemn(n + 1)
	}
	r := &datanode.LookupRequest{Disk: 2, Epoch: 1}
	for i := range datanode.FingerprintsMax {
		r.Fingerprints = append(r.Fingerprints, fp(i))
	}
	for b.Loop() {
		r.Seq++
		_, err := h.Lookup(context.Background(), r)
		h.ok(err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/datanode.FingerprintsMax, "ns/fingerprint")
}

// Each list is of a copy of what its disk holds of another segment, or of that.
func BenchmarkSetListsMoved(b *testing.B) {
	h := filled(b, 0)
	const segments = 64
	contents := make([]int, benchSlots)
	for n := range uint64(segments) {
		for i := range contents {
			contents[i] = int(n)*benchSlots + i
		}
		h.publish(pack(n+1, contents))
		h.condemn(n + 1)
		h.ok(h.moved(n+1, 1000+n, contents))
	}
	var lists []datanode.List
	for n := range uint64(segments) {
		all := bytes.Repeat([]byte{255}, benchSlots/8)
		lists = append(lists, datanode.List{Segment: id.MakeSegment(3, n+1), Bits: all},
			datanode.List{Segment: id.MakeSegment(3, 1000+n), Bits: all})
	}
	seq := id.Seq(0)
	for b.Loop() {
		seq++
		h.setLists(1, 1, seq, lists...)
	}
}

func BenchmarkPublish(b *testing.B) {
	h := filled(b, 100)
	n := 100
	for b.Loop() {
		b.StopTimer()
		e := benchPack(n)
		n++
		b.StartTimer()
		h.publish(e)
	}
}

func BenchmarkSetListsEmpty(b *testing.B) {
	h := filled(b, 1)
	var lists []datanode.List
	for n := range datanode.SegmentsMax {
		h.publish(pack(uint64(n+1000), []int{n}, datanode.Birth{Disk: 1, Epoch: 1, Slots: 1}))
		lists = append(lists, list(uint64(n+1000)))
	}
	seq := id.Seq(0)
	for b.Loop() {
		seq++
		h.setLists(1, 1, seq, lists...)
	}
}

// BenchmarkUsage walks 131,000 segments of 2,000 slots, 1 TiB of 8 MiB each, on
// all of which two disks have lists.
func BenchmarkUsage(b *testing.B) {
	const segments, slots = 131_000, 2000
	h := filled(b, 0)
	for n := 0; n < segments; n += 256 {
		batch := h.store.DB.NewBatch()
		for s := n; s < min(n+256, segments); s++ {
			seg := id.MakeSegment(3, uint64(s+1))
			row := segmentRow{state: datanode.StateLive, kind: datanode.KindChunks, k: 8, m: 2, dataBytes: 8 << 20, fragmentBytes: 1 << 20,
				births: []datanode.Birth{{Disk: 1, Epoch: 1, Slots: slots}}}
			set(batch, segmentKey(keySegment, seg), row.encode())
			bits := make([]byte, slots/8)
			for i := range bits {
				bits[i] = byte(rand.Uint32()) | 1
			}
			for d := range id.Disk(2) {
				set(batch, listKey(seg, d+1), (&listRow{last: update{1, 1}, set: update{1, 1}, bits: bits}).encode())
			}
		}
		h.ok(h.store.Commit(batch))
	}
	h.ok(h.store.DB.Flush())
	for b.Loop() {
		r := &datanode.UsageRequest{}
		for more := true; more; {
			reply, err := h.Usage(context.Background(), r)
			h.ok(err)
			r.After, more = reply.Segments[len(reply.Segments)-1].Segment, reply.More
		}
	}
}
