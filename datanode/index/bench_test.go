package index

import (
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
	h.ok(h.store.DB.Flush()) // rows in memory have no filter
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
