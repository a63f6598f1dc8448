package wire

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
)

// memoryNode answers at once: what is measured beside it is the wire.
type memoryNode struct {
	datanode.Node
	data []byte
}

func (n *memoryNode) Status(context.Context) (*datanode.Status, error) {
	return &datanode.Status{PoolID: [16]byte{7}}, nil
}

func (n *memoryNode) Append(context.Context, *datanode.AppendRequest) (*datanode.AppendReply, error) {
	return &datanode.AppendReply{}, nil
}

func (n *memoryNode) WriteFragments(_ context.Context, r *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return &datanode.WriteFragmentsReply{Errors: make([]*datanode.Error, len(r.Fragments))}, nil
}

func (n *memoryNode) ReadFragments(_ context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	out := &datanode.ReadFragmentsReply{Results: make([]datanode.FragmentData, len(r.Ranges))}
	for i, g := range r.Ranges {
		out.Results[i].Data = n.data[:g.Length]
	}
	return out, nil
}

// benchNodes calls f with a node in this process and the same over the wire.
func benchNodes(b *testing.B, node datanode.Node, f func(b *testing.B, node datanode.Node)) {
	b.Run("inprocess", func(b *testing.B) { f(b, node) })
	for _, network := range []string{"tcp", "unix"} {
		b.Run(network, func(b *testing.B) {
			ca := newAuthority(b)
			address := "127.0.0.1:0"
			if network == "unix" {
				address = "unix:" + filepath.Join(b.TempDir(), "s")
			}
			v := serve(b, node, ServerOptions{TLS: ca.node(b)}, address)
			defer v.stop(b)
			c := dial(b, ClientOptions{TLS: ca.host(b), Paths: []string{v.address}})
			defer func() { _ = c.Close() }()
			f(b, c)
		})
	}
}

// depth has n callers share b.N calls, and reports the CPU time of both sides.
func depth(b *testing.B, n int, call func(caller int) error) {
	b.Helper()
	b.ReportAllocs()
	var callers sync.WaitGroup
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	before := time.Duration(used.Utime.Nano() + used.Stime.Nano())
	b.ResetTimer()
	for i := range n {
		share := b.N / n
		if i < b.N%n {
			share++
		}
		callers.Go(func() {
			for range share {
				if err := call(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	cpu := time.Duration(used.Utime.Nano()+used.Stime.Nano()) - before
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(b.N), "cpu-µs/op")
}

func BenchmarkAppend4K(b *testing.B) {
	benchNodes(b, &memoryNode{}, func(b *testing.B, node datanode.Node) {
		for _, n := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("depth=%d", n), func(b *testing.B) {
				data := make([]byte, 4096)
				b.SetBytes(int64(len(data)))
				depth(b, n, func(caller int) error {
					_, err := node.Append(b.Context(), &datanode.AppendRequest{Disk: id.Disk(caller), Records: []datanode.Record{{Data: data}}})
					return err
				})
			})
		}
	})
}

func BenchmarkWriteFragments1M(b *testing.B) {
	benchNodes(b, &memoryNode{}, func(b *testing.B, node datanode.Node) {
		for _, n := range []int{1, 4} {
			b.Run(fmt.Sprintf("depth=%d", n), func(b *testing.B) {
				data := make([]byte, 1<<20)
				b.SetBytes(int64(len(data)))
				depth(b, n, func(int) error {
					_, err := node.WriteFragments(b.Context(), &datanode.WriteFragmentsRequest{Fragments: []datanode.Fragment{{Data: data}}})
					return err
				})
			})
		}
	})
}

func BenchmarkReadFragments1M(b *testing.B) {
	benchNodes(b, &memoryNode{data: make([]byte, 1<<20)}, func(b *testing.B, node datanode.Node) {
		for _, n := range []int{1, 4} {
			b.Run(fmt.Sprintf("depth=%d", n), func(b *testing.B) {
				b.SetBytes(1 << 20)
				into := make([][]byte, n)
				for i := range into {
					into[i] = make([]byte, 1<<20)
				}
				depth(b, n, func(caller int) error {
					_, err := node.ReadFragments(b.Context(), &datanode.ReadFragmentsRequest{
						Ranges: []datanode.FragmentRange{{Length: 1 << 20}}, Into: into[caller],
					})
					return err
				})
			})
		}
	})
}

// A small call beside bulk writes, which fill the network.
func BenchmarkAppend4KBesideBulk(b *testing.B) {
	benchNodes(b, &memoryNode{}, func(b *testing.B, node datanode.Node) {
		ctx, stop := context.WithCancel(b.Context())
		var bulk sync.WaitGroup
		for range 4 {
			bulk.Go(func() {
				data := make([]byte, 1<<20)
				for ctx.Err() == nil {
					_, _ = node.WriteFragments(ctx, &datanode.WriteFragmentsRequest{Fragments: []datanode.Fragment{{Data: data}}})
				}
			})
		}
		data, took := make([]byte, 4096), make([]time.Duration, 0, b.N)
		for b.Loop() {
			began := time.Now()
			if _, err := node.Append(b.Context(), &datanode.AppendRequest{Records: []datanode.Record{{Data: data}}}); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		stop()
		bulk.Wait()
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	})
}
