package spindle

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// stripeRequest is a segment of 10 fragments of 1 MiB.
func (r *rig) stripeRequest() *datanode.WriteFragmentsRequest {
	q := &datanode.WriteFragmentsRequest{Header: segmentHeader(1)}
	for i := range 10 {
		q.Fragments = append(q.Fragments, datanode.Fragment{Spindle: id.Spindle(i), Index: uint8(i), Data: r.noise(256)})
	}
	return q
}

// BenchmarkWriteFragments writes stripes of 10 x 1 MiB, one or several at once,
// and deletes each when 32 more are written.
func BenchmarkWriteFragments(b *testing.B) {
	for _, bench := range []struct {
		name string
		at   int
	}{{"one", 1}, {"four", 4}} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b, vfs.Default, b.TempDir(), 10, Options{SizeBytes: 1 << 30})
			request := r.stripeRequest()
			b.SetBytes(10 << 20)
			b.ResetTimer()
			next := make(chan id.Segment)
			done := make(chan struct{})
			for range bench.at {
				go func() {
					defer func() { done <- struct{}{} }()
					for s := range next {
						q := *request
						q.Header.Segment = s
						reply, err := r.WriteFragments(context.Background(), &q)
						if err != nil || reply.Errors[0] != nil {
							b.Error(err)
						}
						if s > 32 {
							if err := r.Delete(context.Background(), s-32); err != nil {
								b.Error(err)
							}
						}
					}
				}()
			}
			for n := range b.N {
				next <- id.Segment(n + 1)
			}
			close(next)
			for range bench.at {
				<-done
			}
		})
	}
}

// BenchmarkRead4K reads 4 KiB ranges that the page cache holds.
func BenchmarkRead4K(b *testing.B) {
	r := newRig(b, vfs.Default, b.TempDir(), 10, Options{SizeBytes: 1 << 30})
	if _, err := r.WriteFragments(context.Background(), r.stripeRequest()); err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name   string
		ranges int
		verify bool
	}{{"plain", 1, false}, {"verify", 1, true}, {"plain16", 16, false}} {
		b.Run(bench.name, func(b *testing.B) {
			q := &datanode.ReadFragmentsRequest{Ranges: make([]datanode.FragmentRange, bench.ranges), Verify: bench.verify}
			b.SetBytes(int64(bench.ranges) * 4096)
			b.ReportAllocs()
			for n := range b.N {
				for i := range q.Ranges {
					sp := (n + i) % 10
					q.Ranges[i] = datanode.FragmentRange{Spindle: id.Spindle(sp), Segment: 1, Index: uint8(sp),
						Offset: uint32((n*37+i)%256) * 4096, Length: 4096}
				}
				reply, err := r.ReadFragments(context.Background(), q)
				if err != nil || reply.Results[0].Err != nil {
					b.Fatal(err, reply.Results[0].Err)
				}
			}
		})
	}
}

// BenchmarkScrub verifies a whole fragment of 1 MiB.
func BenchmarkScrub(b *testing.B) {
	r := newRig(b, vfs.Default, b.TempDir(), 10, Options{SizeBytes: 1 << 30})
	if _, err := r.WriteFragments(context.Background(), r.stripeRequest()); err != nil {
		b.Fatal(err)
	}
	q := &datanode.ReadFragmentsRequest{Ranges: []datanode.FragmentRange{{Segment: 1}}, Verify: true, Discard: true}
	b.SetBytes(1 << 20)
	for range b.N {
		if reply, err := r.ReadFragments(context.Background(), q); err != nil || reply.Results[0].Err != nil {
			b.Fatal(err)
		}
	}
}
