package interop

import (
	"io"
	"net"
	"sync"
	"testing"
)

// mode is what a link does with what it gets.
type mode int

const (
	pass    mode = iota
	hold         // nothing arrives; it does when the link passes again
	swallow      // requests arrive, answers do not
)

// link is a way to a member that can be cut.
type link struct {
	address string
	target  string

	mu      sync.Mutex
	mode    mode
	changed *sync.Cond
	conns   map[net.Conn]bool
	ended   bool
}

func newLink(t *testing.T, target string) *link {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{address: listener.Addr().String(), target: target, conns: make(map[net.Conn]bool)}
	l.changed = sync.NewCond(&l.mu)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { l.serve(near) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.set(pass)
		l.cut()
		running.Wait()
	})
	return l
}

func (l *link) serve(near net.Conn) {
	far, err := net.Dial("tcp", l.target)
	if err != nil {
		near.Close()
		return
	}
	l.mu.Lock()
	l.conns[near], l.conns[far] = true, true
	if l.ended {
		near.Close()
		far.Close()
	}
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.copy(far, near, false) })
	both.Go(func() { l.copy(near, far, true) })
	both.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, near)
	delete(l.conns, far)
}

// copy carries what src sends to dst.
func (l *link) copy(dst, src net.Conn, answers bool) {
	defer dst.Close()
	defer src.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if err != nil {
			return
		}
		l.mu.Lock()
		for l.mode == hold && l.conns[dst] {
			l.changed.Wait()
		}
		lost := l.mode == swallow && answers
		l.mu.Unlock()
		if lost {
			continue
		}
		if _, err := dst.Write(b[:n]); err != nil && err != io.ErrShortWrite {
			return
		}
	}
}

func (l *link) set(m mode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode = m
	l.changed.Broadcast()
}

// cut ends every connection, and whoever is held.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.Close()
		delete(l.conns, c)
	}
	l.changed.Broadcast()
}
