package datanodetest

import (
	"slices"

	"plinth/datanode"
	"plinth/internal/id"
)

// replicaRules hold for nodes that keep replicas of logs; others pass.
var replicaRules = []rule{
	{"a log is joined again under the same epoch, and never under an older one", func(e *env) {
		n, ok := e.node.(datanode.Replica)
		if !ok {
			e.Skip("no replicas")
		}
		join := func(epoch id.Epoch) (*datanode.JoinLogReply, error) {
			return n.JoinLog(e.ctx(), &datanode.JoinLogRequest{Disk: 1, Epoch: epoch})
		}
		first, err := join(3)
		e.ok(err)
		if want := [datanode.Streams]id.Pos{1, 1}; first.First != want || first.End != want || first.Previous != 0 {
			e.Fatalf("the first join: %+v", *first)
		}
		o := owner{1, 3}
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 5, 100)))
		e.ok(e.trim(o, datanode.Ops, 2))
		again, err := join(3)
		e.ok(err)
		if again.First[0] != 3 || again.End[0] != 6 || again.Previous != 3 || again.Turn == first.Turn {
			e.Fatalf("joined again: %+v", *again)
		}
		later, err := join(4)
		e.ok(err)
		if later.Previous != 3 || later.End[0] != 6 {
			e.Fatalf("joined by the next owner: %+v", *later)
		}
		_, err = join(3)
		e.fails("join of an old owner", err, datanode.ErrFenced)
		e.fails("append of an old owner", e.appendTo(o, datanode.Ops, records(o, 6, 1, 10)), datanode.ErrFenced)
		_, err = join(0)
		e.fails("join without an epoch", err, datanode.ErrInvalid)
	}},
	{"copied records keep their epochs", func(e *env) {
		n, ok := e.node.(datanode.Replica)
		if !ok {
			e.Skip("no replicas")
		}
		copied := append(records(owner{1, 2}, 1, 4, 300), records(owner{1, 5}, 5, 3, 300)...)
		for i := range copied {
			copied[i].Epoch = 2
			if i >= 4 {
				copied[i].Epoch = 5
			}
		}
		put := func(n datanode.Replica, epoch id.Epoch, r []datanode.Record) error {
			return n.CopyLog(e.ctx(), &datanode.CopyLogRequest{Disk: 1, Epoch: epoch, Stream: datanode.Results, Records: r})
		}
		o, _ := e.fence(1, 7)
		e.ok(put(n, 7, copied))
		e.fails("a copy again", put(n, 7, copied), datanode.ErrPosition)
		e.fails("a copy of an old owner", put(n, 6, copied), datanode.ErrFenced)
		newer := records(o, 8, 2, 10)
		newer[0].Epoch, newer[1].Epoch = 8, 8
		e.fails("a copy of a record of a newer epoch", put(n, 7, newer), datanode.ErrInvalid)
		newer[0].Epoch, newer[1].Epoch = 6, 5
		e.fails("a copy of records whose epochs fall", put(n, 7, newer), datanode.ErrInvalid)
		e.ok(e.appendTo(o, datanode.Results, records(o, 8, 2, 40)))
		check := func() {
			e.Helper()
			all := e.readAll(o, datanode.Results, 1)
			if len(all) != 9 {
				e.Fatalf("%d records", len(all))
			}
			e.same(all[:4], copied[:4], 2)
			e.same(all[4:7], copied[4:], 5)
			e.same(all[7:], records(o, 8, 2, 40), 7)
		}
		check()
		e.reopen()
		check()
	}},
	{"a log is reset in the newest turn alone, and what it had does not come back", func(e *env) {
		n, ok := e.node.(datanode.Replica)
		if !ok {
			e.Skip("no replicas")
		}
		o, _ := e.fence(1, 2)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 9, 500)))
		e.ok(e.appendTo(o, datanode.Results, records(o, 1, 9, 500)))
		reset := func(turn uint64, ops, results id.Pos) error {
			return n.ResetLog(e.ctx(), &datanode.ResetLogRequest{Disk: 1, Epoch: 2, Turn: turn, Next: [datanode.Streams]id.Pos{ops, results}})
		}
		e.fails("a reset without a turn", reset(0, 3, 4), datanode.ErrConflict)
		before, err := n.JoinLog(e.ctx(), &datanode.JoinLogRequest{Disk: 1, Epoch: 2})
		e.ok(err)
		now, err := n.JoinLog(e.ctx(), &datanode.JoinLogRequest{Disk: 1, Epoch: 2})
		e.ok(err)
		e.fails("a reset in an older turn", reset(before.Turn, 3, 4), datanode.ErrConflict)
		e.fails("a reset to nowhere", reset(now.Turn, 0, 0), datanode.ErrInvalid)
		e.fails("a reset of one stream to what it has", reset(now.Turn, 10, 0), datanode.ErrInvalid)
		e.ok(reset(now.Turn, 3, 4))
		e.fails("a second reset in a turn", reset(now.Turn, 3, 4), datanode.ErrConflict)
		o2 := slices.Concat(records(o, 3, 7, 77))
		e.ok(e.appendTo(o, datanode.Ops, o2))
		check := func() {
			e.Helper()
			e.same(e.readAll(o, datanode.Ops, 3), o2, 2)
			if got := e.readAll(o, datanode.Results, 4); len(got) != 0 {
				e.Fatalf("%d results came back", len(got))
			}
			_, err := e.read(o, datanode.Ops, 2, 100)
			e.fails("read of what is gone", err, datanode.ErrNotFound)
		}
		check()
		e.reopen()
		check()
		n = e.node.(datanode.Replica)
		e.fails("a reset in a turn of before the restart", reset(now.Turn, 1, 1), datanode.ErrConflict)
		now, err = n.JoinLog(e.ctx(), &datanode.JoinLogRequest{Disk: 1, Epoch: 2})
		e.ok(err)
		e.ok(reset(now.Turn, 0, 20))
		e.ok(e.appendTo(o, datanode.Results, records(o, 20, 1, 10)))
		e.reopen()
		e.same(e.readAll(o, datanode.Ops, 3), o2, 2)
		e.same(e.readAll(o, datanode.Results, 20), records(o, 20, 1, 10), 2)
		_, reply := e.fence(1, 3)
		if reply.First != [datanode.Streams]id.Pos{3, 20} || reply.End != [datanode.Streams]id.Pos{10, 21} {
			e.Fatalf("the next owner: %+v", *reply)
		}
	}},
}
