package registrytest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"plinth/datanode"
)

// watchWait is longer than a watch waits for what has happened.
const watchWait = 10 * time.Second

// watch returns the next events, and fails the test if there are none.
func (e *env) watch(prefix string, after uint64, max int) *datanode.RegistryWatchReply {
	e.Helper()
	reply, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Prefix: prefix, After: after, Max: max, Wait: watchWait})
	if err != nil {
		e.Fatal(err)
	}
	if len(reply.Events) == 0 {
		e.Fatalf("no event of %q after %d", prefix, after)
	}
	return reply
}

// follow applies events to entries, up to a revision.
func (e *env) follow(entries map[string]datanode.RegistryEntry, prefix string, after, to uint64, max int) {
	e.Helper()
	last := after
	for after < to {
		reply := e.watch(prefix, after, max)
		for _, ev := range reply.Events {
			if ev.Revision < last || ev.Revision <= after || ev.Revision > reply.Revision {
				e.Fatalf("event at %d after %d in a reply from %d to %d", ev.Revision, last, after, reply.Revision)
			}
			last = ev.Revision
			if ev.Deleted {
				delete(entries, ev.Key)
			} else {
				entries[ev.Key] = datanode.RegistryEntry{Key: ev.Key, Value: ev.Value, Revision: ev.Revision, Lease: ev.Lease}
			}
		}
		after = reply.Revision
	}
}

var watchRules = []rule{
	{"a watch gives what happened, in order, deletions too", func(e *env) {
		from := e.put("w/a", "1")
		second := e.put("w/a", "2")
		e.put("x/a", "not watched")
		e.commit(datanode.RegistryTxn{Deletes: []string{"w/a", "w/never"}})
		last := e.put("w/b", "3")
		want := []datanode.RegistryEvent{{Key: "w/a", Value: []byte("2"), Revision: second}, {Key: "w/a", Deleted: true}, {Key: "w/b", Value: []byte("3"), Revision: last}}
		for _, max := range []int{0, 1} {
			var got []datanode.RegistryEvent
			for after := from; len(got) < len(want); {
				reply := e.watch("w/", after, max)
				got = append(got, reply.Events...)
				after = reply.Revision
			}
			for i, ev := range got {
				w := want[i]
				if ev.Key != w.Key || string(ev.Value) != string(w.Value) || ev.Deleted != w.Deleted || !w.Deleted && ev.Revision != w.Revision ||
					w.Deleted && (ev.Revision <= second || ev.Revision >= last) {
					e.Fatalf("event %d in pages of %d: %+v, want %+v", i, max, ev, w)
				}
			}
		}
	}},
	{"a watch waits for what happens, and not for what does not", func(e *env) {
		from := e.put("w/a", "1")
		reply, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Prefix: "w/", After: from, Wait: 50 * time.Millisecond})
		if err != nil || len(reply.Events) != 0 || reply.Revision < from {
			e.Fatalf("%+v, %v", reply, err)
		}
		got := make(chan error, 1)
		go func() {
			reply, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Prefix: "w/", After: reply.Revision, Wait: watchWait})
			if err == nil && (len(reply.Events) != 1 || reply.Events[0].Key != "w/b") {
				err = fmt.Errorf("got %+v", reply)
			}
			got <- err
		}()
		time.Sleep(20 * time.Millisecond) // mostly it waits by now
		e.put("x/b", "not watched")
		e.put("w/b", "2")
		if err := <-got; err != nil {
			e.Fatal(err)
		}
		if _, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Wait: datanode.RegistryWatchMax + 1}); !errors.Is(err, datanode.ErrInvalid) {
			e.Fatal(err)
		}
	}},
	{"a transaction's changes are in one reply", func(e *env) {
		from := e.put("w", "1")
		full := datanode.RegistryTxn{}
		for i := range datanode.RegistryOpsMax {
			full.Puts = append(full.Puts, datanode.Put{Key: fmt.Sprint("w/", i)})
		}
		revision := e.commit(full)
		e.commit(full)
		reply := e.watch("w/", from, 1)
		if len(reply.Events) != len(full.Puts) || reply.Revision != revision {
			e.Fatalf("%d events to %d, want %d to %d", len(reply.Events), reply.Revision, len(full.Puts), revision)
		}
	}},
	{"a list and the watch after it miss nothing", func(e *env) {
		seed := rand.Uint64()
		e.Logf("seed %d", seed)
		stop, done := make(chan struct{}), make(chan error)
		go func() { done <- e.churn("w/", seed, stop) }()
		kept := map[string]datanode.RegistryEntry{}
		time.Sleep(10 * time.Millisecond)
		at := uint64(0)
		r := &datanode.RegistryListRequest{Prefix: "w/", Max: 3}
		for more := true; more; {
			page, err := e.Node.RegistryList(e.Context(), r)
			if err != nil {
				e.Fatal(err)
			}
			for _, entry := range page.Entries {
				kept[entry.Key] = entry
				if entry.Revision > page.Revision {
					e.Fatalf("entry of %d in a list at %d", entry.Revision, page.Revision)
				}
				r.After = entry.Key
			}
			if at != 0 && page.Revision != at {
				e.Fatalf("a page at %d of a list at %d", page.Revision, at)
			}
			at, r.At, more = page.Revision, page.Revision, page.More
		}
		time.Sleep(20 * time.Millisecond)
		close(stop)
		if err := <-done; err != nil {
			e.Fatal(err)
		}
		e.follow(kept, "w/", at, e.put("w/end", "end"), 5)
		now := e.list("w/", 0)
		if len(now) != len(kept) {
			e.Fatalf("followed to %d entries, there are %d", len(kept), len(now))
		}
		for _, entry := range now {
			if got := kept[entry.Key]; string(got.Value) != string(entry.Value) || got.Revision != entry.Revision {
				e.Fatalf("followed to %+v, there is %+v", got, entry)
			}
		}
	}},
	{"a revision that is not reached is another registry's", func(e *env) {
		at := e.put("w/a", "1")
		_, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Prefix: "w/", After: at + 1000, Wait: watchWait})
		e.fails(err, datanode.ErrCompacted)
		_, err = e.Node.RegistryList(e.Context(), &datanode.RegistryListRequest{Prefix: "w/", At: at + 1000})
		e.fails(err, datanode.ErrCompacted)
	}},
}

