package blockmap

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

const (
	benchEntries = 1 << 20
	benchBatch   = 16 << 10
)

// benchMap returns a map of benchEntries entries on real files, compacted.
func benchMap(b *testing.B) (*Map, *store) {
	b.Helper()
	s := newStore()
	opts := testOptions(b, s)
	opts.FS, opts.Dir = vfs.Default, b.TempDir()+"/map"
	opts.Cache = NewCache(256<<20, 4096)
	b.Cleanup(opts.Cache.Close)
	m := mustCreate(b, opts)
	for at := 0; at < benchEntries; at += benchBatch {
		mustApply(b, m, &Batch{Updates: updates(id.LBA(at), benchBatch, uint64(at))}, "")
	}
	return m, s
}

func BenchmarkLookupRange(b *testing.B) {
	m, _ := benchMap(b)
	mustCheckpoint(b, m)
	for _, gens := range []string{"one generation", "two generations"} {
		for _, n := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("%s/%d", gens, n), func(b *testing.B) {
				r := newRand(1)
				out := make([]Entry, n)
				b.ReportAllocs()
				for b.Loop() {
					if err := m.LookupRange(id.LBA(r.Uint64N(benchEntries-uint64(n))), out); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/entry")
			})
		}
		mustApply(b, m, &Batch{Gen: m.Gen() + 1, Updates: updates(0, 1, 1)}, "")
	}
}

// BenchmarkLookupHole looks anywhere in 64 TiB, of which 64 MiB have data, after trims
// of all but that.
func BenchmarkLookupHole(b *testing.B) {
	const chunks, data = 1 << 34, 1 << 14
	for _, trims := range []int{0, 1, 1 << 15} {
		s := newStore()
		m := mustCreate(b, testOptions(b, s))
		mustApply(b, m, &Batch{Updates: updates(0, data, 1)}, "")
		for i := range id.LBA(trims) {
			n := id.LBA(chunks / trims)
			mustApply(b, m, &Batch{Gen: m.Gen() + 1, Trims: []Extent{{max(data, i*n), (i + 1) * n}}}, "")
		}
		mustApply(b, m, &Batch{Gen: m.Gen(), Updates: updates(0, data, 2)}, "")
		c := mustCheckpoint(b, m)
		for _, how := range []string{"the same map", "attached"} {
			b.Run(fmt.Sprintf("%d trims, %s", trims, how), func(b *testing.B) {
				r := newRand(1)
				var out [1]Entry
				for b.Loop() {
					if err := m.LookupRange(id.LBA(r.Uint64N(chunks)), out[:]); err != nil {
						b.Fatal(err)
					}
				}
			})
			mustClose(b, m)
			m = mustAttach(b, c.Manifest, testOptions(b, s))
		}
		mustClose(b, m)
	}
}

func BenchmarkApply(b *testing.B) {
	m, _ := benchMap(b)
	r := newRand(2)
	for _, kind := range []string{"sequential", "random"} {
		b.Run(kind, func(b *testing.B) {
			batch := Batch{Gen: m.Gen()}
			for b.Loop() {
				b.StopTimer()
				batch.Updates = updates(id.LBA(r.Uint64N(benchEntries-benchBatch)), benchBatch, r.Uint64N(1<<40))
				if kind == "random" {
					for i := range batch.Updates {
						batch.Updates[i].LBA = id.LBA(r.Uint64N(benchEntries))
					}
				}
				b.StartTimer()
				mustApply(b, m, &batch, "state")
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchBatch), "ns/update")
		})
	}
}

// BenchmarkCheckpoint takes a checkpoint after each 64 k random updates, with
// the longest time that a concurrent Apply took.
func BenchmarkCheckpoint(b *testing.B) {
	m, _ := benchMap(b)
	first := mustCheckpoint(b, m)
	r := newRand(3)
	uploaded, stall := int64(0), time.Duration(0)
	for b.Loop() {
		b.StopTimer()
		for range 4 {
			u := updates(0, benchBatch, r.Uint64N(1<<40))
			for i := range u {
				u[i].LBA = id.LBA(r.Uint64N(benchEntries))
			}
			mustApply(b, m, &Batch{Updates: u}, "state")
		}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				start := time.Now()
				if m.Apply(&Batch{Updates: updates(5, 1, 7)}, nil) != nil {
					return
				}
				stall = max(stall, time.Since(start))
				time.Sleep(100 * time.Microsecond)
			}
		}()
		b.StartTimer()
		c := mustCheckpoint(b, m)
		b.StopTimer()
		close(stop)
		<-done
		b.StartTimer()
		uploaded += c.UploadedBytes
	}
	b.ReportMetric(float64(first.UploadedBytes)/benchEntries, "first-B/entry")
	b.ReportMetric(float64(uploaded)/float64(b.N*4*benchBatch), "uploaded-B/update")
	b.ReportMetric(float64(stall.Microseconds())/1000, "ms-longest-apply")
}

func BenchmarkAttach(b *testing.B) {
	m, s := benchMap(b)
	c := mustCheckpoint(b, m)
	opts := testOptions(b, s)
	opts.FS, opts.Dir = vfs.Default, b.TempDir()+"/attached"
	reads := s.reads
	for b.Loop() {
		m, err := Attach(context.Background(), c.Manifest, opts)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(c.Objects)), "tables")
	b.ReportMetric(float64(len(c.Manifest)), "manifest-B")
	b.ReportMetric(float64(s.reads-reads)/float64(b.N), "reads")
}
