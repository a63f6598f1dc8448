package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/memory"
)

// Nothing is allocated for a request, inline or by workers, whatever the form.
func TestRequestsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		return // the detector allocates
	}
	for _, form := range []client.Form{client.Simple, client.Structured, client.Extended} {
		for name, d := range map[string]nbd.Device{"inline": memory.New(mib), "workers": slow{memory.New(mib)}} {
			h := serve(t, "unix", nbd.Options{}, nbd.Export{Name: "disk", Device: d})
			c := h.openAs(t, "disk", client.Options{Form: form})
			p := bytes.Repeat([]byte{1}, 4096)
			n := testing.AllocsPerRun(2000, func() {
				if err := errors.Join(c.WriteAt(t.Context(), p, 4096, false), c.ReadAt(t.Context(), p, 4096)); err != nil {
					t.Fatal(err)
				}
			})
			// Server and client together; a garbage collection empties pools.
			if n >= 1 {
				t.Errorf("form %d, %s: %v allocations for a write and a read", form, name, n)
			}
		}
	}
}

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
			name := fmt.Sprintf("%s/bytes=%d/depth=%d", bench.op, bench.bytes, bench.depth)
			var d nbd.Device = memory.New(deviceBytes)
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
