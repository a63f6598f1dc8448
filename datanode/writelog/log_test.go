package writelog

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

func TestEpochsDecideWhoMayCall(t *testing.T) {
	l := mustOpen(t, vfs.NewMem(), small)
	wantCode(t, "unknown disk", l.testSync(1, 1), datanode.ErrNotFound)
	ok(t, l.CheckEpoch(1, 1))
	wantCode(t, "epoch 0", l.CheckEpoch(1, 0), datanode.ErrInvalid)
	if reply := l.mustFence(t, 1, 5); reply.Previous != 0 || reply.End != [2]id.Pos{1, 1} {
		t.Fatalf("first fence: %+v", reply)
	}
	wantCode(t, "check below", l.CheckEpoch(1, 4), datanode.ErrFenced)
	ok(t, l.CheckEpoch(1, 5))
	ok(t, l.CheckEpoch(1, 6))
	wantCode(t, "sync below", l.testSync(1, 4), datanode.ErrFenced)
	wantCode(t, "sync above", l.testSync(1, 6), datanode.ErrInvalid)
	wantCode(t, "append below", l.testAppend(1, 4, 0, content(1, 1, 0, 1)), datanode.ErrFenced)
	wantCode(t, "drop below", l.DropLog(context.Background(), &datanode.DropLogRequest{Disk: 1, Epoch: 4}), datanode.ErrFenced)
	for _, epoch := range []id.Epoch{4, 5} {
		_, err := l.Fence(context.Background(), &datanode.FenceRequest{Disk: 1, Epoch: epoch})
		wantCode(t, "fence again", err, datanode.ErrFenced)
	}
}

func TestFloorRaisesTheEndAndGivesUpWhatLiesBelow(t *testing.T) {
	l := mustOpen(t, vfs.NewMem(), small)
	l.mustFence(t, 1, 1)
	ok(t, l.testAppend(1, 1, 0, contents(1, 1, 0, 1, 3)...))
	reply, err := l.Fence(context.Background(), &datanode.FenceRequest{Disk: 1, Epoch: 2, Floor: [2]id.Pos{3, 9}})
	ok(t, err)
	if reply.First != [2]id.Pos{1, 9} || reply.End != [2]id.Pos{4, 9} {
		t.Fatalf("floor below the end, and above an empty stream: %+v", reply)
	}
	reply, err = l.Fence(context.Background(), &datanode.FenceRequest{Disk: 1, Epoch: 3, Floor: [2]id.Pos{7, 0}})
	ok(t, err)
	if reply.First != [2]id.Pos{7, 9} || reply.End != [2]id.Pos{7, 9} || l.Usage().UsedBytes != 0 {
		t.Fatalf("floor above the end: %+v", reply)
	}
}

func TestRequestsOutOfBoundsAreInvalid(t *testing.T) {
	l := mustOpen(t, vfs.NewMem(), small)
	l.mustFence(t, 1, 1)
	big := datanode.Record{Pos: 1, Data: make([]byte, l.recordMax()+1)}
	for name, r := range map[string]*datanode.AppendRequest{
		"no record":   {Disk: 1, Epoch: 1},
		"stream":      {Disk: 1, Epoch: 1, Stream: 2, Records: contents(1, 1, 0, 1, 1)},
		"class":       {Disk: 1, Epoch: 1, Class: 2, Records: contents(1, 1, 0, 1, 1)},
		"large":       {Disk: 1, Epoch: 1, Records: []datanode.Record{big}},
		"gap":         {Disk: 1, Epoch: 1, Records: []datanode.Record{{Pos: 1}, {Pos: 3}}},
		"many":        {Disk: 1, Epoch: 1, Records: make([]datanode.Record, datanode.RecordsMax+1)},
		"out of turn": {Disk: 1, Epoch: 1, Records: []datanode.Record{{Pos: 2}, {Pos: 1}}},
	} {
		_, err := l.Append(context.Background(), r)
		wantCode(t, name, err, datanode.ErrInvalid)
	}
	err := l.testAppend(1, 1, 0, content(1, 1, 0, 2))
	wantCode(t, "not at the end", err, datanode.ErrPosition)
	if !strings.Contains(err.Error(), "end 1") {
		t.Errorf("%v does not give the end", err)
	}
	wantCode(t, "trim at the end", l.testTrim(1, 1, 0, 1), datanode.ErrInvalid)
	_, err = l.readAll(1, 1, 0, 2)
	wantCode(t, "read above the end", err, datanode.ErrInvalid)
	for _, r := range []datanode.FenceRequest{{Disk: 0, Epoch: 1}, {Disk: 1}, {Disk: 1, Epoch: 9, Floor: [2]id.Pos{0, posMax + 1}}} {
		_, err := l.Fence(context.Background(), &r)
		wantCode(t, "fence", err, datanode.ErrInvalid)
	}
}

