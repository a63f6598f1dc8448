package registrytest

import (
	"errors"
	"fmt"
	"time"

	"plinth/datanode"
)

const (
	// ttl is of most leases here: the shortest.
	ttl = datanode.LeaseTTLMin
	// patience bounds how long a test waits for what has to happen.
	patience = 30 * time.Second
)

// hold is a lease as its holder counts it.
type hold struct {
	lease datanode.LeaseID
	until time.Time
}

func (e *env) grant(ttl time.Duration) *hold {
	e.Helper()
	sent := time.Now()
	reply, err := e.Node.RegistryGrant(e.Context(), &datanode.RegistryGrantRequest{TTL: ttl})
	if err != nil {
		e.Fatal(err)
	}
	return &hold{reply.Lease, sent.Add(ttl)}
}

func (e *env) keepAlive(h *hold) {
	e.Helper()
	sent := time.Now()
	if err := e.Node.RegistryKeepAlive(e.Context(), &datanode.RegistryKeepAliveRequest{Lease: h.lease}); err != nil {
		e.Fatal(err)
	}
	h.until = sent.Add(ttl)
}

func (e *env) putUnder(h *hold, key, value string) uint64 {
	e.Helper()
	return e.commit(datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: []byte(value), Lease: h.lease}}})
}

// vanishes waits until a key is gone, and fails the test if it was gone while its
// holder still counted on it.
func (e *env) vanishes(h *hold, key string) {
	e.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		asked := time.Now()
		_, err := e.Node.RegistryGet(e.Context(), &datanode.RegistryGetRequest{Key: key})
		answered := time.Now()
		switch {
		case errors.Is(err, datanode.ErrNotFound):
			if answered.Before(h.until) {
				e.Fatalf("%s is gone %v before its holder's time is over", key, h.until.Sub(answered))
			}
			return
		case err != nil:
			e.Fatal(err)
		case asked.After(deadline):
			e.Fatalf("%s is still there", key)
		}
	}
}

