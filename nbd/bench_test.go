package nbd_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/nbd"
	"plinth/nbd/nbdtest"
)

// Server and our client over a unix socket in one process: ops/s, and the
// allocations of both together.
func BenchmarkUnix(b *testing.B) {
	for _, bench := range []struct {
		op    string
		bytes int
		depth int
	}{
		{"read", 4 << 10, 1}, {"read", 4 << 10, 32}, {"write", 4 << 10, 1}, {"write", 4 << 10, 32},
		{"read", 1 << 20, 4}, {"write", 1 << 20, 4},
	} {
		for _, inline := range []bool{true, false} {
			if bench.op == "write" && inline {
				continue // only reads are answered inline
			}
			name := fmt.Sprintf("%s/bytes=%d/depth=%d", bench.op, bench.bytes, bench.depth)
			var d nbd.Device = nbdtest.NewMemory(deviceBytes)
			if inline {
				name += "/inline"
			} else {
				d = slow{d}
			}
			b.Run(name, func(b *testing.B) { benchmark(b, d, bench.op == "read", bench.bytes, bench.depth) })
		}
	}
}

const deviceBytes = 64 << 20

func benchmark(b *testing.B, d nbd.Device, read bool, n, depth int) {
	h := serve(b, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: d})
	c := h.open(b, "disk")
	ctx := context.Background()
	for off := int64(0); off < deviceBytes; off += 1 << 20 {
		if err := d.WriteAt(ctx, make([]byte, 1<<20), off, false); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			p := make([]byte, n)
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				off := i * 7919 % int64(deviceBytes/n) * int64(n)
				var err error
				if read {
					err = c.ReadAt(ctx, p, off)
				} else {
					err = c.WriteAt(ctx, p, off, false)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
