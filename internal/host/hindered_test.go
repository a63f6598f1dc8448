package host_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/host"
	"plinth/internal/keyring"
	"plinth/nbd"
)

// hindered is a node some of whose calls do not do well.
type hindered struct {
	datanode.Node
	onList     atomic.Pointer[func()] // called once, before fragments are listed
	publishing chan struct{}          // if set: closed by the first Publish, which
	publish    chan struct{}          // waits for this
	unreadable atomic.Bool            // every segment that is there by now
	full       atomic.Bool            // no reservation is granted
	dropLists  atomic.Uint64          // no list of this disk can be set
}

func (n *hindered) ReadFragments(ctx context.Context, r *datanode.ReadFragmentsRequest) (*datanode.ReadFragmentsReply, error) {
	reply, err := n.Node.ReadFragments(ctx, r)
	if err == nil && n.unreadable.Load() {
		for i := range reply.Results {
			reply.Results[i] = datanode.FragmentData{Err: datanode.ErrCorrupt}
		}
	}
	return reply, err
}

func (n *hindered) Status(ctx context.Context) (*datanode.Status, error) {
	st, err := n.Node.Status(ctx)
	if err == nil && n.full.Load() {
		st.FreeBytes = 0
	}
	return st, err
}

func (n *hindered) Reserve(ctx context.Context, r *datanode.ReserveRequest) error {
	if n.full.Load() && !r.Force && r.Bytes > 0 {
		return datanode.ErrNoSpace
	}
	return n.Node.Reserve(ctx, r)
}

func (n *hindered) SetLists(ctx context.Context, r *datanode.SetListsRequest) (*datanode.SetListsReply, error) {
	if uint64(r.Disk) == n.dropLists.Load() {
		return nil, datanode.ErrGone
	}
	return n.Node.SetLists(ctx, r)
}

func (n *hindered) ListFragments(ctx context.Context, r *datanode.ListFragmentsRequest) (*datanode.ListFragmentsReply, error) {
	if f := n.onList.Swap(nil); f != nil {
		(*f)()
	}
	return n.Node.ListFragments(ctx, r)
}

func (n *hindered) Publish(ctx context.Context, r *datanode.PublishRequest) error {
	if n.publishing != nil {
		select {
		case <-n.publishing:
		default:
			close(n.publishing)
		}
		<-n.publish
	}
	return n.Node.Publish(ctx, r)
}

// hinder puts a hindered node between host and data node.
func (s *site) hinder() *hindered {
	s.Helper()
	n := &hindered{Node: s.Node}
	s.behind(n)
	return n
}

// behind opens the host again, behind another node.
func (s *site) behind(n datanode.Node) {
	s.Helper()
	s.ok(s.Host.Close())
	root, err := keyring.LoadRootFile(filepath.Join(s.opts.Dir, "root.key"))
	s.ok(err)
	opts := s.opts.Host
	opts.Dir, opts.Logger = filepath.Join(s.opts.Dir, "host"), s.opts.Logger
	s.Host, err = host.Open(s.Context(), n, root, opts)
	s.ok(err)
}

// TestHinderedDisk has one disk that cannot merge a part with what it cannot
// read, and later one that cannot set its lists: the others go on, and what they
// give up is reclaimed.
func TestHinderedDisk(t *testing.T) {
	opts := siteOptions(t)
	opts.Host.RAMCacheBytes = -1
	s := openSite(t, opts)
	content := bytes.Repeat([]byte("content."), 1<<17)
	s.write("bad", content)
	s.write("good", content)
	n := s.hinder()
	ctx := t.Context()
	s.has("bad", content) // and the maps' tables are in memory
	s.has("good", content)
	n.unreadable.Store(true)
	s.ok(s.device("bad", func(d nbd.Device) error { return d.WriteAt(ctx, content[:100], 5000, false) }))
	s.ok(s.device("good", func(d nbd.Device) error { return d.WriteAt(ctx, content[1:4097], 0, false) }))
	if err := s.Host.Quiesce(ctx); !errors.Is(err, disk.ErrCorrupt) {
		t.Fatalf("quiesce of an unreadable disk: %v", err)
	}
	for name, want := range map[string]int64{"bad": 0, "good": 1} {
		info, err := s.Host.Disk(name)
		s.ok(err)
		if info.Stats.Destages != want || info.Stats.Checkpoints != want {
			t.Errorf("disk %s: %d rounds, %d checkpoints, want %d", name, info.Stats.Destages, info.Stats.Checkpoints, want)
		}
	}
	n.unreadable.Store(false)
	s.ok(s.Host.Quiesce(ctx))
	s.has("bad", append(append(bytes.Clone(content[:5000]), content[:100]...), content[5100:]...))

	s.ok(s.Host.Sweep(ctx))
	random := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(random)
	s.write("more", random)
	before, _ := s.stored()
	s.ok(s.Host.RemoveDisk(ctx, "more"))
	info, err := s.Host.Disk("bad")
	s.ok(err)
	n.dropLists.Store(uint64(info.ID))
	if err := s.Host.Sweep(ctx); !errors.Is(err, datanode.ErrGone) {
		t.Fatalf("sweep of a disk without lists: %v", err)
	}
	if after, _ := s.stored(); before-after < int64(len(random)) {
		t.Errorf("%d bytes were stored, and %d after the removal of %d", before, after, len(random))
	}
}

