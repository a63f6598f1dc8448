package rack_test

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/rack"
	"plinth/internal/rack/racktest"
	"plinth/internal/stripe"
)

// patience is far beyond what anything here takes.
const patience = 2 * time.Minute

// bench is three nodes, and who owns disk 1 there.
type bench struct {
	*racktest.Shelves
	t *testing.T
}

func openBench(t *testing.T) *bench {
	return &bench{racktest.Open(t, [16]byte{1}, stripe.Geometry{K: 4, M: 2}, 3, 4), t}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// owner is a host's view of disk 1.
type owner struct {
	b     *bench
	r     *rack.Rack
	epoch id.Epoch
	next  [datanode.Streams]id.Pos
}

func (b *bench) own(r *rack.Rack, epoch id.Epoch) *owner {
	b.t.Helper()
	reply, err := r.Fence(b.t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: epoch})
	b.must(err)
	return &owner{b, r, epoch, reply.End}
}

// record says in its MAC where it is and who made it.
func record(epoch id.Epoch, pos id.Pos) datanode.Record {
	r := datanode.Record{Pos: pos, Type: 1, Data: make([]byte, 1000)}
	binary.LittleEndian.PutUint64(r.MAC[:], uint64(pos))
	binary.LittleEndian.PutUint64(r.MAC[8:], uint64(epoch))
	return r
}

func (o *owner) append(s datanode.Stream) error {
	r := record(o.epoch, o.next[s])
	_, err := o.r.Append(o.b.t.Context(), &datanode.AppendRequest{Disk: 1, Epoch: o.epoch, Stream: s, Records: []datanode.Record{r}})
	if err == nil {
		o.next[s]++
	}
	return err
}

func (o *owner) appends(n int) {
	o.b.t.Helper()
	for i := range n {
		o.b.must(o.append(datanode.Stream(i % datanode.Streams)))
	}
	o.b.must(o.r.Sync(o.b.t.Context(), &datanode.SyncRequest{Disk: 1, Epoch: o.epoch}))
}

// records reads a stream of a node as an owner does.
func (b *bench) records(n datanode.LogNode, epoch id.Epoch, s datanode.Stream, from id.Pos) []datanode.Record {
	b.t.Helper()
	var all []datanode.Record
	for {
		reply, err := n.ReadLog(b.t.Context(), &datanode.ReadLogRequest{Disk: 1, Epoch: epoch, Stream: s, From: from})
		b.must(err)
		if len(reply.Records) == 0 {
			return all
		}
		all = append(all, reply.Records...)
		from += id.Pos(len(reply.Records))
	}
}

// whole waits until all of the nodes have the same log, with so many records from
// position first on.
func (o *owner) whole(first id.Pos, nodes ...int) {
	o.b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		same := true
		for s := range datanode.Stream(datanode.Streams) {
			for _, n := range nodes {
				st, err := o.b.Switches[n].Status(o.b.t.Context())
				same = same && err == nil && len(st.Streams) == datanode.Streams && st.Streams[s].End == o.next[s]
			}
		}
		if same && o.inSync() == len(nodes) {
			break
		}
		if time.Now().After(deadline) {
			o.b.t.Fatal("the log is not made whole")
		}
		time.Sleep(5 * time.Millisecond)
	}
	for s := range datanode.Stream(datanode.Streams) {
		want := o.b.records(o.r, o.epoch, s, first)
		if len(want) != int(o.next[s]-first) {
			o.b.t.Fatalf("stream %d has %d records from %d on", s, len(want), first)
		}
		for _, n := range nodes {
			got := o.b.records(o.b.Switches[n], o.epoch, s, first)
			if len(got) != len(want) {
				o.b.t.Fatalf("node %d has %d records of stream %d, want %d", n, len(got), s, len(want))
			}
			for i := range got {
				if got[i].MAC != want[i].MAC || got[i].Epoch != want[i].Epoch || len(got[i].Data) != 1000 {
					o.b.t.Fatalf("node %d has another record %d of stream %d", n, got[i].Pos, s)
				}
			}
		}
	}
}

