package sim

import (
	"errors"
	"iter"
	"time"
)

// task is what a host does step by step: a coroutine that waits for events. It ends
// with the host's life, and with the disk that it works for.
type task struct {
	h     *host
	k     *disk // nil: for the host
	life  int
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	done  bool
}

var errKilled = errors.New("the task's host or disk is gone")

func (h *host) spawn(k *disk, f func(*task)) {
	t := &task{h: h, k: k, life: h.life}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		defer func() {
			t.done = true
			if r := recover(); r != nil && r != any(errKilled) {
				panic(r)
			}
		}()
		f(t)
	})
	kept := h.tasks[:0]
	for _, o := range h.tasks {
		if !o.done {
			kept = append(kept, o)
		}
	}
	h.tasks = append(kept, t)
	h.later(0, t.run)
}

func (t *task) run() {
	if !t.done {
		t.next()
	}
}

// wait returns when the task is run again.
func (t *task) wait() {
	if !t.yield(struct{}{}) || t.life != t.h.life || t.k != nil && t.k.closed {
		panic(errKilled)
	}
}

func (t *task) sleep(d time.Duration) {
	t.h.later(d, t.run)
	t.wait()
}

// kill ends the tasks of a disk, nil for all.
func (h *host) kill(k *disk) {
	for _, t := range h.tasks {
		if !t.done && (k == nil || t.k == k) {
			t.stop()
			t.done = true
		}
	}
}

// lock is for tasks of one disk.
type lock struct {
	held  bool
	queue []*task
}

func (l *lock) take(t *task) {
	for l.held {
		l.queue = append(l.queue, t)
		t.wait()
	}
	l.held = true
}

func (l *lock) release(t *task) {
	l.held = false
	if len(l.queue) > 0 {
		next := l.queue[0]
		l.queue = l.queue[1:]
		t.h.w.After(0, next.run)
	}
}