// TestSimReliefDuringVerify asks for space while a verify keeps everything from
// being reclaimed: the write gets ENOSPC when its patience ends, and Close ends
// the verify.
func TestSimReliefDuringVerify(t *testing.T) {
	s := openSite(t, siteOptions(t))
	content := bytes.Repeat([]byte("content."), 1<<17)
	s.write("vm", content)
	n := s.hinder()
	inside, verified := make(chan struct{}), make(chan error)
	stay := make(chan struct{})
	go func() {
		first := true
		_, err := s.Host.Verify(context.WithoutCancel(t.Context()), host.VerifyOptions{Progress: func(int, int) {
			if first {
				close(inside)
				<-stay
				first = false
			}
		}})
		verified <- err
	}()
	<-inside
	n.full.Store(true)
	began := time.Now()
	err := s.device("vm", func(d nbd.Device) error { return d.WriteAt(t.Context(), content[:4096], 0, false) })
	if !errors.Is(err, disk.ErrNoSpace) || time.Since(began) > 30*time.Second {
		t.Errorf("write to a full pool: %v after %v", err, time.Since(began))
	}
	time.AfterFunc(100*time.Millisecond, func() { close(stay) })
	s.ok(s.Host.Close())
	if err := <-verified; err == nil {
		t.Error("verify went on to its end after the agent was closed")
	}
}

// TestVerifyDuringRound has a round between fragments and index while a verify
// lists them: what is being written is no leak.
func TestVerifyDuringRound(t *testing.T) {
	s := openSite(t, siteOptions(t))
	content := bytes.Repeat([]byte("content."), 1<<17)
	s.write("vm", content)
	n := s.hinder()
	ctx := context.WithoutCancel(t.Context())
	s.ok(s.device("vm", func(d nbd.Device) error { return d.WriteAt(ctx, content[1:4097], 0, false) }))
	n.publishing, n.publish = make(chan struct{}), make(chan struct{})
	done := make(chan error)
	round := func() {
		go func() { done <- s.Host.Quiesce(ctx) }()
		<-n.publishing
	}
	n.onList.Store(&round)
	r, err := s.Host.Verify(ctx, host.VerifyOptions{})
	close(n.publish)
	s.ok(err)
	for _, f := range r.Findings {
		t.Errorf("%s: %s: %s", f.Kind, f.Where, f.What)
	}
	s.ok(<-done)
	if r, err = s.Host.Verify(ctx, host.VerifyOptions{}); err != nil || !r.OK() {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestChangesEnd changes the catalog for callers who leave, and after the end.
func TestChangesEnd(t *testing.T) {
	s := openSite(t, siteOptions(t))
	s.write("vm", make([]byte, 4096))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Host.CreateDisk(gone, host.DiskSpec{Name: "other", Bytes: 4096})
	if !errors.Is(err, context.Canceled) || !errors.Is(s.Host.RemoveDisk(gone, "vm"), context.Canceled) {
		t.Errorf("changes for who has left: %v", err)
	}
	if disks := s.Host.Disks(); len(disks) != 1 || disks[0].State != "ok" {
		t.Errorf("disks: %+v", disks)
	}
	s.ok(s.Host.Close())
	_, err = s.Host.CreateDisk(t.Context(), host.DiskSpec{Name: "other", Bytes: 4096})
	if !errors.Is(err, host.ErrClosed) || !errors.Is(s.Host.RemoveDisk(t.Context(), "vm"), host.ErrClosed) {
		t.Errorf("changes after the end: %v", err)
	}
}