// churn changes 12 keys at random until stop is closed, 40 times at least.
func (e *env) churn(prefix string, seed uint64, stop chan struct{}) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	for n := 0; n < 40 || !closed(stop); n++ {
		t := &datanode.RegistryTxn{}
		for _, k := range rng.Perm(12)[:1+rng.IntN(4)] {
			if key := fmt.Sprint(prefix, k); rng.IntN(3) == 0 {
				t.Deletes = append(t.Deletes, key)
			} else {
				t.Puts = append(t.Puts, datanode.Put{Key: key, Value: fmt.Append(nil, n)})
			}
		}
		if _, err := e.Node.RegistryCommit(e.Context(), t); err != nil {
			return err
		}
	}
	return nil
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var listRules = []rule{
	{"pages of a list are of one instant, under writes", func(e *env) {
		seed := rand.Uint64()
		e.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 1))
		model := map[string]string{}
		for n := range 30 {
			want := maps.Clone(model)
			r := &datanode.RegistryListRequest{Prefix: "p/", Max: 1 + rng.IntN(4)}
			got := map[string]string{}
			for more := true; more; {
				page, err := e.Node.RegistryList(e.Context(), r)
				if err != nil {
					e.Fatal(err)
				}
				for _, entry := range page.Entries {
					got[entry.Key], r.After = string(entry.Value), entry.Key
				}
				r.At, more = page.Revision, page.More
				for range rng.IntN(3) { // between the pages
					key := fmt.Sprint("p/", rng.IntN(15))
					if _, is := model[key]; is && rng.IntN(2) == 0 {
						e.commit(datanode.RegistryTxn{Deletes: []string{key}})
						delete(model, key)
					} else {
						e.put(key, fmt.Sprint(n))
						model[key] = fmt.Sprint(n)
					}
				}
			}
			if !maps.Equal(got, want) {
				e.Fatalf("list %d: %v, want %v", n, got, want)
			}
		}
	}},
	{"a page of large values ends early", func(e *env) {
		value := strings.Repeat("v", datanode.RegistryValueBytesMax)
		const n = 10
		for i := range n {
			e.put(fmt.Sprint("p/", i), value)
		}
		page, err := e.Node.RegistryList(e.Context(), &datanode.RegistryListRequest{Prefix: "p/"})
		if err != nil || !page.More || len(page.Entries)*len(value) > datanode.RegistryPageBytesMax+len(value) {
			e.Fatalf("a page of %d, more: %t, %v", len(page.Entries), page.More, err)
		}
		all := e.list("p/", 0)
		if len(all) != n || !slices.IsSortedFunc(all, func(a, b datanode.RegistryEntry) int { return strings.Compare(a.Key, b.Key) }) {
			e.Fatalf("%d entries", len(all))
		}
	}},
}
