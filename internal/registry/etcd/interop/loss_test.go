package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/registry/registrytest"
)

// try is a commit and what was said of it.
type try struct {
	key, value string
	revision   uint64
	err        error
}

// load counts one key up from several goroutines, each time with a key of its
// own in the same transaction, so that it can be seen what was applied.
type load struct {
	node datanode.RegistryNode
	name string // of its keys

	mu  sync.Mutex
	all []try
}

// run counts until ctx ends.
func (l *load) run(ctx context.Context, writer int) {
	for n := 0; ctx.Err() == nil; n++ {
		at, revision := 0, uint64(0)
		reply, err := l.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "n"})
		if err == nil {
			revision = reply.Revision
			at, err = strconv.Atoi(string(reply.Value))
		}
		if err != nil && !errors.Is(err, datanode.ErrNotFound) {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		t := try{key: fmt.Sprintf("log/%s/%d/%d", l.name, writer, n), value: fmt.Sprint(rand.Uint64())}
		done, err := l.node.RegistryCommit(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: "n", Revision: revision}},
			Puts:     []datanode.Put{{Key: "n", Value: strconv.AppendInt(nil, int64(at+1), 10)}, {Key: t.key, Value: []byte(t.value)}},
		})
		if t.err = err; err == nil {
			t.revision = done.Revision
		}
		l.mu.Lock()
		l.all = append(l.all, t)
		l.mu.Unlock()
	}
}

// check compares what was said with what is there.
func (l *load) check(t *testing.T, node datanode.RegistryNode) {
	there := make(map[string]datanode.RegistryEntry)
	r := &datanode.RegistryListRequest{Prefix: "log/" + l.name + "/"}
	for more := true; more; {
		page, err := node.RegistryList(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			there[e.Key], r.After = e, e.Key
		}
		r.At, more = page.Revision, page.More
	}
	said := make(map[string]int)
	for _, try := range l.all {
		e, is := there[try.key]
		var coded *datanode.Error
		switch {
		case try.err == nil:
			said["applied"]++
			if string(e.Value) != try.value || e.Revision != try.revision {
				t.Errorf("%s was applied at %d; there is %q at %d", try.key, try.revision, e.Value, e.Revision)
			}
		case errors.Is(try.err, datanode.ErrOutcome):
			said["in doubt"]++
		case errors.As(try.err, &coded):
			said[fmt.Sprintf("refused (%d)", coded.Code)]++
			if is {
				t.Errorf("%s is there: %v", try.key, try.err)
			}
		}
	}
	// At the same instant: what is in doubt may yet come.
	count, err := node.RegistryList(t.Context(), &datanode.RegistryListRequest{Prefix: "n", At: r.At})
	if err != nil || len(count.Entries) != 1 || string(count.Entries[0].Value) != fmt.Sprint(len(there)) {
		t.Errorf("counted to %+v in %d transactions, %v", count, len(there), err)
	}
	t.Logf("commits: %v", said)
	if said["applied"] < 5 {
		t.Errorf("only %d commits were applied", said["applied"])
	}
}

// TestLostAnswers breaks connections while requests are under way: every commit
// has an outcome all the same, and the right one.
func TestLostAnswers(t *testing.T) {
	c := newCluster(t, 3)
	opts := c.options("lost")
	opts.Create = true
	direct := open(t, opts)
	var links []*link
	opts.Endpoints = nil
	for _, m := range c.members {
		l := newLink(t, m.client)
		links = append(links, l)
		opts.Endpoints = append(opts.Endpoints, "http://"+l.address)
	}
	opts.Timeout = 2 * time.Second
	far := open(t, opts)

	t.Run("one by one", func(t *testing.T) {
		put(t, far, "first", "")
		for _, m := range []mode{swallow, hold} {
			for _, l := range links {
				l.set(m)
			}
			heal := time.AfterFunc(300*time.Millisecond, func() {
				for _, l := range links {
					l.cut()
					l.set(pass)
				}
			})
			reply, err := far.RegistryCommit(t.Context(), &datanode.RegistryTxn{
				Compares: []datanode.Compare{{Key: "one"}}, Puts: []datanode.Put{{Key: "one", Value: []byte("1")}},
			})
			heal.Stop()
			got, gerr := direct.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "one"})
			switch {
			case m == swallow && (err != nil || gerr != nil || got.Revision != reply.Revision):
				t.Fatalf("the request arrived: %+v, %v; %+v, %v", reply, err, got, gerr)
			case m == hold && (!errors.Is(err, datanode.ErrUnreachable) || !errors.Is(gerr, datanode.ErrNotFound)):
				t.Fatalf("the request did not arrive: %v; %+v, %v", err, got, gerr)
			}
			if _, err := direct.RegistryCommit(t.Context(), &datanode.RegistryTxn{Deletes: []string{"one"}}); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("many", func(t *testing.T) {
		loaded(t, far, direct, links, func() {
			each(links, func(l *link) { l.set(mode(1 + rand.IntN(2))) })
			time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
			each(links, (*link).cut)
		})
	})
	// Requests arrive after their sender has given up, and after it has asked what
	// came of them.
	opts.Timeout = 100 * time.Millisecond
	hasty := open(t, opts)
	t.Run("late", func(t *testing.T) {
		loaded(t, hasty, direct, links, func() {
			one := links[rand.IntN(len(links))]
			one.set(hold)
			time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		})
	})
}

func each(links []*link, f func(*link)) {
	for _, l := range links {
		f(l)
	}
}

// loaded does harm to links under load, again and again, and compares in the end.
func loaded(t *testing.T, node, direct datanode.RegistryNode, links []*link, harm func()) {
	before, err := direct.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "n"})
	l := &load{node: node, name: t.Name()}
	if err == nil {
		_, err = direct.RegistryCommit(t.Context(), &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: "n", Revision: before.Revision}}, Deletes: []string{"n"},
		})
	}
	if err != nil && !errors.Is(err, datanode.ErrNotFound) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var running sync.WaitGroup
	for writer := range 6 {
		running.Go(func() { l.run(ctx, writer) })
	}
	for ctx.Err() == nil {
		each(links, func(l *link) { l.set(pass) })
		time.Sleep(time.Duration(20+rand.IntN(150)) * time.Millisecond)
		harm()
	}
	each(links, func(l *link) { l.set(pass) })
	running.Wait()
	l.check(t, direct)
}

