package remote

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// seekTime is what a read of a drive takes in BenchmarkReadsAfterMove, and each drive does
// one at a time.
const seekTime = 8 * time.Millisecond

// seeking has drives take seekTime for each read, from when on is set.
func seeking(on *atomic.Bool) vfs.FS {
	var drives sync.Map // *sync.Mutex by path
	return errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on.Load() && op.Kind == errorfs.OpFileReadAt && strings.Contains(op.Path, "spindle-") {
			mu, _ := drives.LoadOrStore(filepath.Dir(op.Path), new(sync.Mutex))
			mu.(*sync.Mutex).Lock()
			defer mu.(*sync.Mutex).Unlock()
			time.Sleep(seekTime)
		}
		return nil
	}))
}

// BenchmarkReadsAfterMove reads blocks of 4 KiB of a disk in random order, each once, by
// way of the host to which it has just moved: with the flash of the host before, or
// without. -benchtime 1x.
func BenchmarkReadsAfterMove(b *testing.B) {
	const size = 16 << 20
	for _, drives := range []string{"seek", "page-cache"} {
		for _, depth := range []int{1, 32} {
			for _, from := range []string{"spindles", "peer"} {
				b.Run(fmt.Sprintf("%s/depth=%d/%s", drives, depth, from), func(b *testing.B) {
					var slow atomic.Bool
					f := newFarOn(b, seeking(&slow))
					before, after := f.lends(b, "b", &link{}), f.lends(b, "a", &link{})
					after.Host.FlashAnswer = 0 // the default
					if from == "spindles" {
						before.Host.FlashPath, before.Host.FlashBytes = "", 0
					}
					at := openAgent(b, after)
					content, d := warm(b, at, openAgent(b, before), size)
					blocks := rand.New(rand.NewPCG(1, 2)).Perm(size / blockBytes)
					for _, block := range blocks[:64] { // so that there is a connection
						readBlock(b, d, content, block)
					}
					blocks = blocks[64:]
					if slow.Store(drives == "seek"); drives == "seek" {
						blocks = blocks[:max(256, 32*depth)]
					}
					took := make([]time.Duration, len(blocks))
					var next atomic.Int64
					var readers sync.WaitGroup
					stored, _, peer := reads(b, at)
					b.ResetTimer()
					began := time.Now()
					for range depth {
						readers.Go(func() {
							for i := next.Add(1) - 1; int(i) < len(blocks); i = next.Add(1) - 1 {
								began := time.Now()
								readBlock(b, d, content, blocks[i])
								took[i] = time.Since(began)
							}
						})
					}
					readers.Wait()
					all := time.Since(began)
					b.StopTimer()
					nowStored, _, nowPeer := reads(b, at)
					slices.Sort(took)
					b.ReportMetric(float64(len(took))/all.Seconds(), "reads/s")
					b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
					b.ReportMetric(float64(nowStored-stored), "of-spindles")
					b.ReportMetric(float64(nowPeer-peer), "of-peer")
				})
			}
		}
	}
}
