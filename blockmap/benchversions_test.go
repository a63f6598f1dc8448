package blockmap

import (
	"context"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/id"
)

// BenchmarkVersions reads, compares, clones and sweeps a map of 262,144 entries
// (1 GiB), of which each of 10,000 snapshots has overwritten 0.1 % at random and
// one hot one.
func BenchmarkVersions(b *testing.B) {
	const entries, snapshots = 1 << 18, 10_000
	s := newStore()
	opts := testOptions(b, s)
	opts.FS, opts.Dir = vfs.Default, b.TempDir()+"/map"
	opts.Cache = NewCache(1<<30, 4096)
	b.Cleanup(opts.Cache.Close)
	m := mustCreate(b, opts)
	r := newRand(1)
	mustApply(b, m, &Batch{Updates: updates(0, entries, 0)}, "")
	for i := range id.Snapshot(snapshots) {
		u := updates(0, entries/1000, r.Uint64N(1<<40))
		for i := range u[1:] {
			u[1+i].LBA = id.LBA(r.Uint64N(entries))
		}
		mustApply(b, m, &Batch{Gen: m.NextGen(false), Updates: u, Mark: Mark{Snapshot: i + 1}}, "")
	}
	c := mustCheckpoint(b, m)
	look := func(name string, l looker, n int, at func() id.LBA) {
		b.Run(fmt.Sprintf("LookupRange/%s/%d", name, n), func(b *testing.B) {
			out := make([]Entry, n)
			for b.Loop() {
				if err := l.LookupRange(at(), out); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/entry")
		})
	}
	random := func() id.LBA { return id.LBA(r.Uint64N(entries - 256)) }
	look("the map", m, 1, random)
	look("the map", m, 256, random)
	views := map[id.Snapshot]*View{}
	for _, n := range []id.Snapshot{1, 5000, snapshots} {
		v, err := m.At(n)
		if err != nil {
			b.Fatal(err)
		}
		views[n] = v
		look(fmt.Sprint("snapshot ", n), v, 1, random)
		look(fmt.Sprint("snapshot ", n), v, 256, random)
		look(fmt.Sprint("hot, snapshot ", n), v, 1, func() id.LBA { return 0 })
	}
	for _, since := range []id.Snapshot{1, 5000} {
		b.Run(fmt.Sprintf("Changes/since %d", since), func(b *testing.B) {
			n := id.LBA(0)
			for b.Loop() {
				n = 0
				stopped, err := views[snapshots].Changes(views[since], 0, entries, 1<<30, func(e Extent) { n += e.End - e.First })
				if err != nil || stopped != entries {
					b.Fatal(stopped, err)
				}
			}
			b.ReportMetric(float64(n), "changed")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*entries), "ns/LBA")
		})
	}
	b.Run("At", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.At(77); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, name := range []string{"Attach", "AttachClone"} {
		b.Run(name, func(b *testing.B) {
			opts := opts
			opts.Dir = b.TempDir() + "/attached"
			for b.Loop() {
				var a *Map
				var err error
				if name == "Attach" {
					a, err = Attach(context.Background(), c.Manifest, opts)
				} else {
					a, err = AttachClone(context.Background(), c.Manifest, 77, nil, opts)
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				mustClose(b, a)
				b.StartTimer()
			}
		})
	}
	b.Run("Sweep", func(b *testing.B) {
		kept := int64(0)
		for b.Loop() {
			s, err := m.Snapshot()
			if err != nil {
				b.Fatal(err)
			}
			report, err := s.Sweep(context.Background(), nil, nil, func(*Version) error { return nil })
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
			kept = report.Kept
		}
		b.ReportMetric(float64(kept), "versions")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(kept), "ns/version")
	})
}
