package datanodetest

import (
	"errors"
	"fmt"
	"sync"

	"plinth/datanode"
)

func (e *env) get(key string) (string, uint64) {
	e.Helper()
	reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: key})
	if errors.Is(err, datanode.ErrNotFound) {
		return "", 0
	}
	e.ok(err)
	return string(reply.Value), reply.Revision
}

// put sets keys to values, given in turn, without a compare.
func (e *env) put(pairs ...string) uint64 {
	e.Helper()
	reply, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Puts: puts(pairs...)})
	e.ok(err)
	return reply.Revision
}

func puts(pairs ...string) []datanode.Put {
	var out []datanode.Put
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, datanode.Put{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return out
}

// has fails the test unless the key has the value; "" stands for none.
func (e *env) has(key, value string) {
	e.Helper()
	if got, _ := e.get(key); got != value {
		e.Fatalf("%s is %q, want %q", key, got, value)
	}
}

func (e *env) list(prefix string, max int) []datanode.RegistryEntry {
	e.Helper()
	var all []datanode.RegistryEntry
	r := &datanode.RegistryListRequest{Prefix: prefix, Max: max}
	for {
		reply, err := e.node.RegistryList(e.ctx(), r)
		e.ok(err)
		if max > 0 && len(reply.Entries) > max {
			e.Fatalf("a page of %d, asked for at most %d", len(reply.Entries), max)
		}
		all = append(all, reply.Entries...)
		if !reply.More {
			return all
		}
		if len(reply.Entries) == 0 {
			e.Fatal("an empty page says that there is more")
		}
		r.After, r.At = all[len(all)-1].Key, reply.Revision
	}
}

var registryRules = []rule{
	{"a key has the value that was put, until it is deleted", func(e *env) {
		_, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: "t/a"})
		e.fails("get of an absent key", err, datanode.ErrNotFound)
		first := e.put("t/a", "one", "t/b", "two")
		if value, revision := e.get("t/a"); value != "one" || revision != first || first == 0 {
			e.Fatalf("t/a is %q at %d, want one at %d", value, revision, first)
		}
		second := e.put("t/a", "three")
		if second <= first {
			e.Fatalf("revision %d after %d", second, first)
		}
		if value, revision := e.get("t/b"); value != "two" || revision != first {
			e.Fatalf("t/b is %q at %d, want two at %d", value, revision, first)
		}
		_, err = e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Deletes: []string{"t/a", "t/never"}})
		e.ok(err)
		e.has("t/a", "")
		e.has("t/b", "two")
		if third := e.put("t/a", "four"); third <= second {
			e.Fatalf("revision %d after %d and a delete", third, second)
		}
	}},
	{"an empty value is a value", func(e *env) {
		revision := e.put("t/empty", "")
		reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: "t/empty"})
		e.ok(err)
		if len(reply.Value) != 0 || reply.Revision != revision {
			e.Fatalf("got %+v", reply)
		}
	}},
	{"a transaction is applied whole or not at all", func(e *env) {
		revision := e.put("t/a", "1", "t/b", "1")
		commit := func(compares ...datanode.Compare) error {
			_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{
				Compares: compares, Puts: puts("t/a", "2", "t/c", "2"), Deletes: []string{"t/b"},
			})
			return err
		}
		same := datanode.Compare{Key: "t/a", Revision: revision}
		for _, wrong := range []datanode.Compare{
			{Key: "t/b", Revision: revision + 1}, {Key: "t/b", Revision: 0}, {Key: "t/c", Revision: 1}, {Key: "t/c", Revision: revision},
		} {
			e.fails(fmt.Sprintf("compare %+v", wrong), commit(same, wrong), datanode.ErrConflict)
			e.has("t/a", "1")
			e.has("t/b", "1")
			e.has("t/c", "")
		}
		e.ok(commit(same, datanode.Compare{Key: "t/c", Revision: 0}))
		e.has("t/a", "2")
		e.has("t/b", "")
		e.has("t/c", "2")
		e.fails("the same transaction again", commit(same), datanode.ErrConflict)
	}},
	{"keys of a prefix are listed in order, in pages", func(e *env) {
		for _, key := range []string{"t/b", "t/a/x", "t/a", "t", "t/\xff", "u/a", "t/a/y"} {
			e.put(key, "value of "+key)
		}
		want := []string{"t/a", "t/a/x", "t/a/y", "t/b", "t/\xff"}
		for _, max := range []int{0, 1, 2, 5, 100} {
			got := e.list("t/", max)
			if len(got) != len(want) {
				e.Fatalf("pages of %d: %d entries, want %d", max, len(got), len(want))
			}
			for i := range got {
				_, revision := e.get(want[i])
				if got[i].Key != want[i] || string(got[i].Value) != "value of "+want[i] || got[i].Revision != revision {
					e.Fatalf("pages of %d: entry %d is %q = %q at %d", max, i, got[i].Key, got[i].Value, got[i].Revision)
				}
			}
		}
		if got := e.list("v", 0); len(got) != 0 {
			e.Fatalf("nothing has the prefix v, got %v", got)
		}
	}},
	{"a guard of a disk that nobody has fenced away holds", func(e *env) {
		o, _ := e.fence(1, 4)
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: o.disk, Epoch: o.epoch}}, Puts: puts("t/a", "1"),
		})
		e.ok(err)
		_, err = e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: o.disk, Epoch: o.epoch}, {Disk: o.disk, Epoch: o.epoch - 1}}, Puts: puts("t/a", "2"),
		})
		e.fails("a second guard that is fenced", err, datanode.ErrFenced)
		e.has("t/a", "1")
	}},
	{"the largest key, value and transaction fit", func(e *env) {
		key := make([]byte, datanode.RegistryKeyBytesMax)
		for i := range key {
			key[i] = 'k'
		}
		e.put(string(key), string(make([]byte, datanode.RegistryValueBytesMax)))
		if value, _ := e.get(string(key)); len(value) != datanode.RegistryValueBytesMax {
			e.Fatalf("the largest value came back with %d bytes", len(value))
		}
		var pairs []string
		for i := range datanode.RegistryOpsMax {
			pairs = append(pairs, fmt.Sprintf("t/%03d", i), "x")
		}
		e.put(pairs...)
		if got := e.list("t/", 0); len(got) != datanode.RegistryOpsMax {
			e.Fatalf("%d keys, want %d", len(got), datanode.RegistryOpsMax)
		}
	}},
	{"what was committed survives its node", func(e *env) {
		e.put("t/a", "1", "t/b", "1")
		last := e.put("t/a", "2")
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Deletes: []string{"t/b"}})
		e.ok(err)
		e.reopen()
		if value, revision := e.get("t/a"); value != "2" || revision != last {
			e.Fatalf("t/a is %q at %d, want 2 at %d", value, revision, last)
		}
		e.has("t/b", "")
		if next := e.put("t/b", "3"); next <= last {
			e.Fatalf("revision %d after %d and a restart", next, last)
		}
	}},
	{"a node keeps no slice of a request, and a caller owns the reply", func(e *env) {
		txn := &datanode.RegistryTxn{Puts: puts("t/a", "value")}
		_, err := e.node.RegistryCommit(e.ctx(), txn)
		e.ok(err)
		clear(txn.Puts[0].Value)
		for range 2 {
			reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: "t/a"})
			e.ok(err)
			if string(reply.Value) != "value" {
				e.Fatalf("t/a is %q", reply.Value)
			}
			clear(reply.Value)
			clear(e.list("t/a", 0)[0].Value)
		}
	}},
	{"a lease's keys go with it, and it survives its node", func(e *env) {
		grant, err := e.node.RegistryGrant(e.ctx(), &datanode.RegistryGrantRequest{TTL: datanode.LeaseTTLMax})
		e.ok(err)
		put := func() error {
			_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: "t/a", Value: []byte("1"), Lease: grant.Lease}}})
			return err
		}
		e.ok(put())
		keepAlive := func() error {
			return e.node.RegistryKeepAlive(e.ctx(), &datanode.RegistryKeepAliveRequest{Lease: grant.Lease})
		}
		e.reopen()
		e.ok(keepAlive())
		reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: "t/a"})
		e.ok(err)
		if entries := e.list("t/", 0); reply.Lease != grant.Lease || len(entries) != 1 || entries[0].Lease != grant.Lease {
			e.Fatalf("%+v and %+v, want lease %d", reply, entries, grant.Lease)
		}
		e.ok(e.node.RegistryRevoke(e.ctx(), &datanode.RegistryRevokeRequest{Lease: grant.Lease}))
		e.has("t/a", "")
		e.fails("keeping alive what has ended", keepAlive(), datanode.ErrLeaseLost)
		e.fails("a put under a lease that has ended", put(), datanode.ErrLeaseLost)
	}},
	{"a watch gives changes in order", func(e *env) {
		from := e.put("t/a", "1")
		second := e.put("t/a", "2", "t/b", "3", "u/c", "4")
		_, err := e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{Deletes: []string{"t/b"}})
		e.ok(err)
		var got []datanode.RegistryEvent
		for after := from; len(got) < 3; {
			reply, err := e.node.RegistryWatch(e.ctx(), &datanode.RegistryWatchRequest{Prefix: "t/", After: after, Max: 1})
			e.ok(err)
			got = append(got, reply.Events...)
			after = reply.Revision
		}
		for i, want := range []datanode.RegistryEvent{{Key: "t/a", Value: []byte("2")}, {Key: "t/b", Value: []byte("3")}, {Key: "t/b", Deleted: true}} {
			if g := got[i]; g.Key != want.Key || string(g.Value) != string(want.Value) || g.Deleted != want.Deleted || (i < 2) != (g.Revision == second) {
				e.Fatalf("event %d is %+v, want %+v", i, g, want)
			}
		}
		_, err = e.node.RegistryWatch(e.ctx(), &datanode.RegistryWatchRequest{After: second + 100})
		e.fails("a watch from a revision to come", err, datanode.ErrCompacted)
	}},
	{"counters raised by many at once miss no step", func(e *env) {
		const callers, steps = 6, 15
		var failed [callers]error
		var running sync.WaitGroup
		for n := range callers {
			running.Go(func() { failed[n] = raise(e, "t/counter", steps) })
		}
		running.Wait()
		e.ok(errors.Join(failed[:]...))
		e.has("t/counter", fmt.Sprint(callers*steps))
	}},
}

// raise adds one to a counter, steps times, whoever else does.
func raise(e *env, key string, steps int) error {
	for done := 0; done < steps; {
		var number int
		var revision uint64
		reply, err := e.node.RegistryGet(e.ctx(), &datanode.RegistryGetRequest{Key: key})
		if err == nil {
			revision = reply.Revision
			if _, err := fmt.Sscan(string(reply.Value), &number); err != nil {
				return err
			}
		} else if !errors.Is(err, datanode.ErrNotFound) {
			return err
		}
		_, err = e.node.RegistryCommit(e.ctx(), &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: key, Revision: revision}}, Puts: puts(key, fmt.Sprint(number+1)),
		})
		switch {
		case err == nil:
			done++
		case !errors.Is(err, datanode.ErrConflict):
			return err
		}
	}
	return nil
}
