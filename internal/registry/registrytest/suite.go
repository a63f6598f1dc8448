// Package registrytest tests any datanode.RegistryNode against its contract: the
// Pebble of one node, and etcd, which several share.
package registrytest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// Site is an empty registry under test. Who makes it arranges the final close by
// t.Cleanup.
type Site struct {
	Node datanode.RegistryNode
	// Reopen closes Node and opens the same registry again.
	Reopen func() datanode.RegistryNode
	// Fence makes guards of lower epochs of the disk fail, where that is not done by
	// claiming an epoch. May be nil.
	Fence func(d id.Disk, newest id.Epoch)
	// Dump makes a backup of Node. Restore makes a registry from one, besides Node,
	// and leaves Node as it is.
	Dump    func() []byte
	Restore func(dump []byte) datanode.RegistryNode
}

// Open makes a site.
type Open func(t *testing.T) *Site

// Run tests each rule of the contract on a registry of its own; those that mostly
// wait run at the same time.
func Run(t *testing.T, open Open) {
	for _, group := range [][]rule{rules, listRules, watchRules, restoreRules} {
		for _, rule := range group {
			t.Run(rule.name, func(t *testing.T) { rule.test(&env{T: t, Site: open(t)}) })
		}
	}
	for _, rule := range leaseRules {
		t.Run(rule.name, func(t *testing.T) {
			t.Parallel()
			rule.test(&env{T: t, Site: open(t)})
		})
	}
}

// FencedBelow is what a data node says whose disks all have that epoch.
func FencedBelow(newest id.Epoch) func(id.Disk, id.Epoch) error {
	return func(_ id.Disk, epoch id.Epoch) error {
		if epoch < newest {
			return datanode.ErrFenced
		}
		return nil
	}
}

type rule struct {
	name string
	test func(e *env)
}

type env struct {
	*testing.T
	*Site
}

// claim makes an epoch of a disk the newest.
func (e *env) claim(d id.Disk, epoch id.Epoch) {
	e.Helper()
	e.commit(datanode.RegistryTxn{Puts: []datanode.Put{{Key: datanode.EpochKey(d), Value: datanode.EpochValue(epoch)}}})
	if e.Fence != nil {
		e.Fence(d, epoch)
	}
}

func (e *env) fails(err error, want *datanode.Error) {
	e.Helper()
	if !errors.Is(err, want) {
		e.Fatalf("got %v, want %v", err, want)
	}
}

func (e *env) commit(t datanode.RegistryTxn) uint64 {
	e.Helper()
	reply, err := e.Node.RegistryCommit(e.Context(), &t)
	if err != nil {
		e.Fatal(err)
	}
	return reply.Revision
}

func (e *env) put(key, value string) uint64 {
	e.Helper()
	return e.commit(datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: []byte(value)}}})
}

// has fails the test unless the key has that value and revision.
func (e *env) has(key, value string, revision uint64) {
	e.Helper()
	reply, err := e.Node.RegistryGet(e.Context(), &datanode.RegistryGetRequest{Key: key})
	if err != nil {
		e.Fatal(err)
	}
	if string(reply.Value) != value || reply.Revision != revision {
		e.Fatalf("key %q is %q at %d, want %q at %d", key, reply.Value, reply.Revision, value, revision)
	}
}

func (e *env) lacks(key string) {
	e.Helper()
	_, err := e.Node.RegistryGet(e.Context(), &datanode.RegistryGetRequest{Key: key})
	e.fails(err, datanode.ErrNotFound)
}

func (e *env) list(prefix string, max int) []datanode.RegistryEntry {
	e.Helper()
	var all []datanode.RegistryEntry
	r := &datanode.RegistryListRequest{Prefix: prefix, Max: max}
	for {
		reply, err := e.Node.RegistryList(e.Context(), r)
		if err != nil {
			e.Fatal(err)
		}
		if max > 0 && len(reply.Entries) > max {
			e.Fatalf("a page of %d, asked for at most %d", len(reply.Entries), max)
		}
		all = append(all, reply.Entries...)
		if !reply.More {
			return all
		}
		r.After, r.At = all[len(all)-1].Key, reply.Revision
	}
}

