package writelog

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
)

// gated is a file whose syncs wait to be told how they end.
type gated struct {
	vfs.File
	syncs int
	end   chan error
}

func (g *gated) SyncData() error {
	g.syncs++
	return <-g.end
}

// syncers starts Syncs of a log whose head is gated, after an append each.
type syncers struct {
	log  *Log
	head *gated

	mu   sync.Mutex
	done []error // of those that returned, nil too
}

func newSyncers(t *testing.T) *syncers {
	l := mustOpen(t, vfs.NewMem(), small)
	l.mustFence(t, 1, 1)
	g := &gated{File: l.head.f, end: make(chan error)}
	l.head.f = g
	t.Cleanup(func() {
		close(g.end)
		l.head.f = g.File
	})
	return &syncers{log: l, head: g}
}

func (s *syncers) start(t *testing.T, ctx context.Context) {
	ok(t, s.log.testAppend(1, 1, 0, datanode.Record{Pos: s.log.state.disks[1].streams[0].end}))
	go func() {
		err := s.log.Sync(ctx, &datanode.SyncRequest{Disk: 1, Epoch: 1})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done = append(s.done, err)
	}()
	synctest.Wait()
}

func (s *syncers) want(t *testing.T, syncs, done int) {
	t.Helper()
	synctest.Wait()
	if s.head.syncs != syncs || len(s.done) != done {
		t.Fatalf("%d syncs began and %d calls returned, want %d and %d", s.head.syncs, len(s.done), syncs, done)
	}
}

func TestOneSyncServesAllWhoCameBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSyncers(t)
		ctx, cancel := context.WithCancel(t.Context())
		s.start(t, t.Context())
		for range 5 {
			s.start(t, t.Context())
			s.start(t, ctx)
		}
		s.want(t, 1, 0)
		cancel()
		s.want(t, 1, 5) // who has gone away
		s.head.end <- nil
		s.want(t, 2, 6) // the first, whose sync began before the others wrote
		s.start(t, t.Context())
		s.head.end <- nil
		s.want(t, 3, 11)
		s.head.end <- nil
		s.want(t, 3, 12)
		for i, err := range s.done {
			if gone := errors.Is(err, context.Canceled); gone != (i < 5) || err != nil && !gone {
				t.Errorf("call %d returned %v", i, err)
			}
		}
	})
}

// What is appended while a sync runs may have come too late for it.
func TestSyncDoesNotCountWhatCameMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSyncers(t)
		s.start(t, t.Context())
		ok(t, s.log.testAppend(1, 1, 0, datanode.Record{Pos: s.log.state.disks[1].streams[0].end}))
		s.head.end <- nil
		s.want(t, 1, 1)
		go func() {
			err := s.log.Sync(t.Context(), &datanode.SyncRequest{Disk: 1, Epoch: 1})
			s.mu.Lock()
			defer s.mu.Unlock()
			s.done = append(s.done, err)
		}()
		s.want(t, 2, 1)
		s.head.end <- nil
		s.want(t, 2, 2)
		for i, err := range s.done {
			if err != nil {
				t.Errorf("sync %d: %v", i, err)
			}
		}
	})
}

// A sync that failed is not tried again for those who wait: the kernel says yes to
// the second, and what the first was for is lost.
func TestFailedSyncIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSyncers(t)
		for range 4 {
			s.start(t, t.Context())
		}
		s.head.end <- errors.New("no medium")
		s.want(t, 1, 4)
		for _, err := range s.done {
			wantCode(t, "sync", err, datanode.ErrDead)
		}
	})
}

// Who is woken to sync when all have just gone away leaves the group as it was.
func TestGroupOutlivesWhoGoesAway(t *testing.T) {
	var g group
	for range 20 {
		if _, lead, err := g.join(t.Context()); !lead || err != nil {
			t.Fatalf("an idle group: leads %v, %v", lead, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{}, 2)
		for range 2 {
			go func() {
				if b, lead, _ := g.join(ctx); lead {
					g.finish(b)
				}
				gone <- struct{}{}
			}()
		}
		for joined := 0; joined < 2; {
			g.mu.Lock()
			if g.next != nil {
				joined = g.next.waiters
			}
			g.mu.Unlock()
		}
		g.mu.Lock()
		cancel()
		time.Sleep(time.Millisecond) // they wait for mu now
		g.next.lead <- struct{}{}    // as finish does
		g.mu.Unlock()
		<-gone
		<-gone
	}
}