// TestCutOffHolders has several who want one key under leases of their own, each
// cut off from the registry at times, for longer than its lease lasts. Never do two
// count on it.
func TestCutOffHolders(t *testing.T) {
	c := newCluster(t, 3)
	opts := c.options("holders")
	opts.Create = true
	direct := open(t, opts)
	nodes := []datanode.RegistryNode{direct}
	opts.Timeout = 500 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	var cutting sync.WaitGroup
	for i := range 3 {
		l := newLink(t, c.members[i].client)
		opts.Endpoints = []string{"http://" + l.address}
		nodes = append(nodes, open(t, opts))
		cutting.Go(func() {
			for ctx.Err() == nil {
				for _, m := range []mode{pass, hold} {
					l.set(m)
					select {
					case <-time.After(time.Duration(500+rand.IntN(1500)) * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
			l.set(pass)
		})
	}
	registrytest.Owners(t, nodes, 8*time.Second)
	stop()
	cutting.Wait()
}

// TestKills kills members, the leader and all of them under load.
func TestKills(t *testing.T) {
	c := newCluster(t, 3)
	opts := c.options("kills")
	opts.Create = true
	opts.Timeout = 2 * time.Second
	node := open(t, opts)
	l := &load{node: node, name: "kills"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for writer := range 6 {
		running.Go(func() { l.run(ctx, writer) })
	}
	followed := make(chan error, 1)
	go func() { followed <- follow(t.Context(), node) }()
	lease, lost := make(chan struct{}), make(chan error, 1)
	go func() { lost <- holdOn(t.Context(), node, lease) }()

	time.Sleep(time.Second)
	leader := c.leader()
	for _, m := range c.members {
		if m != leader {
			m.kill(t)
			time.Sleep(time.Second)
			m.start(t)
			break
		}
	}
	time.Sleep(time.Second)
	leader = c.leader()
	leader.kill(t)
	time.Sleep(2 * time.Second)
	leader.start(t)
	time.Sleep(time.Second)
	for _, m := range c.members {
		m.kill(t)
	}
	time.Sleep(500 * time.Millisecond)
	for _, m := range c.members {
		m.start(t)
	}
	c.ready()
	time.Sleep(2 * time.Second)
	cancel()
	running.Wait()
	close(lease)
	if err := <-lost; err != nil {
		t.Error(err)
	}
	l.check(t, node)
	put(t, node, "log/end", "")
	if err := <-followed; err != nil {
		t.Error(err)
	}
}

// holdOn keeps a key under a lease until end is closed, and reports if it was gone
// while the lease counted.
func holdOn(ctx context.Context, node datanode.RegistryNode, end chan struct{}) error {
	const ttl = 30 * time.Second
	grant, err := node.RegistryGrant(ctx, &datanode.RegistryGrantRequest{TTL: ttl})
	if err != nil {
		return err
	}
	_, err = node.RegistryCommit(ctx, &datanode.RegistryTxn{Puts: []datanode.Put{{Key: "held", Lease: grant.Lease}}})
	if err != nil {
		return err
	}
	for {
		select {
		case <-end:
			return node.RegistryRevoke(ctx, &datanode.RegistryRevokeRequest{Lease: grant.Lease})
		case <-time.After(200 * time.Millisecond):
		}
		err := node.RegistryKeepAlive(ctx, &datanode.RegistryKeepAliveRequest{Lease: grant.Lease})
		if errors.Is(err, datanode.ErrLeaseLost) {
			return err
		}
		if _, err := node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "held"}); errors.Is(err, datanode.ErrNotFound) {
			return err
		}
	}
}

// follow watches the log through all that happens, until its end, and compares.
func follow(ctx context.Context, node datanode.RegistryNode) error {
	kept := make(map[string]uint64)
	for after := uint64(0); kept["log/end"] == 0; {
		reply, err := node.RegistryWatch(ctx, &datanode.RegistryWatchRequest{Prefix: "log/", After: after, Wait: 5 * time.Second})
		if errors.Is(err, datanode.ErrUnreachable) {
			continue
		}
		if err != nil {
			return err
		}
		for _, ev := range reply.Events {
			if kept[ev.Key] != 0 || ev.Revision <= after {
				return fmt.Errorf("event %+v after %d, seen at %d before", ev, after, kept[ev.Key])
			}
			kept[ev.Key] = ev.Revision
		}
		after = reply.Revision
	}
	r := &datanode.RegistryListRequest{Prefix: "log/"}
	for more := true; more; {
		page, err := node.RegistryList(ctx, r)
		if err != nil {
			return err
		}
		for _, e := range page.Entries {
			if kept[e.Key] != e.Revision {
				return fmt.Errorf("%s at %d was followed to %d", e.Key, e.Revision, kept[e.Key])
			}
			delete(kept, e.Key)
			r.After = e.Key
		}
		r.At, more = page.Revision, page.More
	}
	if len(kept) > 0 {
		return fmt.Errorf("%d keys were followed that are not there", len(kept))
	}
	return nil
}
