package datanodetest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"plinth/datanode"
	"plinth/internal/id"
)

// fencedCalls are all calls that carry (disk, epoch), each harmless enough to
// be repeated.
var fencedCalls = []struct {
	name string
	call func(ctx context.Context, n datanode.Node, o owner, end id.Pos) error
}{
	{"Fence", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.Fence(ctx, &datanode.FenceRequest{Disk: o.disk, Epoch: o.epoch})
		return err
	}},
	{"Append", func(ctx context.Context, n datanode.Node, o owner, end id.Pos) error {
		_, err := n.Append(ctx, &datanode.AppendRequest{
			Disk: o.disk, Epoch: o.epoch, Stream: datanode.Ops, Records: records(o, end, 1, 10),
		})
		return err
	}},
	{"Append of a result", func(ctx context.Context, n datanode.Node, o owner, end id.Pos) error {
		_, err := n.Append(ctx, &datanode.AppendRequest{
			Disk: o.disk, Epoch: o.epoch, Stream: datanode.Results, Class: datanode.ClassMark,
			Records: records(o, end, 1, 10),
		})
		return err
	}},
	{"Sync", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		return n.Sync(ctx, &datanode.SyncRequest{Disk: o.disk, Epoch: o.epoch})
	}},
	{"ReadLog", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.ReadLog(ctx, &datanode.ReadLogRequest{Disk: o.disk, Epoch: o.epoch, From: 1})
		return err
	}},
	{"TrimLog", func(ctx context.Context, n datanode.Node, o owner, end id.Pos) error {
		return n.TrimLog(ctx, &datanode.TrimLogRequest{Disk: o.disk, Epoch: o.epoch, Through: end - 1})
	}},
	{"Lookup", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.Lookup(ctx, &datanode.LookupRequest{
			Disk: o.disk, Epoch: o.epoch, Seq: 100, Fingerprints: make([]id.Fingerprint, 3),
		})
		return err
	}},
	{"ListSegments", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.ListSegments(ctx, &datanode.ListSegmentsRequest{Disk: o.disk, Epoch: o.epoch})
		return err
	}},
	{"SetLists", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.SetLists(ctx, &datanode.SetListsRequest{
			Disk: o.disk, Epoch: o.epoch, Seq: 101, Lists: []datanode.List{{Segment: id.MakeSegment(0, 1)}},
		})
		return err
	}},
	{"RegistryCommit with a guard", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.RegistryCommit(ctx, &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: o.disk, Epoch: o.epoch}},
			Puts:   []datanode.Put{{Key: "guarded", Value: []byte{byte(o.epoch)}}},
		})
		return err
	}},
	{"Condemn", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		_, err := n.Condemn(ctx, &datanode.CondemnRequest{Disk: o.disk, Epoch: o.epoch})
		return err
	}},
	{"Forward", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		return n.Forward(ctx, &datanode.ForwardRequest{Disk: o.disk, Epoch: o.epoch, Segment: id.MakeSegment(0, 1)})
	}},
	{"DropLog", func(ctx context.Context, n datanode.Node, o owner, _ id.Pos) error {
		return n.DropLog(ctx, &datanode.DropLogRequest{Disk: o.disk, Epoch: o.epoch})
	}},
}

var fenceRules = fencingRules()