var leaseRules = []rule{
	{"keys under a lease vanish after its time, and not before", func(e *env) {
		h := e.grant(ttl)
		from := e.putUnder(h, "l/a", "1")
		e.putUnder(h, "l/b", "2")
		e.put("l/other", "3")
		if got := e.list("l/", 0); len(got) != 3 || got[0].Lease != h.lease || got[2].Lease != 0 {
			e.Fatalf("%+v", got)
		}
		e.vanishes(h, "l/a")
		e.vanishes(h, "l/b")
		e.has("l/other", "3", e.list("l/other", 0)[0].Revision)
		_, err := e.Node.RegistryCommit(e.Context(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: "l/late", Lease: h.lease}, {Key: "l/too"}}})
		e.fails(err, datanode.ErrLeaseLost)
		e.lacks("l/late")
		e.lacks("l/too")
		e.fails(e.Node.RegistryKeepAlive(e.Context(), &datanode.RegistryKeepAliveRequest{Lease: h.lease}), datanode.ErrLeaseLost)
		gone := map[string]bool{}
		for after := from; len(gone) < 2; {
			reply := e.watch("l/", after, 0)
			for _, ev := range reply.Events {
				if ev.Deleted {
					gone[ev.Key] = true
				}
			}
			after = reply.Revision
		}
		// Nobody's again: who compares that it is absent has it.
		e.commit(datanode.RegistryTxn{Compares: []datanode.Compare{{Key: "l/a"}}, Puts: []datanode.Put{{Key: "l/a"}}})
	}},
	{"a watch learns of the end of a lease by itself", func(e *env) {
		h := e.grant(ttl)
		from := e.putUnder(h, "l/a", "1")
		for after, deadline := from, time.Now().Add(patience); ; {
			reply, err := e.Node.RegistryWatch(e.Context(), &datanode.RegistryWatchRequest{Prefix: "l/", After: after, Wait: watchWait})
			if err != nil || time.Now().After(deadline) {
				e.Fatalf("%+v, %v", reply, err)
			}
			if len(reply.Events) > 0 {
				if !reply.Events[0].Deleted || time.Now().Before(h.until) {
					e.Fatalf("%+v, %v early", reply, time.Until(h.until))
				}
				return
			}
			after = reply.Revision
		}
	}},
	{"a lease that is kept alive lasts", func(e *env) {
		h := e.grant(ttl)
		first := e.putUnder(h, "l/a", "1")
		for begun := time.Now(); time.Since(begun) < 3*ttl; time.Sleep(ttl / 4) {
			e.keepAlive(h)
			e.has("l/a", "1", first)
		}
		e.vanishes(h, "l/a")
	}},
	{"a lease that is revoked ends at once", func(e *env) {
		h := e.grant(time.Minute)
		const keys = 130 // in etcd, of several transactions
		for i := 0; i < keys; i += 50 {
			t := datanode.RegistryTxn{}
			for k := i; k < min(i+50, keys); k++ {
				t.Puts = append(t.Puts, datanode.Put{Key: fmt.Sprint("l/", k), Lease: h.lease})
			}
			e.commit(t)
		}
		freed := e.put("l/1", "without a lease")
		other := e.grant(time.Minute)
		moved := e.putUnder(other, "l/2", "under another")
		e.commit(datanode.RegistryTxn{Deletes: []string{"l/3"}})
		for range 2 {
			if err := e.Node.RegistryRevoke(e.Context(), &datanode.RegistryRevokeRequest{Lease: h.lease}); err != nil {
				e.Fatal(err)
			}
		}
		if got := e.list("l/", 0); len(got) != 2 {
			e.Fatalf("%d keys are left", len(got))
		}
		e.has("l/1", "without a lease", freed)
		e.has("l/2", "under another", moved)
		e.fails(e.Node.RegistryKeepAlive(e.Context(), &datanode.RegistryKeepAliveRequest{Lease: h.lease}), datanode.ErrLeaseLost)
	}},
	{"a restart makes a lease longer, never shorter", func(e *env) {
		h := e.grant(ttl)
		first := e.putUnder(h, "l/a", "1")
		e.Node = e.Reopen()
		e.has("l/a", "1", first)
		time.Sleep(ttl / 2)
		e.Node = e.Reopen()
		e.keepAlive(h)
		e.Node = e.Reopen()
		e.vanishes(h, "l/a")
		e.Node = e.Reopen()
		e.lacks("l/a")
	}},
	{"of many who want a key under their leases one has it at a time", func(e *env) {
		Owners(e.T, []datanode.RegistryNode{e.Node, e.Node, e.Node, e.Node}, 5*time.Second)
	}},
	{"leases out of bounds are refused", func(e *env) {
		for _, ttl := range []time.Duration{0, -1, datanode.LeaseTTLMin - 1, datanode.LeaseTTLMax + 1} {
			_, err := e.Node.RegistryGrant(e.Context(), &datanode.RegistryGrantRequest{TTL: ttl})
			e.fails(err, datanode.ErrInvalid)
		}
		e.fails(e.Node.RegistryKeepAlive(e.Context(), &datanode.RegistryKeepAliveRequest{Lease: 7}), datanode.ErrLeaseLost)
		var t datanode.RegistryTxn
		for i := range datanode.RegistryTxnLeasesMax + 1 {
			t.Puts = append(t.Puts, datanode.Put{Key: fmt.Sprint(i), Lease: datanode.LeaseID(i + 1)})
		}
		_, err := e.Node.RegistryCommit(e.Context(), &t)
		e.fails(err, datanode.ErrInvalid)
		t = datanode.RegistryTxn{}
		for i := range datanode.RegistryOpsMax/2 + 1 {
			t.Puts = append(t.Puts, datanode.Put{Key: fmt.Sprint(i), Lease: 1})
		}
		_, err = e.Node.RegistryCommit(e.Context(), &t)
		e.fails(err, datanode.ErrInvalid)
	}},
}
