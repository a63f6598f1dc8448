package registry

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"plinth/datanode"
)

func cpuNanos(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// benchmarkCalls has callers make calls at once, each in turn, on files.
func benchmarkCalls(b *testing.B, callers int, call func(p *Pebble, caller, n int) error) {
	p, err := Open(vfs.Default, b.TempDir()+"/r", Options{Create: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	before := cpuNanos(b)
	var running sync.WaitGroup
	for c := range callers {
		running.Go(func() {
			for n := 0; left.Add(-1) >= 0; n++ {
				if err := call(p, c, n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	b.ReportMetric(float64(cpuNanos(b)-before)/1000/float64(b.N), "cpu-µs/op")
}

// BenchmarkCommit is a disk's record replaced, as after each checkpoint.
func BenchmarkCommit(b *testing.B) {
	value := make([]byte, 600)
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			benchmarkCalls(b, callers, func(p *Pebble, caller, n int) error {
				_, err := p.RegistryCommit(b.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: fmt.Sprintf("checkpoint/%04d", caller), Value: value}}})
				return err
			})
		})
	}
}

// BenchmarkKeepAlive is a host's lease kept alive.
func BenchmarkKeepAlive(b *testing.B) {
	const hosts = 128
	var leases [hosts]datanode.LeaseID
	var once [hosts]sync.Once
	benchmarkCalls(b, hosts, func(p *Pebble, caller, _ int) (err error) {
		once[caller].Do(func() {
			var reply *datanode.RegistryGrantReply
			if reply, err = p.RegistryGrant(b.Context(), &datanode.RegistryGrantRequest{TTL: datanode.LeaseTTLMax}); err == nil {
				leases[caller] = reply.Lease
			}
		})
		if err != nil {
			return err
		}
		return p.RegistryKeepAlive(b.Context(), &datanode.RegistryKeepAliveRequest{Lease: leases[caller]})
	})
}