func TestLargestAppendGoesThroughFilesOfItsSize(t *testing.T) {
	fs := vfs.NewMem()
	opts := small
	opts.SizeBytes, opts.FileBytes = 24<<20, 0
	l := mustOpen(t, fs, opts)
	l.mustFence(t, 1, 1)
	rs := make([]datanode.Record, datanode.AppendBytesMax/datanode.RecordBytesMax)
	for i := range rs {
		rs[i] = datanode.Record{Pos: id.Pos(i + 1), Data: make([]byte, datanode.RecordBytesMax)}
		rs[i].Data[i] = 1
	}
	ok(t, l.testAppend(1, 1, 0, rs...))
	ok(t, l.Close())
	l = mustOpen(t, fs, opts)
	got, err := l.readAll(1, 1, 0, 1)
	ok(t, err)
	for i := range rs {
		if len(got) != len(rs) || !same(got[i], rs[i]) {
			t.Fatalf("%d records; %d differs", len(got), i)
		}
	}
}

// A log full of data takes a mark, one full of marks is fenced, trimmed and
// opened again, any number of times.
func TestFullLogGoesOn(t *testing.T) {
	fs := crashfs.New()
	l := mustOpen(t, fs, small)
	l.mustFence(t, 1, 1)
	epoch := id.Epoch(1)
	var end [2]id.Pos
	for round := range 4 {
		for class := range datanode.Class(2) {
			end[class] = modelOf(l)[1].end[class]
			for n := 0; ; n++ {
				err := l.testAppend(1, epoch, class, content(1, 1, datanode.Stream(class), end[class]))
				if err != nil {
					wantCode(t, "append", err, datanode.ErrLogFull)
					if n == 0 {
						t.Fatalf("round %d, class %d: full from the start", round, class)
					}
					break
				}
				end[class]++
			}
		}
		if u := l.Usage(); u.UsedBytes != u.CapacityBytes {
			t.Fatalf("full with %+v", u)
		}
		for range 200 { // far more than one file takes
			epoch++
			if reply := l.mustFence(t, 1, epoch); reply.End != end {
				t.Fatalf("fence says %+v, want %d", reply, end)
			}
		}
		for range 5 {
			fs = fs.Kill()
			l = mustOpen(t, fs, small)
		}
		m := modelOf(l)
		d := m[1]
		d.life = 1
		m[1] = d
		ok(t, m.verify(l))
		ok(t, l.testTrim(1, epoch, datanode.Ops, end[0]-1))
		ok(t, l.testTrim(1, epoch, datanode.Results, end[1]-1))
		_, err := l.readAll(1, epoch, 0, end[0]-1)
		wantCode(t, "trimmed", err, datanode.ErrNotFound)
		if u := l.Usage(); u.UsedBytes != 0 {
			t.Fatalf("empty with %+v", u)
		}
	}
}

func TestDisksAreBoundedByTheSnapshot(t *testing.T) {
	l := mustOpen(t, vfs.NewMem(), small)
	for n := range id.Disk(l.disksMax()) {
		l.mustFence(t, n+1, 1)
	}
	_, err := l.Fence(context.Background(), &datanode.FenceRequest{Disk: 99_999, Epoch: 1})
	wantCode(t, "one disk too many", err, datanode.ErrLogFull)
	ok(t, l.DropLog(context.Background(), &datanode.DropLogRequest{Disk: 1, Epoch: 1}))
	l.mustFence(t, 99_999, 1)
}

