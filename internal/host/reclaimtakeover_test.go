package host_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/nbd"
)

var reclaimTakeovers = flag.Int("reclaim-takeovers", 8, "TestSimReclaimTakeover: how many")

// halting is a node that halts a host at one of its calls, until it is resumed.
type halting struct {
	datanode.Node
	mu      sync.Mutex
	call    string
	skip    int
	reached chan struct{}
	resume  chan struct{}
}

var haltingCalls = []string{"Condemn", "Forward", "Reclaim", "SetLists", "WriteFragments", "DiscardFragments", "Publish", "Lookup", "TrimLog", "RegistryCommit"}

// arm has it halt at a call of that kind, after some others.
func (n *halting) arm(call string, skip int) (reached, resume chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.call, n.skip, n.reached, n.resume = call, skip, make(chan struct{}), make(chan struct{})
	return n.reached, n.resume
}

func (n *halting) at(call string) {
	n.mu.Lock()
	if n.call != call {
		n.mu.Unlock()
		return
	}
	if n.skip--; n.skip >= 0 {
		n.mu.Unlock()
		return
	}
	n.call = ""
	reached, resume := n.reached, n.resume
	n.mu.Unlock()
	close(reached)
	<-resume
}

func (n *halting) Fence(ctx context.Context, q *datanode.FenceRequest) (*datanode.FenceReply, error) {
	n.at("Fence")
	return n.Node.Fence(ctx, q)
}

func (n *halting) Condemn(ctx context.Context, q *datanode.CondemnRequest) (*datanode.CondemnReply, error) {
	n.at("Condemn")
	return n.Node.Condemn(ctx, q)
}

func (n *halting) Forward(ctx context.Context, q *datanode.ForwardRequest) error {
	n.at("Forward")
	return n.Node.Forward(ctx, q)
}

func (n *halting) Reclaim(ctx context.Context, q *datanode.ReclaimRequest) (*datanode.ReclaimReply, error) {
	n.at("Reclaim")
	return n.Node.Reclaim(ctx, q)
}

func (n *halting) SetLists(ctx context.Context, q *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	n.at("SetLists")
	return n.Node.SetLists(ctx, q)
}

func (n *halting) WriteFragments(ctx context.Context, q *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	n.at("WriteFragments")
	return n.Node.WriteFragments(ctx, q)
}

func (n *halting) DiscardFragments(ctx context.Context, q *datanode.DiscardFragmentsRequest) error {
	n.at("DiscardFragments")
	return n.Node.DiscardFragments(ctx, q)
}

func (n *halting) Publish(ctx context.Context, q *datanode.PublishRequest) error {
	n.at("Publish")
	return n.Node.Publish(ctx, q)
}

func (n *halting) Lookup(ctx context.Context, q *datanode.LookupRequest) (*datanode.LookupReply, error) {
	n.at("Lookup")
	return n.Node.Lookup(ctx, q)
}

func (n *halting) TrimLog(ctx context.Context, q *datanode.TrimLogRequest) error {
	n.at("TrimLog")
	return n.Node.TrimLog(ctx, q)
}

func (n *halting) RegistryCommit(ctx context.Context, q *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	n.at("RegistryCommit")
	return n.Node.RegistryCommit(ctx, q)
}

// warden returns which of two hosts reclaims, any if none does.
func (r *rack) warden(hosts [2]*member) int {
	r.Helper()
	st, err := hosts[0].Status(r.Context())
	r.ok(err)
	for _, h := range st.Hosts {
		if h.Warden && h.Name == hosts[1].name {
			return 1
		}
	}
	return 0
}

