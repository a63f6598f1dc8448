package writelog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// benchLog is a log of real files with one stream per disk.
func benchLog(b *testing.B, disks int) *Log {
	opts := small
	opts.Dir, opts.SizeBytes, opts.FileBytes = b.TempDir(), 1<<30, 0
	l := mustOpen(b, vfs.Default, opts)
	for n := range disks {
		l.mustFence(b, id.Disk(n+1), 1)
	}
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	return l
}

// appender appends 4 KiB records and trims now and then.
type appender struct {
	l *Log
	r datanode.AppendRequest
}

func newAppender(l *Log, number id.Disk) *appender {
	return &appender{l, datanode.AppendRequest{Disk: number, Epoch: 1, Records: []datanode.Record{{Pos: 1, Data: make([]byte, 4096)}}}}
}

func (a *appender) append(b *testing.B) {
	if _, err := a.l.Append(context.Background(), &a.r); err != nil {
		b.Fatal(err)
	}
	pos := &a.r.Records[0].Pos
	if *pos%64 == 0 {
		if err := a.l.testTrim(a.r.Disk, 1, 0, *pos); err != nil {
			b.Fatal(err)
		}
	}
	*pos++
}

func BenchmarkAppend(b *testing.B) {
	l := benchLog(b, 1)
	a := newAppender(l, 1)
	for b.Loop() {
		a.append(b)
	}
}

func BenchmarkAppendSync(b *testing.B) {
	for _, waiters := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(waiters), func(b *testing.B) {
			l := benchLog(b, waiters)
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for n := range waiters {
				a := newAppender(l, id.Disk(n+1))
				group.Go(func() {
					for left.Add(-1) >= 0 {
						a.append(b)
						if err := l.testSync(a.r.Disk, 1); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
		})
	}
}
