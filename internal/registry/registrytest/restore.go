package registrytest

import (
	"errors"
	"fmt"
	"testing"

	"plinth/datanode"
)

var restoreRules = []rule{
	{"a backup comes back whole, under revisions above all", func(e *env) { e.restored(e.Restore) }},
	{"commits of many at once are linearizable", testLinearizable},
}

// RunRestore restores backups of one kind of registry into another.
func RunRestore(t *testing.T, from Open, to func(dump []byte) datanode.RegistryNode) {
	e := &env{T: t, Site: from(t)}
	e.restored(to)
}

// restored makes a backup, goes on, restores the backup, and compares.
func (e *env) restored(restore func(dump []byte) datanode.RegistryNode) {
	var seen []datanode.Compare // what callers read before
	for i := range 300 {
		key := fmt.Sprint("r/", i%200)
		seen = append(seen, datanode.Compare{Key: key, Revision: e.put(key, fmt.Sprint("value ", i))})
	}
	e.put("big", string(make([]byte, datanode.RegistryValueBytesMax)))
	e.put("\xff\xff", "last")
	h := e.grant(ttl)
	e.putUnder(h, "l/a", "leased")
	e.claim(9, 3)
	before := e.list("", 0)
	dump := e.Dump()
	newest := uint64(0)
	for i := range 50 { // what the backup does not know
		key := fmt.Sprint("r/", i)
		newest = e.put(key, "later")
		seen = append(seen, datanode.Compare{Key: key, Revision: newest})
	}
	e.Node = restore(dump)
	if e.Fence != nil {
		e.Fence(9, 3)
	}
	after := e.list("", 0)
	if len(after) != len(before) {
		e.Fatalf("%d entries, want %d", len(after), len(before))
	}
	for i, got := range after {
		want := before[i]
		if got.Key != want.Key || string(got.Value) != string(want.Value) || got.Lease != want.Lease {
			e.Fatalf("entry %q of %d bytes under %d, want %q of %d under %d", got.Key, len(got.Value), got.Lease, want.Key, len(want.Value), want.Lease)
		}
		if got.Revision <= newest {
			e.Fatalf("%q has revision %d, before there was %d", got.Key, got.Revision, newest)
		}
	}
	for _, c := range seen {
		_, err := e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{Compares: []datanode.Compare{c}, Puts: []datanode.Put{{Key: c.Key}}})
		if !errors.Is(err, datanode.ErrConflict) {
			e.Fatalf("compare %+v from before: %v", c, err)
		}
	}
	_, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{After: newest, Wait: watchWait})
	e.fails(err, datanode.ErrCompacted)
	_, err = e.Node.RegistryList(e.Context(), &datanode.RegistryListRequest{At: newest})
	e.fails(err, datanode.ErrCompacted)
	if revision := e.put("new", "1"); revision <= after[0].Revision {
		e.Fatalf("revision %d after a restore at %d", revision, after[0].Revision)
	}
	_, err = e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{Guards: []datanode.Guard{{Disk: 9, Epoch: 2}}, Puts: []datanode.Put{{Key: "new"}}})
	e.fails(err, datanode.ErrFenced)
	// The holder that was there before the restore is there after it, or its key goes.
	e.keepAlive(h)
	e.vanishes(h, "l/a")
}
