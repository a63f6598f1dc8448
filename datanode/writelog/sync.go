package writelog

import (
	"context"
	"fmt"
	"runtime"
	"sync"
)

// group lets one sync serve all who came before it began.
type group struct {
	mu      sync.Mutex
	running chan struct{} // closed at the end of the sync under way; nil without one
}

// syncTo returns when the first target bytes of written are stable: the first
// to come syncs, those who come meanwhile wait and one of them syncs for all.
// Errors: ErrDead, or ctx's while waiting for another's sync.
func (l *Log) syncTo(ctx context.Context, target uint64) error {
	for {
		if err := l.alive(); err != nil {
			return err
		}
		if l.synced.Load() >= target {
			return nil
		}
		l.group.mu.Lock()
		running := l.group.running
		if running == nil {
			l.group.running = make(chan struct{})
		}
		l.group.mu.Unlock()
		if running == nil {
			if err := l.flush(); err != nil {
				return err
			}
			// Where a sync takes microseconds, its caller would otherwise be back
			// before those it served have run (measured: with 64 on tmpfs, one
			// made 90 times the progress of another).
			runtime.Gosched()
			continue
		}
		select {
		case <-running:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// flush syncs the head, ends the group's wait, and tells in the file what is
// stable.
func (l *Log) flush() error {
	l.mu.RLock()
	f, seq, end, written := l.head, l.head.seq, l.head.end, l.written.Load()
	l.mu.RUnlock()
	err := f.f.SyncData()
	if err != nil {
		err = l.die(fmt.Errorf("sync %s: %w", f.name, err))
	} else {
		l.mu.Lock()
		if l.head == f && f.seq == seq { // or else the roll has synced it
			f.stable.Store(max(f.stable.Load(), end))
		}
		l.advance(written)
		l.mu.Unlock()
	}
	l.group.mu.Lock()
	if l.group.running != nil {
		close(l.group.running)
		l.group.running = nil
	}
	l.group.mu.Unlock()
	if err != nil {
		return err
	}
	return l.mark()
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
