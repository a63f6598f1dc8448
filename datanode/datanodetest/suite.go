package datanodetest

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// Run tests a node against the contract. open gives a node on fresh storage and
// a function that closes it (it may as well kill it) and opens the same storage
// again; it arranges the final close by t.Cleanup. The node has at least four
// healthy spindles of at least 16 MiB, a log between 2 and 64 MiB, and a complete
// index. With names of groups only those are tested.
func Run(t *testing.T, open func(t *testing.T) (node datanode.Node, reopen func() datanode.Node), only ...string) {
	groups := []struct {
		name  string
		rules []rule
	}{
		{"log", logRules},
		{"space", spaceRules},
		{"fence", fenceRules},
		{"fragment", fragmentRules},
		{"index", indexRules},
		{"reclaim", reclaimRules},
		{"forward", forwardRules},
		{"replica", replicaRules},
		{"registry", registryRules},
		{"bounds", boundsRules},
	}
	for _, g := range groups {
		if len(only) > 0 && !slices.Contains(only, g.name) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			for _, r := range g.rules {
				t.Run(r.name, func(t *testing.T) {
					node, reopen := open(t)
					r.test(&env{T: t, node: node, again: reopen})
				})
			}
		})
	}
}

// rule is one statement of the contract and its test.
type rule struct {
	name string
	test func(e *env)
}

// env is one subtest's node.
type env struct {
	*testing.T
	node   datanode.Node
	again  func() datanode.Node
	number uint64 // of the last segment made
}

func (e *env) ctx() context.Context { return e.Context() }

// reopen closes the node and opens its storage again.
func (e *env) reopen() {
	e.Helper()
	e.node = e.again()
}

// ok fails the test on an error.
func (e *env) ok(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// fails fails the test unless err is one of the errors in wanted, and an
// *Error as every error of a node is.
func (e *env) fails(what string, err error, wanted ...*datanode.Error) {
	e.Helper()
	var coded *datanode.Error
	if err == nil || !errors.As(err, &coded) {
		e.Fatalf("%s: got %v, want an error of a data node", what, err)
	}
	for _, w := range wanted {
		if errors.Is(err, w) {
			return
		}
	}
	e.Fatalf("%s: got %v (code %d), want %v", what, err, coded.Code, wanted)
}

func (e *env) status() *datanode.Status {
	e.Helper()
	s, err := e.node.Status(e.ctx())
	e.ok(err)
	return s
}

// owner is a disk under an epoch.
type owner struct {
	disk  id.Disk
	epoch id.Epoch
}

// fence makes an owner, without floors.
func (e *env) fence(disk id.Disk, epoch id.Epoch) (owner, *datanode.FenceReply) {
	e.Helper()
	reply, err := e.node.Fence(e.ctx(), &datanode.FenceRequest{Disk: disk, Epoch: epoch})
	e.ok(err)
	return owner{disk, epoch}, reply
}

// records makes count records from a position on, of a size that varies around
// bytes and content that follows from disk and position.
func records(o owner, from id.Pos, count, bytes int) []datanode.Record {
	out := make([]datanode.Record, count)
	for i := range out {
		pos := from + id.Pos(i)
		rng := rand.New(rand.NewPCG(uint64(o.disk), uint64(pos)))
		data := make([]byte, max(bytes-bytes/8+rng.IntN(bytes/4+1), 0))
		fill(rng, data)
		out[i] = datanode.Record{Pos: pos, Type: uint8(1 + pos%7), Data: data}
		fill(rng, out[i].MAC[:])
	}
	return out
}

func fill(rng *rand.Rand, p []byte) {
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// appendTo appends records of class data.
func (e *env) appendTo(o owner, stream datanode.Stream, rs []datanode.Record) error {
	_, err := e.node.Append(e.ctx(), &datanode.AppendRequest{
		Disk: o.disk, Epoch: o.epoch, Stream: stream, Records: rs,
	})
	return err
}

func (e *env) sync(o owner) error {
	return e.node.Sync(e.ctx(), &datanode.SyncRequest{Disk: o.disk, Epoch: o.epoch})
}

func (e *env) trim(o owner, stream datanode.Stream, through id.Pos) error {
	return e.node.TrimLog(e.ctx(), &datanode.TrimLogRequest{
		Disk: o.disk, Epoch: o.epoch, Stream: stream, Through: through,
	})
}

func (e *env) read(o owner, stream datanode.Stream, from id.Pos, bytesMax int) ([]datanode.Record, error) {
	reply, err := e.node.ReadLog(e.ctx(), &datanode.ReadLogRequest{
		Disk: o.disk, Epoch: o.epoch, Stream: stream, From: from, BytesMax: bytesMax,
	})
	if err != nil {
		return nil, err
	}
	return reply.Records, nil
}

// readAll reads a stream from a position to its end, in pages.
func (e *env) readAll(o owner, stream datanode.Stream, from id.Pos) []datanode.Record {
	e.Helper()
	var all []datanode.Record
	for {
		page, err := e.read(o, stream, from, 0)
		e.ok(err)
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
		from = page[len(page)-1].Pos + 1
	}
}

// same compares records read with those appended under epoch.
func (e *env) same(got, want []datanode.Record, epoch id.Epoch) {
	e.Helper()
	if len(got) != len(want) {
		e.Fatalf("read %d records, want %d", len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Pos != w.Pos || g.Type != w.Type || g.MAC != w.MAC || string(g.Data) != string(w.Data) {
			e.Fatalf("record %d (position %d) differs from the one appended at %d", i, g.Pos, w.Pos)
		}
		if g.Epoch != epoch {
			e.Fatalf("position %d has epoch %d, want %d", g.Pos, g.Epoch, epoch)
		}
	}
}
