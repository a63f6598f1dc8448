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
func benchLog(b *testing.B, disks, bytes int) *Log {
	opts := small
	opts.Dir, opts.SizeBytes, opts.FileBytes = b.TempDir(), 1<<30, 0
	l := mustOpen(b, vfs.Default, opts)
	for n := range disks {
		l.mustFence(b, id.Disk(n+1), 1)
	}
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	b.ResetTimer()
	return l
}

// appender appends records, several at once, and trims now and then.
type appender struct {
	l *Log
	r datanode.AppendRequest
}

func newAppender(l *Log, number id.Disk, records, bytes int) *appender {
	a := &appender{l, datanode.AppendRequest{Disk: number, Epoch: 1, Records: make([]datanode.Record, records)}}
	for i := range a.r.Records {
		a.r.Records[i] = datanode.Record{Pos: id.Pos(1 + i), Data: make([]byte, bytes)}
	}
	return a
}

func (a *appender) append(b *testing.B) {
	if _, err := a.l.Append(context.Background(), &a.r); err != nil {
		b.Fatal(err)
	}
	records := a.r.Records
	n := id.Pos(len(records))
	if end := records[0].Pos + n - 1; end%(64*n) == 0 {
		if err := a.l.testTrim(a.r.Disk, 1, 0, end); err != nil {
			b.Fatal(err)
		}
	}
	for i := range records {
		records[i].Pos += n
	}
}

// BenchmarkAppend appends one record of a whole chunk, and what a write of 1 MiB
// makes that compresses to half: 256 records, in appends of 128.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ records, bytes int }{{1, 4096}, {128, 2200}} {
		b.Run(fmt.Sprintf("records=%d", c.records), func(b *testing.B) {
			l := benchLog(b, 1, c.records*c.bytes)
			a := newAppender(l, 1, c.records, c.bytes)
			for b.Loop() {
				a.append(b)
			}
		})
	}
}

func BenchmarkAppendSync(b *testing.B) {
	for _, waiters := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(waiters), func(b *testing.B) {
			l := benchLog(b, waiters, 4096)
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for n := range waiters {
				a := newAppender(l, id.Disk(n+1), 1, 4096)
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