func (o *owner) inSync() int {
	reply, err := o.r.RegistryGet(o.b.t.Context(), &datanode.RegistryGetRequest{Key: "logset/0000000000000001"})
	if errors.Is(err, datanode.ErrNotFound) {
		return 0
	}
	o.b.must(err)
	row, err := rack.ParseRow(reply.Value)
	o.b.must(err)
	return len(row)
}

func TestAppendsGoOnWithoutANodeAndItIsMadeWhole(t *testing.T) {
	b := openBench(t)
	o := b.own(b.Rack(rack.Options{}), 1)
	o.appends(20)
	o.whole(1, 0, 1, 2)
	b.Away(2)
	o.appends(20)
	if n := o.inSync(); n != 2 {
		t.Fatalf("%d nodes are in sync", n)
	}
	b.Back(2)
	o.appends(20)
	o.whole(1, 0, 1, 2)
	// And one whose process ends.
	b.Stop(1)
	o.appends(20)
	b.Start(1)
	o.whole(1, 0, 1, 2)
	// What it has is not needed any more when it comes back.
	b.Away(1)
	o.appends(4)
	for s := range datanode.Stream(datanode.Streams) {
		b.must(o.r.TrimLog(t.Context(), &datanode.TrimLogRequest{Disk: 1, Epoch: 1, Stream: s, Through: o.next[s] - 2}))
	}
	b.Back(1)
	o.appends(2)
	o.whole(min(o.next[0], o.next[1])-1, 0, 1, 2)
}

func TestTakeOver(t *testing.T) {
	b := openBench(t)
	o := b.own(b.Rack(rack.Options{}), 1)
	o.appends(20)
	b.Away(2)
	o.appends(20)
	old := o
	// The node that missed half of it is back, and another one is away: the log is
	// the one that has all.
	b.Back(2)
	b.Away(1)
	o = b.own(b.Rack(rack.Options{}), 2)
	if o.next != old.next {
		t.Fatalf("the next owner found %d, %d was acknowledged", o.next, old.next)
	}
	if err := old.append(0); err == nil {
		t.Fatal("the old owner appends")
	}
	o.appends(20)
	b.Back(1)
	o.whole(1, 0, 1, 2)
}

// An append that one node has and nobody acknowledged does not end up in two logs.
func TestTakeOverOfAnAppendThatOneNodeHas(t *testing.T) {
	b := openBench(t)
	o := b.own(b.Rack(rack.Options{}), 1)
	o.appends(10)
	lone := record(1, o.next[0])
	_, err := b.Switches[2].Append(t.Context(), &datanode.AppendRequest{Disk: 1, Epoch: 1, Records: []datanode.Record{lone}})
	b.must(err)
	// Whoever sees it takes it.
	two := b.own(b.Rack(rack.Options{}), 2)
	if two.next[0] != o.next[0]+1 {
		t.Fatalf("end %d, an append at %d was under way", two.next[0], o.next[0])
	}
	two.whole(1, 0, 1, 2)
	// Whoever does not see it goes on without, and it is thrown away.
	lone = record(2, two.next[0])
	_, err = b.Switches[2].Append(t.Context(), &datanode.AppendRequest{Disk: 1, Epoch: 2, Records: []datanode.Record{lone, record(2, two.next[0]+1)}})
	b.must(err)
	b.Away(2)
	three := b.own(b.Rack(rack.Options{}), 3)
	if three.next != two.next {
		t.Fatalf("end %d, want %d", three.next, two.next)
	}
	three.appends(10)
	b.Back(2)
	three.whole(1, 0, 1, 2)
}

func TestTooFewNodes(t *testing.T) {
	b := openBench(t)
	r := b.Rack(rack.Options{Patience: 300 * time.Millisecond})
	o := b.own(r, 1)
	o.appends(4)
	b.Away(1)
	b.Away(2)
	if err := o.append(0); !errors.Is(err, datanode.ErrOutcome) {
		t.Fatalf("append with one node of three: %v", err)
	}
	if _, err := r.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: 2}); !errors.Is(err, datanode.ErrOutcome) {
		t.Fatalf("takeover with one node of three: %v", err)
	}
	b.Back(1)
	time.Sleep(1100 * time.Millisecond) // it is not asked before
	o = b.own(r, 3)
	o.appends(4)
}