var rules = []rule{
	{"what is put is there, under a rising revision", func(e *env) {
		e.lacks("a")
		first := e.put("a", "1")
		second := e.put("b", "")
		if first == 0 || second <= first {
			e.Fatalf("revisions %d, %d", first, second)
		}
		e.has("a", "1", first)
		e.has("b", "", second)
		third := e.put("a", "2")
		e.has("a", "2", third)
		e.has("b", "", second)
	}},
	{"a commit survives its registry, and so does the revision", func(e *env) {
		first := e.put("a", "1")
		gone := e.put("b", "2")
		e.commit(datanode.RegistryTxn{Deletes: []string{"b"}})
		e.Node = e.Reopen()
		e.has("a", "1", first)
		e.lacks("b")
		if next := e.put("b", "3"); next <= gone {
			e.Fatalf("revision %d after %d", next, gone)
		}
	}},
	{"compares decide, and a failed one changes nothing", func(e *env) {
		txn := func(key string, revision uint64) error {
			_, err := e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{
				Compares: []datanode.Compare{{Key: key, Revision: revision}, {Key: "never", Revision: 0}},
				Puts:     []datanode.Put{{Key: "x", Value: []byte("new")}, {Key: "y", Value: []byte("new")}},
				Deletes:  []string{"a"},
			})
			return err
		}
		a := e.put("a", "1")
		e.fails(txn("a", 0), datanode.ErrConflict)
		e.fails(txn("a", a+1), datanode.ErrConflict)
		e.fails(txn("b", a), datanode.ErrConflict)
		e.has("a", "1", a)
		e.lacks("x")
		if err := txn("a", a); err != nil {
			e.Fatal(err)
		}
		e.lacks("a")
		e.fails(txn("a", a), datanode.ErrConflict)
		e.fails(txn("never", 1), datanode.ErrConflict)
	}},
	{"a transaction without changes compares", func(e *env) {
		a := e.put("a", "1")
		e.commit(datanode.RegistryTxn{Compares: []datanode.Compare{{Key: "a", Revision: a}}})
		_, err := e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{Compares: []datanode.Compare{{Key: "a", Revision: a + 9}}})
		e.fails(err, datanode.ErrConflict)
		e.has("a", "1", a)
	}},
	{"a fenced guard stops all", func(e *env) {
		txn := func(epochs ...id.Epoch) error {
			r := &datanode.RegistryTxn{Puts: []datanode.Put{{Key: "a"}}}
			for i, epoch := range epochs {
				r.Guards = append(r.Guards, datanode.Guard{Disk: id.Disk(i + 1), Epoch: epoch})
			}
			_, err := e.Node.RegistryCommit(e.Context(), r)
			return err
		}
		e.claim(1, 5)
		e.claim(2, 5)
		e.fails(txn(5, 4), datanode.ErrFenced)
		e.fails(txn(4, 5), datanode.ErrFenced)
		e.lacks("a")
		if err := txn(5, 5); err != nil {
			e.Fatal(err)
		}
		e.claim(1, 6)
		e.fails(txn(5), datanode.ErrFenced)
		// A fence is what is said, whatever else does not hold.
		_, err := e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{
			Guards: []datanode.Guard{{Disk: 1, Epoch: 5}}, Compares: []datanode.Compare{{Key: "never", Revision: 1}}, Deletes: []string{"a"},
		})
		e.fails(err, datanode.ErrFenced)
	}},
	{"lists are in order, by prefix, in pages", func(e *env) {
		keys := []string{"p/", "p/\x00", "p/a", "p/a/b", "p/b", "p/\xff\xff", "p0", "o/z", "\xff\xff"}
		for _, k := range keys {
			e.put(k, "value of "+k)
		}
		for _, prefix := range []string{"", "p", "p/", "p/a", "p/\xff", "\xff", "q"} {
			var want []string
			for _, k := range keys {
				if strings.HasPrefix(k, prefix) {
					want = append(want, k)
				}
			}
			slices.Sort(want)
			for _, max := range []int{0, 1, 2, 100} {
				var got []string
				for _, entry := range e.list(prefix, max) {
					got = append(got, entry.Key)
					e.has(entry.Key, "value of "+entry.Key, entry.Revision)
				}
				if !slices.Equal(got, want) {
					e.Fatalf("prefix %q in pages of %d: %q, want %q", prefix, max, got, want)
				}
			}
		}
		for after, want := range map[string]int{"a": 6, "p/b": 1, "p0": 0, "z": 0} {
			reply, err := e.Node.RegistryList(e.Context(), &datanode.RegistryListRequest{Prefix: "p/", After: after})
			if err != nil || len(reply.Entries) != want || reply.More {
				e.Fatalf("after %q: %+v, %v, want %d", after, reply, err, want)
			}
		}
	}},
	{"the largest entry and transaction fit, larger ones are refused", func(e *env) {
		key, value := strings.Repeat("k", datanode.RegistryKeyBytesMax), strings.Repeat("v", datanode.RegistryValueBytesMax)
		e.has(key, value, e.put(key, value))
		full := datanode.RegistryTxn{}
		for i := range datanode.RegistryOpsMax {
			full.Puts = append(full.Puts, datanode.Put{Key: fmt.Sprint(i)})
		}
		e.commit(full)
		full.Compares = nil
		for i := range datanode.RegistryOpsMax {
			full.Compares = append(full.Compares, datanode.Compare{Key: fmt.Sprint("none", i)})
		}
		e.commit(full)
		most := datanode.RegistryTxn{Puts: []datanode.Put{{Key: "rest", Value: make([]byte, 200<<10)}}}
		for i := range 3 {
			most.Puts = append(most.Puts, datanode.Put{Key: fmt.Sprint("most", i), Value: []byte(value)})
		}
		e.commit(most)
		var big []datanode.Put
		for i := range datanode.RegistryTxnBytesMax/len(value) + 1 {
			big = append(big, datanode.Put{Key: fmt.Sprint("big", i), Value: []byte(value)})
		}
		over := full
		over.Puts = append(slices.Clone(full.Puts), datanode.Put{Key: "over"})
		for _, r := range []datanode.RegistryTxn{
			over,
			{Puts: []datanode.Put{{Key: key + "k"}}},
			{Puts: []datanode.Put{{Key: ""}}},
			{Puts: []datanode.Put{{Key: "a", Value: []byte(value + "v")}}},
			{Puts: []datanode.Put{{Key: "a"}, {Key: "a"}}},
			{Puts: []datanode.Put{{Key: "a"}}, Deletes: []string{"a"}},
			{Deletes: []string{""}},
			{Compares: make([]datanode.Compare, datanode.RegistryOpsMax+1)},
			{Puts: big},
		} {
			_, err := e.Node.RegistryCommit(e.Context(), &r)
			e.fails(err, datanode.ErrInvalid)
		}
		_, err := e.Node.RegistryGet(e.Context(), &datanode.RegistryGetRequest{})
		e.fails(err, datanode.ErrInvalid)
		_, err = e.Node.RegistryList(e.Context(), &datanode.RegistryListRequest{Max: -1})
		e.fails(err, datanode.ErrInvalid)
	}},
	{"no slice of a request is kept, and a reply is the caller's", func(e *env) {
		value := []byte("mine")
		revision := e.commit(datanode.RegistryTxn{Puts: []datanode.Put{{Key: "a", Value: value}}})
		copy(value, "####")
		e.has("a", "mine", revision)
		reply, err := e.Node.RegistryGet(e.Context(), &datanode.RegistryGetRequest{Key: "a"})
		if err != nil {
			e.Fatal(err)
		}
		copy(reply.Value, "####")
		e.list("", 0)[0].Value[0] = '#'
		e.has("a", "mine", revision)
	}},
	{"of racing transactions with one compare, one wins", func(e *env) {
		const racers, rounds = 4, 12
		var won [racers]int
		var failed [racers]error
		var running sync.WaitGroup
		for i := range racers {
			running.Go(func() {
				for won[i] < rounds && failed[i] == nil {
					failed[i] = increment(e.Node, &won[i])
				}
			})
		}
		running.Wait()
		if err := errors.Join(failed[:]...); err != nil {
			e.Fatal(err)
		}
		if got := string(e.list("n", 0)[0].Value); got != fmt.Sprint(racers*rounds) {
			e.Fatalf("counted to %s, want %d", got, racers*rounds)
		}
	}},
	{"random transactions do what a model does", testModel},
}