func fencingRules() []rule {
	rules := []rule{
		{"a fence at or below the newest epoch is refused", func(e *env) {
			e.fence(1, 5)
			for _, epoch := range []id.Epoch{5, 4, 1} {
				_, err := e.node.Fence(e.ctx(), &datanode.FenceRequest{Disk: 1, Epoch: epoch})
				e.fails(fmt.Sprintf("fence with epoch %d after 5", epoch), err, datanode.ErrFenced)
			}
			e.fence(1, 6)
		}},
		{"a fence is for one disk", func(e *env) {
			a, _ := e.fence(1, 5)
			e.fence(2, 9)
			e.ok(e.appendTo(a, datanode.Ops, records(a, 1, 1, 10)))
		}},
		{"the new owner's registry change is not undone by the old one", func(e *env) {
			old, _ := e.fence(1, 1)
			now, _ := e.fence(1, 2)
			put := fencedCalls[9].call
			e.ok(put(e.ctx(), e.node, now, 0))
			e.fails("old owner", put(e.ctx(), e.node, old, 0), datanode.ErrFenced)
			reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: "guarded"})
			e.ok(err)
			if len(reply.Value) != 1 || reply.Value[0] != 2 {
				e.Fatalf("guarded value is %v", reply.Value)
			}
		}},
		{"the old owner's list update changes nothing", func(e *env) {
			old, _ := e.fence(1, 1)
			s := e.store(datanode.Birth{Disk: 1, Epoch: 1, Slots: 4})
			e.fence(1, 2)
			_, err := e.setLists(old, 50, s.list())
			e.fails("old owner", err, datanode.ErrFenced)
			e.reclaim()
			e.holds(1, s, 4)
		}},
		{"two owners racing: what the old one was told is there, nothing follows the fence", raceOwners},
	}
	for _, c := range fencedCalls {
		rules = append(rules, rule{c.name + " of an old owner", func(e *env) {
			old, _ := e.fence(1, 1)
			e.ok(e.appendTo(old, datanode.Ops, records(old, 1, 3, 10)))
			e.fence(1, 2)
			e.fails("after the fence", c.call(e.ctx(), e.node, old, 4), datanode.ErrFenced)
			e.reopen()
			e.fails("after a restart", c.call(e.ctx(), e.node, old, 4), datanode.ErrFenced)
			now := owner{1, 2}
			e.same(e.readAll(now, datanode.Ops, 1), records(old, 1, 3, 10), 1)
		}})
	}
	return rules
}

// raceOwners lets an owner append while others take the disk over, one after
// the other.
func raceOwners(e *env) {
	const owners, appends = 8, 400
	told := make([]id.Pos, owners+1) // by owner: the end after its last success
	ends := make([]id.Pos, owners+1) // by owner: the end its fence gave
	epochs := map[id.Pos]id.Epoch{}  // by position: who was told that it has it
	fenced := make([]bool, owners+1) // by owner: saw ErrFenced
	last := make([]error, owners+1)  // by owner: an error it must not see
	progress := make([]chan struct{}, owners+1)
	var mu sync.Mutex
	var running sync.WaitGroup
	for n := 1; n <= owners; n++ {
		o, reply := e.fence(1, id.Epoch(n))
		ends[n], told[n] = reply.End[datanode.Ops], reply.End[datanode.Ops]
		progress[n] = make(chan struct{})
		started := sync.OnceFunc(func() { close(progress[n]) })
		running.Go(func() {
			defer started()
			for i := range appends {
				if i == 3 {
					started()
				}
				if n == owners && i > 20 {
					return // nobody will fence the last one
				}
				pos := told[n]
				err := e.appendTo(o, datanode.Ops, records(o, pos, 2, 40))
				if errors.Is(err, datanode.ErrFenced) {
					fenced[n] = true
					return
				}
				if err != nil {
					last[n] = err
					return
				}
				told[n] = pos + 2
				mu.Lock()
				for p := pos; p < pos+2; p++ {
					if other, ok := epochs[p]; ok {
						last[n] = fmt.Errorf("position %d given to epochs %d and %d", p, other, n)
					}
					epochs[p] = id.Epoch(n)
				}
				mu.Unlock()
			}
		})
		// Let it get under way, so that the next fence meets appends.
		_, _ = e.read(o, datanode.Ops, 1, 1)
		if n < owners {
			select {
			case <-progress[n]:
			case <-e.ctx().Done():
			}
		}
	}
	running.Wait()
	for n := 1; n <= owners; n++ {
		if last[n] != nil {
			e.Fatalf("owner %d: %v", n, last[n])
		}
		if n < owners && (!fenced[n] && told[n] != ends[n]+2*appends || ends[n+1] < told[n]) {
			e.Fatalf("owner %d appended through %d, its successor's fence said %d", n, told[n], ends[n+1])
		}
	}
	all := e.readAll(owner{1, owners}, datanode.Ops, 1)
	if want := int(told[owners]) - 1; len(all) != want {
		e.Fatalf("read %d records, want %d", len(all), want)
	}
	for i, r := range all {
		if r.Pos != id.Pos(i+1) {
			e.Fatalf("record %d has position %d", i, r.Pos)
		}
		if owner, ok := epochs[r.Pos]; ok && owner != r.Epoch {
			e.Fatalf("position %d is of epoch %d, but %d was told that it has it", r.Pos, r.Epoch, owner)
		}
	}
}