// stingy is a node whose log is full for as long as its flag is set.
type stingy struct {
	datanode.Replica
	full *atomic.Bool
}

func (s stingy) Append(ctx context.Context, q *datanode.AppendRequest) (*datanode.AppendReply, error) {
	if s.full.Load() {
		return nil, datanode.Errorf(datanode.ErrLogFull, "full")
	}
	return s.Replica.Append(ctx, q)
}

func TestAppendThatSomeHaveNoRoomFor(t *testing.T) {
	b := openBench(t)
	var full atomic.Bool
	b.Wrap(1, func(n datanode.Replica) datanode.Replica { return stingy{n, &full} })
	o := b.own(b.Rack(rack.Options{}), 1)
	o.appends(4)
	full.Store(true)
	if err := o.append(0); !errors.Is(err, datanode.ErrLogFull) {
		t.Fatalf("append: %v", err)
	}
	full.Store(false)
	o.appends(4) // the same one first
	o.whole(1, 0, 1, 2)
	full.Store(true)
	if err := o.append(0); !errors.Is(err, datanode.ErrLogFull) {
		t.Fatalf("append: %v", err)
	}
	// Another one instead has no outcome.
	other := record(7, o.next[0])
	_, err := o.r.Append(t.Context(), &datanode.AppendRequest{Disk: 1, Epoch: 1, Records: []datanode.Record{other}})
	if !errors.Is(err, datanode.ErrOutcome) {
		t.Fatalf("another append: %v", err)
	}
	full.Store(false)
	o = b.own(o.r, 2)
	o.appends(4)
	o.whole(1, 0, 1, 2)
}

// booted is a node that tells another run of its machine.
type booted struct {
	datanode.Replica
	run *atomic.Pointer[logset.Boot]
}

func (n booted) Status(ctx context.Context) (*datanode.Status, error) {
	st, err := n.Replica.Status(ctx)
	if err == nil {
		st.BootID = *n.run.Load()
	}
	return st, err
}

// A node whose machine was booted anew, and whose calls all succeed, is compared with the
// others before what it says counts.
func TestANodeThatWasBootedAnew(t *testing.T) {
	b := openBench(t)
	var run atomic.Pointer[logset.Boot]
	run.Store(&logset.Boot{1})
	b.Wrap(2, func(n datanode.Replica) datanode.Replica { return booted{n, &run} })
	var members []rack.Member
	for n := range 3 {
		members = append(members, rack.Member{Number: id.Node(n), Node: b.Switches[n], Spindles: datanode.SpindleRanges{{First: id.Spindle(4 * n), Spindles: 4}}})
	}
	members[2].Run = func() logset.Boot { return *run.Load() }
	r, err := rack.New(members, rack.Options{Layouts: b.Layouts, CallTime: patience, FragmentTime: patience, Logger: slog.New(slog.DiscardHandler)})
	b.must(err)
	defer r.Close()
	o := b.own(r, 1)
	o.appends(20)
	o.whole(1, 0, 1, 2)
	run.Store(&logset.Boot{2})
	o.appends(20)
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		reply, err := r.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "logset/0000000000000001"})
		b.must(err)
		row, err := rack.ParseRow(reply.Value)
		b.must(err)
		if len(row) == 3 && row[2].Boot == (logset.Boot{2}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log set is %v", row)
		}
	}
	o.whole(1, 0, 1, 2)
}

// A read that waits for nodes ends with the rack.
func TestReadsEndWithTheRack(t *testing.T) {
	b := openBench(t)
	r := b.Rack(rack.Options{})
	stripes, err := stripe.NewStore(r, b.Layouts, stripe.Options{})
	b.must(err)
	for n := range 3 {
		b.Away(n)
	}
	done := make(chan error, 1)
	go func() {
		done <- stripes.Read(t.Context(), []stripe.Range{{Segment: id.MakeSegment(0, 1), Length: 1}})[0].Err
	}()
	select {
	case err := <-done:
		t.Fatalf("a read does not wait for nodes that are away: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	b.must(r.Close())
	if err := <-done; !errors.Is(err, datanode.ErrClosed) {
		t.Errorf("read: %v", err)
	}
}
