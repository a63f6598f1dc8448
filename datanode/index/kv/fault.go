package kv

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// openFailuresMax flushes may fail before an open does: 0.3 s.
	openFailuresMax = 5
	createPauseMin  = 10 * time.Millisecond
	createPauseMax  = time.Second
)

// patientFS is the file system of a store. Pebble repeats a flush or compaction
// that fails at once and for ever, also before Open returns: patientFS has it
// pause, and an open that gets nowhere fail.
type patientFS struct {
	vfs.FS
	failures atomic.Int32 // in the background, since a flush went well
	opening  atomic.Bool
	hopeless chan struct{} // closed, once, when the open has failed
}

func newPatientFS(fs vfs.FS) *patientFS {
	return &patientFS{FS: fs, hopeless: make(chan struct{})}
}

// listen notes how background work goes, and passes on the 1st, 2nd, 4th, 8th …
// failure in a row.
func (p *patientFS) listen(l *pebble.EventListener) {
	told := l.BackgroundError
	l.BackgroundError = func(err error) { // Pebble holds its lock
		n := p.failures.Add(1)
		if n&(n-1) == 0 {
			told(err)
		}
		p.giveUp(n)
		if n > openFailuresMax {
			time.Sleep(createPauseMin) // the work may fail without making a table
		}
	}
	l.FlushEnd = func(i pebble.FlushInfo) {
		if i.Err == nil {
			p.failures.Store(0)
		}
	}
}

// Create makes a file. It pauses before a table while work in the background
// fails.
func (p *patientFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if n := p.failures.Load(); n > 0 && strings.HasSuffix(name, ".sst") {
		time.Sleep(min(createPauseMax, createPauseMin<<min(n-1, 10)))
	}
	return p.FS.Create(name, category)
}

// giveUp fails an open after n failures. Pebble's Open has no other end: it and
// this goroutine stay behind.
func (p *patientFS) giveUp(n int32) {
	if n >= openFailuresMax && p.opening.CompareAndSwap(true, false) {
		close(p.hopeless)
		select {}
	}
}

// open opens Pebble.
func (p *patientFS) open(dir string, opts *pebble.Options) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	done := make(chan result, 1)
	p.opening.Store(true)
	go func() {
		db, err := pebble.Open(dir, opts)
		done <- result{db, err}
	}()
	select {
	case r := <-done:
		p.opening.Store(false)
		return r.db, r.err
	case <-p.hopeless:
		return nil, fmt.Errorf("cannot write to %s: is its file system full?", dir)
	}
}
