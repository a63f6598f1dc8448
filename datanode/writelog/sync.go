package writelog

import (
	"context"
	"fmt"
	"runtime"
	"sync"
)

// group lets one sync serve all who came before it began. At its end one of those
// who came meanwhile is woken and syncs for them; the others sleep on until that
// has served them, so that each is woken once.
type group struct {
	mu      sync.Mutex
	syncing bool   // somebody syncs, or has been woken to
	next    *batch // who came since; nil: nobody. syncing is set
}

// batch is who waits for one sync.
type batch struct {
	waiters int           // who has not gone away; guarded by group.mu
	lead    chan struct{} // holds one element when a waiter is to sync for all
	done    chan struct{} // closed when that is over
}

// join reports that the caller is to sync, for the batch if there is one, and calls
// finish. Else the batch's sync is over, or ctx.
func (g *group) join(ctx context.Context) (b *batch, lead bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.syncing {
		g.syncing = true
		return nil, true, nil
	}
	if g.next == nil {
		g.next = &batch{lead: make(chan struct{}, 1), done: make(chan struct{})}
	}
	b = g.next
	b.waiters++
	g.mu.Unlock()
	select {
	case <-b.lead:
		lead = true
	case <-b.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.mu.Lock()
	switch {
	case lead:
		g.next = nil // who comes from here on may have written too late
	case err != nil:
		g.leave(b)
	}
	return b, lead, err
}

// leave is a waiter's end without a sync; mu is held. The last one hands back what
// it was woken for.
func (g *group) leave(b *batch) {
	if b.waiters--; b.waiters > 0 || b != g.next {
		return
	}
	g.next = nil
	select {
	case <-b.lead:
		g.syncing = false
	default:
	}
}

// finish ends the sync of the batch's leader.
func (g *group) finish(b *batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b != nil {
		close(b.done)
	}
	if g.next != nil {
		g.next.lead <- struct{}{} // its only one
	} else {
		g.syncing = false
	}
}

// syncTo returns when the first target bytes of written are stable. Errors:
// ErrDead, or ctx's while waiting for another's sync.
func (l *Log) syncTo(ctx context.Context, target uint64) error {
	for {
		if err := l.alive(); err != nil {
			return err
		}
		if l.synced.Load() >= target {
			return nil
		}
		b, lead, err := l.group.join(ctx)
		if err != nil {
			return err
		}
		if !lead {
			continue
		}
		err = l.syncHead()
		l.group.finish(b)
		if err != nil {
			return err
		}
		if err := l.mark(); err != nil {
			return err
		}
		// Where a sync takes microseconds, its caller would otherwise be back
		// before those it served have run (measured: with 64 on tmpfs, one
		// made 90 times the progress of another).
		runtime.Gosched()
	}
}

// flush makes what was written stable, and tells so in the file.
func (l *Log) flush() error {
	if err := l.syncHead(); err != nil {
		return err
	}
	return l.mark()
}

// syncHead makes what was written before it stable. A device that has failed is
// not asked again: it may say yes then.
func (l *Log) syncHead() error {
	if err := l.alive(); err != nil {
		return err
	}
	l.mu.RLock()
	prev, f, seq, end, written := l.prev, l.head, l.head.seq, l.head.end, l.written.Load()
	l.mu.RUnlock()
	for _, f := range []*file{prev, f} {
		if f == nil {
			continue
		}
		if err := f.f.SyncData(); err != nil {
			return l.die(fmt.Errorf("sync %s: %w", f.name, err))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == f && f.seq == seq { // or else it is the next one's prev, and may have grown
		f.stable.Store(max(f.stable.Load(), end))
		l.prev = nil
	}
	l.advance(written)
	return nil
}

// advance raises synced. The caller holds mu.
func (l *Log) advance(written uint64) {
	if written > l.synced.Load() {
		l.synced.Store(written)
	}
}

// flusher syncs when much was written that nobody asked to sync.
type flusher struct {
	ask  chan struct{}
	done chan struct{}
}

func (l *Log) startFlusher() {
	l.flusher = flusher{make(chan struct{}, 1), make(chan struct{})}
	go func() {
		defer close(l.flusher.done)
		for range l.flusher.ask {
			// A failure is in l.dead for all to see.
			_ = l.syncTo(context.Background(), l.written.Load())
		}
	}()
}

// nudge never blocks. The caller is inside a call, so that it precedes stop.
func (f *flusher) nudge() {
	select {
	case f.ask <- struct{}{}:
	default:
	}
}

// stop waits for the goroutine's end. No nudge follows it.
func (f *flusher) stop() {
	close(f.ask)
	<-f.done
}