// TestSimReclaimTakeover has the host that reclaims stop at some call of that, another one
// take its disk and reclaim, and the first go on, not knowing it: nothing that a disk has
// is lost, verify finds nothing, and in the end no space is lost.
func TestSimReclaimTakeover(t *testing.T) {
	r := openRack(t)
	nodes, hosts := [2]*halting{}, [2]*member{}
	open := func(i int) {
		nodes[i] = &halting{Node: r.node}
		hosts[i] = r.openOn(nodes[i], []string{"a", "b"}[i], host.Options{LeaseTTL: longTTL})
	}
	open(0)
	open(1)
	names := [2]string{"one", "two"}
	content := [2][]byte{noise(1, 3<<20), noise(2, 3<<20)}
	copy(content[1][:1<<20], content[0]) // which is stored once
	for i := range names {
		hosts[i].create(names[i], content[i])
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	scatter := func(m *member, disk int) { // some chunks of many segments
		t.Helper()
		r.ok(m.device(names[disk], func(d nbd.Device) error {
			for range 100 {
				chunk := rng.IntN(len(content[disk])/4096) * 4096
				p := content[disk][chunk : chunk+4096]
				for k := 0; k < len(p); k += 8 {
					binary.LittleEndian.PutUint64(p[k:], rng.Uint64())
				}
				if rng.IntN(4) == 0 {
					copy(p, content[1-disk][chunk:])
				}
				if err := d.WriteAt(t.Context(), bytes.Clone(p), int64(chunk), false); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	hits, went := map[string]int{}, 0
	for n := 0; n < *reclaimTakeovers; {
		i := r.warden(hosts)
		if rng.IntN(4) == 0 { // who only passes
			i = 1 - i
		}
		z, o := hosts[i], hosts[1-i]
		z.sees(names[i], "ok")
		o.sees(names[1-i], "ok")
		for range 2 {
			scatter(z, i)
			scatter(o, 1-i)
			r.ok(z.Quiesce(t.Context()))
			r.ok(o.Quiesce(t.Context()))
		}
		r.ok(o.Sweep(t.Context()))
		scatter(z, i)
		call := haltingCalls[rng.IntN(len(haltingCalls))]
		reached, resume := nodes[i].arm(call, rng.IntN(3))
		ended := make(chan error, 1)
		go func() {
			_, err := z.Reclaim(t.Context(), host.ReclaimOptions{Full: true})
			ended <- err
		}()
		select {
		case err := <-ended: // it did not come by
			r.ok(err)
			nodes[i].arm("", 0)
			continue
		case <-reached:
		case <-time.After(2 * time.Minute):
			t.Fatalf("reclaim of host %s hangs", z.name)
		}
		n, hits[call] = n+1, hits[call]+1
		r.endSession(z.name)
		r.ok(o.MoveDisk(t.Context(), names[i], o.name))
		o.sees(names[i], "ok")
		scatter(o, i)
		r.ok(o.Quiesce(t.Context()))
		if _, err := o.Reclaim(t.Context(), host.ReclaimOptions{Full: true}); err != nil {
			t.Fatalf("who has followed, after %s: %v", call, err)
		}
		close(resume)
		if err := <-ended; err == nil {
			went++
		}
		r.ok(z.Close())
		for disk := range names {
			o.has(names[disk], content[disk])
		}
		report, err := o.Verify(t.Context(), host.VerifyOptions{})
		r.ok(err)
		if len(report.Findings) > 0 {
			t.Fatalf("after a takeover at %s: %+v", call, report.Findings)
		}
		open(i)
		hosts[i].sees(names[i], o.name)
		r.ok(o.MoveDisk(t.Context(), names[i], z.name))
	}
	t.Logf("%d takeovers, at %v; %d that had been taken over from saw no error", *reclaimTakeovers, hits, went)
	for i := range names {
		hosts[i].sees(names[i], "ok")
	}
	all := rng.IntN(2) // the warden or not
	r.quiet(hosts[all], hosts[1-all])
	for disk := range names {
		hosts[all].has(names[disk], content[disk])
	}
}

// A disk's last owner changes its record when the next one has claimed it, and has not fenced
// it: that takes over what the record says then.
func TestRecordIsReadWhenFenced(t *testing.T) {
	r := openRack(t)
	nodes, hosts := [2]*halting{}, [2]*member{}
	for i, name := range []string{"a", "b"} {
		nodes[i] = &halting{Node: r.node}
		hosts[i] = r.openOn(nodes[i], name, host.Options{LeaseTTL: longTTL})
	}
	a, b := hosts[0], hosts[1]
	a.create("one", noise(1, 1<<20))
	a.sees("one", "ok")
	b.sees("one", "a")
	wait := func(what string, reached chan struct{}) {
		t.Helper()
		select {
		case <-reached:
		case <-time.After(time.Minute):
			t.Fatal(what)
		}
	}
	renaming, rename := nodes[0].arm("RegistryCommit", 0)
	renamed := make(chan error, 1)
	go func() { _, err := a.RenameDisk(t.Context(), "one", "uno"); renamed <- err }()
	wait("no commit of a new name", renaming)
	r.endSession("a")
	fencing, fence := nodes[1].arm("Fence", 0)
	moved := make(chan error, 1)
	go func() { moved <- b.MoveDisk(t.Context(), "one", "b") }()
	wait("no fence of the next owner", fencing)
	close(rename)
	<-renamed // perhaps with an error, as the disk is another's
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := b.Disk("uno"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new name is not heard of: the test shows nothing")
		}
	}
	close(fence)
	r.ok(<-moved)
	b.sees("uno", "ok")
	if _, err := b.Disk("one"); !errors.Is(err, host.ErrUnknownDisk) {
		t.Errorf("the old name: %v", err)
	}
	_ = a.Close()
}
