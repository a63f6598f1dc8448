package writelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
)

// small is a log of 8 files of 32 KiB, so that tests go through many files.
var small = Options{Dir: "log", SizeBytes: 256 << 10, FileBytes: 32 << 10,
	Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}

func mustOpen(t testing.TB, fs vfs.FS, opts Options) *Log {
	t.Helper()
	l, err := Open(fs, opts)
	ok(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, what string, err error, want *datanode.Error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: got %v, want %v", what, err, want)
	}
}

// at returns the number of the newest file and where it ends.
func (l *Log) at() (seq uint64, end int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.head.seq, int64(l.head.end)
}

// calm returns when what files' beginnings had synced is, and told.
func (l *Log) calm() {
	l.flusher.stop()
	l.startFlusher()
}

// content is what a test's record holds: it follows from its arguments.
func content(number id.Disk, life int, stream datanode.Stream, pos id.Pos) datanode.Record {
	rng := rand.New(rand.NewPCG(uint64(number)<<32|uint64(life)<<8|uint64(stream), uint64(pos)))
	size := rng.IntN(600)
	if rng.IntN(20) == 0 {
		size = rng.IntN(9000)
	}
	r := datanode.Record{Pos: pos, Type: uint8(rng.Uint32()), Data: make([]byte, size)}
	for i := range r.Data {
		r.Data[i] = byte(rng.Uint32())
	}
	r.MAC[3] = byte(rng.Uint32())
	return r
}

func contents(number id.Disk, life int, stream datanode.Stream, from id.Pos, count int) []datanode.Record {
	rs := make([]datanode.Record, count)
	for i := range rs {
		rs[i] = content(number, life, stream, from+id.Pos(i))
	}
	return rs
}

func (l *Log) mustFence(t testing.TB, number id.Disk, epoch id.Epoch) *datanode.FenceReply {
	t.Helper()
	reply, err := l.Fence(context.Background(), &datanode.FenceRequest{Disk: number, Epoch: epoch})
	ok(t, err)
	return reply
}

func (l *Log) testAppend(number id.Disk, epoch id.Epoch, class datanode.Class, rs ...datanode.Record) error {
	_, err := l.Append(context.Background(), &datanode.AppendRequest{
		Disk: number, Epoch: epoch, Stream: datanode.Stream(class), Class: class, Records: rs})
	return err
}

func (l *Log) testTrim(number id.Disk, epoch id.Epoch, stream datanode.Stream, through id.Pos) error {
	return l.TrimLog(context.Background(), &datanode.TrimLogRequest{Disk: number, Epoch: epoch, Stream: stream, Through: through})
}

func (l *Log) testSync(number id.Disk, epoch id.Epoch) error {
	return l.Sync(context.Background(), &datanode.SyncRequest{Disk: number, Epoch: epoch})
}

func (l *Log) readAll(number id.Disk, epoch id.Epoch, stream datanode.Stream, from id.Pos) ([]datanode.Record, error) {
	var all []datanode.Record
	for {
		reply, err := l.ReadLog(context.Background(), &datanode.ReadLogRequest{
			Disk: number, Epoch: epoch, Stream: stream, From: from + id.Pos(len(all)), BytesMax: 8000})
		if err != nil || len(reply.Records) == 0 {
			return all, err
		}
		all = append(all, reply.Records...)
	}
}

func same(got, want datanode.Record) bool {
	return got.Pos == want.Pos && got.Type == want.Type && got.MAC == want.MAC && string(got.Data) == string(want.Data)
}

// model is what a log should hold, written down independently.
type model map[id.Disk]modelDisk

type modelDisk struct {
	epoch      id.Epoch
	life       int
	first, end [datanode.Streams]id.Pos
}

func (m model) clone() model {
	c := model{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func (m model) String() string {
	var lines []string
	for k, d := range m {
		lines = append(lines, fmt.Sprintf("disk %d epoch %d ops %d-%d results %d-%d", k, d.epoch, d.first[0], d.end[0], d.first[1], d.end[1]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// modelOf is what a log says it holds, without lives.
func modelOf(l *Log) model {
	m := model{}
	for _, s := range l.Streams() {
		d := m[s.Disk]
		d.epoch = s.Epoch
		d.first[s.Stream], d.end[s.Stream] = s.First, s.End
		m[s.Disk] = d
	}
	return m
}

// verify reads everything that the model has.
func (m model) verify(l *Log) error {
	if got := modelOf(l); got.String() != m.String() {
		return fmt.Errorf("log holds\n%s\nwant\n%s", got, m)
	}
	for number, d := range m {
		for s := range datanode.Stream(datanode.Streams) {
			rs, err := l.readAll(number, d.epoch, s, d.first[s])
			if err != nil {
				return err
			}
			if len(rs) != int(d.end[s]-d.first[s]) {
				return fmt.Errorf("disk %d stream %d: %d records of\n%s", number, s, len(rs), m)
			}
			for i, r := range rs {
				if !same(r, content(number, d.life, s, d.first[s]+id.Pos(i))) {
					return fmt.Errorf("disk %d stream %d: record %d is another", number, s, r.Pos)
				}
			}
		}
	}
	return nil
}