func TestPinsNameWhoHoldsTheOldestFile(t *testing.T) {
	l := mustOpen(t, vfs.NewMem(), small)
	l.mustFence(t, 1, 1)
	l.mustFence(t, 2, 1)
	ok(t, l.testAppend(1, 1, 0, content(1, 1, 0, 1)))
	for pos := id.Pos(1); l.Usage().UsedBytes < 3*l.fileBytes; pos++ {
		ok(t, l.testAppend(2, 1, 0, content(2, 1, 0, pos)))
	}
	ok(t, l.testTrim(2, 1, 0, l.state.disks[2].streams[0].end-2))
	if all := l.Streams(); !all[0].Pins || all[2].Pins || all[0].Bytes == 0 || all[1].Bytes != 0 {
		t.Errorf("%+v", all)
	}
	if u := l.Usage().UsedBytes; u != 2*l.fileBytes {
		t.Errorf("%d bytes used: a file in the middle is not free", u)
	}
}

func TestDeadDeviceStaysDead(t *testing.T) {
	fs := crashfs.New()
	l := mustOpen(t, fs, small)
	l.mustFence(t, 1, 1)
	ok(t, l.testAppend(1, 1, 0, content(1, 1, 0, 1)))
	fs.Limit(0)
	wantCode(t, "sync", l.testSync(1, 1), datanode.ErrDead)
	fs.Limit(1 << 20)
	wantCode(t, "append", l.testAppend(1, 1, 0, content(1, 1, 0, 2)), datanode.ErrDead)
	wantCode(t, "trim", l.testTrim(1, 1, 0, 1), datanode.ErrDead)
	_, err := l.Fence(context.Background(), &datanode.FenceRequest{Disk: 1, Epoch: 2})
	wantCode(t, "fence", err, datanode.ErrDead)
	ok(t, l.Close())
	wantCode(t, "after Close", l.testSync(1, 1), datanode.ErrClosed)
}

func TestOpenRefusesWhatIsNotItsLog(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, fs, small)
	if _, err := Open(fs, small); err == nil {
		t.Fatal("opened twice")
	}
	ok(t, l.Close())
	other := small
	other.PoolID[0] = 1
	_, err := Open(fs, other)
	wantCode(t, "another pool", err, datanode.ErrInvalid)
	ok(t, fs.Remove("log/log-0003"))
	_, err = Open(fs, small)
	wantCode(t, "a missing file", err, datanode.ErrCorrupt)
	ok(t, fs.Remove("log/superblock"))
	_, err = Open(fs, small)
	wantCode(t, "no superblock", err, datanode.ErrCorrupt)
	for _, o := range []Options{{}, {Dir: "x", SizeBytes: 1 << 20}, {Dir: "x", SizeBytes: 3 << 20, FileBytes: 1 << 20}, {Dir: "x", FileBytes: 4096}} {
		if _, err := Open(fs, o); err == nil {
			t.Errorf("opened with %+v", o)
		}
	}
}

func TestConcurrentOwnersReadersAndTrims(t *testing.T) {
	l := mustOpen(t, crashfs.New(), small)
	ctx, cancel := context.WithCancel(context.Background())
	var owners, readers sync.WaitGroup
	for n := id.Disk(1); n <= 4; n++ {
		l.mustFence(t, n, 1)
		owners.Go(func() {
			for pos := id.Pos(1); pos <= 200; pos++ {
				err := l.testAppend(n, 1, 0, content(n, 1, 0, pos))
				for errors.Is(err, datanode.ErrLogFull) { // whoever is slow pins it: give up all, wait
					if err = l.testTrim(n, 1, 0, pos-1); err != nil {
						break
					}
					runtime.Gosched()
					err = l.testAppend(n, 1, 0, content(n, 1, 0, pos))
				}
				if err == nil && pos%5 == 0 {
					err = errors.Join(l.testSync(n, 1), l.testTrim(n, 1, 0, pos-3))
				}
				if err != nil {
					t.Errorf("disk %d, position %d: %v", n, pos, err)
					return
				}
			}
			if err := l.testTrim(n, 1, 0, 200); err != nil {
				t.Error(err)
			}
		})
		readers.Go(func() {
			for ctx.Err() == nil {
				first := modelOf(l)[n].first[0]
				rs, err := l.readAll(n, 1, 0, first)
				if err != nil && !errors.Is(err, datanode.ErrNotFound) {
					t.Error(err)
					return
				}
				for i, r := range rs {
					if !same(r, content(n, 1, 0, first+id.Pos(i))) {
						t.Errorf("disk %d, position %d is another", n, r.Pos)
					}
				}
			}
		})
	}
	owners.Wait()
	cancel()
	readers.Wait()
}
