package datanodetest

import (
	"plinth/datanode"
	"plinth/internal/id"
)

var logRules = []rule{
	{"the first fence makes an empty log", func(e *env) {
		_, reply := e.fence(1, 1)
		want := [datanode.Streams]id.Pos{1, 1}
		if reply.First != want || reply.End != want || reply.Previous != 0 {
			e.Fatalf("first fence: %+v", *reply)
		}
	}},
	{"a fence tells the previous epoch and what the streams hold", func(e *env) {
		o, _ := e.fence(1, 3)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 5, 100)))
		e.ok(e.appendTo(o, datanode.Results, records(o, 1, 2, 100)))
		e.ok(e.trim(o, datanode.Ops, 2))
		_, reply := e.fence(1, 7)
		want := datanode.FenceReply{
			First: [datanode.Streams]id.Pos{3, 1}, End: [datanode.Streams]id.Pos{6, 3}, Previous: 3,
		}
		if *reply != want {
			e.Fatalf("fence: got %+v, want %+v", *reply, want)
		}
	}},
	{"a floor raises the end of an empty stream, never lowers one", func(e *env) {
		floors := [datanode.Streams]id.Pos{100, 7}
		reply, err := e.node.Fence(e.ctx(), &datanode.FenceRequest{Disk: 1, Epoch: 1, Floor: floors})
		e.ok(err)
		if reply.End != floors || reply.First != floors {
			e.Fatalf("fence with floors %v: %+v", floors, *reply)
		}
		o := owner{1, 1}
		e.fails("append below the floor", e.appendTo(o, datanode.Ops, records(o, 1, 1, 10)), datanode.ErrPosition)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 100, 3, 10)))
		reply, err = e.node.Fence(e.ctx(), &datanode.FenceRequest{Disk: 1, Epoch: 2, Floor: [datanode.Streams]id.Pos{5, 5}})
		e.ok(err)
		if reply.End != [datanode.Streams]id.Pos{103, 7} {
			e.Fatalf("a floor below the end: %+v", *reply)
		}
	}},
	{"what was appended is read back whole", func(e *env) {
		o, _ := e.fence(1, 4)
		rs := append(records(o, 1, 40, 900), records(o, 41, 1, datanode.RecordBytesMax/2)...)
		rs = append(rs, datanode.Record{Pos: 42, Type: 9})
		for i := range rs {
			e.ok(e.appendTo(o, datanode.Ops, rs[i:i+1]))
		}
		e.same(e.readAll(o, datanode.Ops, 1), rs, 4)
	}},
	{"the largest record and the largest append fit", func(e *env) {
		o, _ := e.fence(1, 1)
		largest := make([]byte, datanode.RecordBytesMax)
		e.ok(e.appendTo(o, datanode.Ops, []datanode.Record{{Pos: 1, Data: largest}}))
		many := make([]datanode.Record, datanode.RecordsMax)
		for i := range many {
			many[i] = datanode.Record{Pos: id.Pos(2 + i), Data: []byte{byte(i)}}
		}
		e.ok(e.appendTo(o, datanode.Ops, many))
		if got := e.readAll(o, datanode.Ops, 1); len(got) != 1+len(many) {
			e.Fatalf("read %d records, want %d", len(got), 1+len(many))
		}
	}},
	{"an append that is not at the end takes nothing", func(e *env) {
		o, _ := e.fence(1, 1)
		rs := records(o, 1, 3, 50)
		e.ok(e.appendTo(o, datanode.Ops, rs))
		e.fails("repeated append", e.appendTo(o, datanode.Ops, rs), datanode.ErrPosition)
		e.fails("append with a gap before it", e.appendTo(o, datanode.Ops, records(o, 5, 1, 50)), datanode.ErrPosition)
		e.fails("append that overlaps the end", e.appendTo(o, datanode.Ops, records(o, 3, 2, 50)), datanode.ErrPosition)
		hole := []datanode.Record{records(o, 4, 1, 50)[0], records(o, 6, 1, 50)[0]}
		e.fails("append with a gap inside", e.appendTo(o, datanode.Ops, hole), datanode.ErrPosition, datanode.ErrInvalid)
		e.same(e.readAll(o, datanode.Ops, 1), rs, 1)
	}},
	{"streams and disks do not know each other", func(e *env) {
		a, _ := e.fence(1, 1)
		b, _ := e.fence(2, 9)
		e.ok(e.appendTo(a, datanode.Ops, records(a, 1, 3, 50)))
		e.ok(e.appendTo(b, datanode.Ops, records(b, 1, 2, 50)))
		e.ok(e.appendTo(a, datanode.Results, records(a, 1, 1, 50)))
		e.ok(e.trim(b, datanode.Ops, 2))
		e.same(e.readAll(a, datanode.Ops, 1), records(a, 1, 3, 50), 1)
		e.same(e.readAll(a, datanode.Results, 1), records(a, 1, 1, 50), 1)
		e.same(e.readAll(b, datanode.Ops, 3), nil, 9)
	}},
	{"a read starts where it is asked, is bounded, and makes progress", func(e *env) {
		o, _ := e.fence(1, 1)
		rs := records(o, 1, 20, 1000)
		e.ok(e.appendTo(o, datanode.Ops, rs))
		e.same(e.readAll(o, datanode.Ops, 13), rs[12:], 1)
		e.same(e.readAll(o, datanode.Ops, 21), nil, 1)
		one, err := e.read(o, datanode.Ops, 5, 1)
		e.ok(err)
		e.same(one, rs[4:5], 1)
		page, err := e.read(o, datanode.Ops, 1, 5000)
		e.ok(err)
		total := 0
		for _, r := range page {
			total += len(r.Data)
		}
		if total > 5000 || len(page) < 3 {
			e.Fatalf("a read of 5000 bytes gave %d records of %d bytes", len(page), total)
		}
	}},
	{"trimmed records are not found, and their positions not used again", func(e *env) {
		o, _ := e.fence(1, 1)
		rs := records(o, 1, 10, 100)
		e.ok(e.appendTo(o, datanode.Ops, rs))
		e.ok(e.trim(o, datanode.Ops, 4))
		e.ok(e.trim(o, datanode.Ops, 4))
		e.ok(e.trim(o, datanode.Ops, 2))
		_, err := e.read(o, datanode.Ops, 4, 0)
		e.fails("read of a trimmed position", err, datanode.ErrNotFound)
		e.same(e.readAll(o, datanode.Ops, 5), rs[4:], 1)
		e.ok(e.trim(o, datanode.Ops, 10))
		e.fails("append at a trimmed position", e.appendTo(o, datanode.Ops, records(o, 10, 1, 10)), datanode.ErrPosition)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 11, 1, 10)))
	}},
	{"a node keeps no slice of a request, and a caller owns the reply", func(e *env) {
		o, _ := e.fence(1, 1)
		rs := records(o, 1, 4, 500)
		e.ok(e.appendTo(o, datanode.Ops, rs))
		for i := range rs {
			clear(rs[i].Data)
		}
		clear(rs)
		first := e.readAll(o, datanode.Ops, 1)
		e.same(first, records(o, 1, 4, 500), 1)
		for i := range first {
			clear(first[i].Data)
		}
		e.same(e.readAll(o, datanode.Ops, 1), records(o, 1, 4, 500), 1)
	}},
	{"a log survives its node", func(e *env) {
		o, _ := e.fence(1, 5)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 30, 700)))
		e.ok(e.appendTo(o, datanode.Results, records(o, 1, 6, 200)))
		e.ok(e.trim(o, datanode.Ops, 12))
		e.ok(e.trim(o, datanode.Results, 6))
		e.ok(e.sync(o))
		e.reopen()
		e.same(e.readAll(o, datanode.Ops, 13), records(o, 13, 18, 700), 5)
		_, err := e.read(o, datanode.Ops, 12, 0)
		e.fails("read of a position trimmed before", err, datanode.ErrNotFound)
		e.fails("append at a used position", e.appendTo(o, datanode.Results, records(o, 1, 1, 10)), datanode.ErrPosition)
		e.ok(e.appendTo(o, datanode.Results, records(o, 7, 1, 10)))
		_, reply := e.fence(1, 6)
		want := datanode.FenceReply{
			First: [datanode.Streams]id.Pos{13, 7}, End: [datanode.Streams]id.Pos{31, 8}, Previous: 5,
		}
		if *reply != want {
			e.Fatalf("fence after the restart: got %+v, want %+v", *reply, want)
		}
	}},
	{"records of earlier epochs keep theirs", func(e *env) {
		o, _ := e.fence(1, 1)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 2, 50)))
		n, _ := e.fence(1, 2)
		e.ok(e.appendTo(n, datanode.Ops, records(n, 3, 2, 50)))
		got := e.readAll(n, datanode.Ops, 1)
		if len(got) != 4 {
			e.Fatalf("read %d records, want 4", len(got))
		}
		e.same(got[:2], records(o, 1, 2, 50), 1)
		e.same(got[2:], records(n, 3, 2, 50), 2)
	}},
	{"a dropped log is forgotten", func(e *env) {
		o, _ := e.fence(1, 3)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 3, 50)))
		e.ok(e.node.DropLog(e.ctx(), &datanode.DropLogRequest{Disk: 1, Epoch: 3}))
		e.fails("append to a dropped log", e.appendTo(o, datanode.Ops, records(o, 4, 1, 50)), datanode.ErrNotFound)
		e.reopen()
		for _, s := range e.status().Streams {
			if s.Disk == 1 {
				e.Fatalf("status still has %+v", s)
			}
		}
		_, reply := e.fence(1, 1)
		if reply.Previous != 0 || reply.End != [datanode.Streams]id.Pos{1, 1} {
			e.Fatalf("fence after the drop: %+v", *reply)
		}
	}},
	{"a log that was never fenced is not found", func(e *env) {
		e.fails("append", e.appendTo(owner{8, 1}, datanode.Ops, records(owner{8, 1}, 1, 1, 9)), datanode.ErrNotFound)
		e.fails("sync", e.sync(owner{8, 1}), datanode.ErrNotFound)
		_, err := e.read(owner{8, 1}, datanode.Ops, 1, 0)
		e.fails("read", err, datanode.ErrNotFound)
		e.fails("trim", e.trim(owner{8, 1}, datanode.Ops, 1), datanode.ErrNotFound)
	}},
	{"status shows every stream", func(e *env) {
		o, _ := e.fence(1, 3)
		e.ok(e.appendTo(o, datanode.Ops, records(o, 1, 8, 300)))
		e.ok(e.trim(o, datanode.Ops, 2))
		found := 0
		for _, s := range e.status().Streams {
			if s.Disk != 1 || s.Stream != datanode.Ops {
				continue
			}
			found++
			if s.Epoch != 3 || s.First != 3 || s.End != 9 || s.Bytes <= 0 {
				e.Fatalf("stream status %+v", s)
			}
		}
		if found != 1 {
			e.Fatalf("status has the stream %d times", found)
		}
	}},
}

var spaceRules = []rule{
	{"a full log keeps a reserve for marks, can be trimmed, and goes on", func(e *env) {
		o, _ := e.fence(1, 1)
		var ops, results id.Pos = 1, 1
		for round := range 3 {
			start := ops
			ops = e.fillLog(o, ops)
			if e.status().Log.UsedBytes > e.status().Log.CapacityBytes {
				e.Fatalf("round %d: %+v", round, e.status().Log)
			}
			_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{
				Disk: 1, Epoch: 1, Stream: datanode.Results, Class: datanode.ClassMark,
				Records: records(o, results, 1, 200),
			})
			if err != nil {
				e.Fatalf("round %d: a mark in a log full of data: %v", round, err)
			}
			e.ok(e.sync(o))
			e.same(e.readAll(o, datanode.Ops, start), records(o, start, int(ops-start), 30_000), 1)
			e.ok(e.trim(o, datanode.Ops, ops-1))
			e.ok(e.trim(o, datanode.Results, results))
			e.ok(e.sync(o))
			results++
		}
	}},
	{"a log that marks have filled is trimmed and fenced all the same", func(e *env) {
		o, _ := e.fence(1, 1)
		end := e.fillLog(o, 1)
		marks := id.Pos(1)
		for ; ; marks++ {
			_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{
				Disk: 1, Epoch: 1, Stream: datanode.Results, Class: datanode.ClassMark,
				Records: records(o, marks, 1, 20_000),
			})
			if err != nil {
				e.fails("a mark in a full log", err, datanode.ErrLogFull)
				break
			}
			if int64(marks)*15_000 > e.status().Log.CapacityBytes {
				e.Fatal("marks do not fill the log")
			}
		}
		n, reply := e.fence(1, 2)
		if reply.End != [datanode.Streams]id.Pos{end, marks} {
			e.Fatalf("fence of a full log: %+v, want ends %d, %d", *reply, end, marks)
		}
		e.ok(e.trim(n, datanode.Ops, end-1))
		e.ok(e.trim(n, datanode.Results, marks-1))
		e.ok(e.sync(n))
		e.reopen()
		e.ok(e.appendTo(n, datanode.Ops, records(n, end, 20, 1000)))
	}},
	{"a log that operations and their marks have filled takes a result after every start", func(e *env) {
		o, _ := e.fence(1, 1)
		end, result := e.fillLog(o, 1), id.Pos(1)
		for round := range 4 {
			for {
				_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{
					Disk: 1, Epoch: 1, Stream: datanode.Ops, Class: datanode.ClassMark, Records: records(o, end, 1, 20_000),
				})
				if err != nil {
					e.fails("a mark in a full log", err, datanode.ErrLogFull)
					break
				}
				end++
			}
			e.reopen()
			_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{
				Disk: 1, Epoch: 1, Stream: datanode.Results, Class: datanode.ClassMark, Records: records(o, result, 1, 20_000),
			})
			if err != nil {
				e.Fatalf("round %d: a result in a log full of operations: %v", round, err)
			}
			e.ok(e.trim(o, datanode.Results, result)) // as a checkpoint does
			result++
		}
	}},
	{"a reservation is taken, replaced and given back", func(e *env) {
		free, spare := e.status().FreeBytes, e.status().SpareBytes
		if free <= 0 || spare <= free {
			e.Fatalf("an empty node has %d bytes free, %d with what is kept", free, spare)
		}
		reserve := func(host string, bytes int64, force bool) error {
			return e.node.Reserve(e.ctx(), &datanode.ReserveRequest{Host: host, Bytes: bytes, Force: force})
		}
		reserved := func(want int64) {
			e.Helper()
			s := e.status()
			if s.ReservedBytes != want || s.FreeBytes > max(free-want, 0) {
				e.Fatalf("reserved %d, free %d of %d; want %d reserved", s.ReservedBytes, s.FreeBytes, free, want)
			}
			if s.SpareBytes != max(spare-want, 0) {
				e.Fatalf("%d bytes spare of %d, %d reserved", s.SpareBytes, spare, want)
			}
		}
		e.ok(reserve("a", free/2, false))
		reserved(free / 2)
		e.ok(reserve("b", free/4, false))
		reserved(free/2 + free/4)
		e.fails("more than is free", reserve("b", free, false), datanode.ErrNoSpace)
		reserved(free/2 + free/4)
		e.ok(reserve("a", 0, false))
		reserved(free / 4)
		e.ok(reserve("b", 2*free, true))
		reserved(2 * free)
		e.fails("beside a forced one", reserve("a", 4096, false), datanode.ErrNoSpace)
		e.ok(reserve("b", 0, false))
		reserved(0)
	}},
}

// fillLog appends until the log is full for data and returns the end.
func (e *env) fillLog(o owner, from id.Pos) id.Pos {
	e.Helper()
	capacity := e.status().Log.CapacityBytes
	for pos := from; ; pos++ {
		err := e.appendTo(o, datanode.Ops, records(o, pos, 1, 30_000))
		if err != nil {
			e.fails("append to a full log", err, datanode.ErrLogFull)
			if int64(pos-from)*30_000 < capacity/2 {
				e.Fatalf("the log of %d bytes is full after %d records of 30 kB", capacity, pos-from)
			}
			return pos
		}
		if int64(pos-from)*25_000 > capacity {
			e.Fatalf("the log of %d bytes took %d records of 30 kB", capacity, pos-from)
		}
	}
}
