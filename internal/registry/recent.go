package registry

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"plinth/datanode"
)

const (
	// recentMax and recentBytesMax bound the changes that are remembered: what a
	// watch or a list of many pages may be behind.
	recentMax      = 4096
	recentBytesMax = 8 << 20

	watchEvents = 256
)

// change is an event with the entry that was there before, without revision if
// there was none.
type change struct {
	event  datanode.RegistryEvent
	before datanode.RegistryEntry
}

func (c *change) bytes() int { return len(c.event.Key) + len(c.event.Value) + len(c.before.Value) }

// recent is the newest changes, whole revisions, in order.
type recent struct {
	changes   []change
	bytes     int
	forgotten uint64        // changes through this revision are not remembered
	changed   chan struct{} // closed at the next change
}

// add remembers a transaction's changes, forgets the oldest, and wakes watches.
func (r *recent) add(changes []change) {
	if len(changes) == 0 {
		return
	}
	r.changes = append(r.changes, changes...)
	for i := range changes {
		r.bytes += changes[i].bytes()
	}
	drop := 0
	for len(r.changes)-drop > recentMax || r.bytes > recentBytesMax {
		r.forgotten = r.changes[drop].event.Revision
		for drop < len(r.changes) && r.changes[drop].event.Revision == r.forgotten {
			r.bytes -= r.changes[drop].bytes()
			drop++
		}
	}
	if drop > 0 {
		clear(r.changes[:drop]) // what append leaves behind keeps nothing alive
		r.changes = r.changes[drop:]
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// after returns the changes after a revision, ErrCompacted if some are forgotten.
func (r *recent) after(revision, newest uint64) ([]change, error) {
	if revision < r.forgotten || revision > newest {
		return nil, datanode.Errorf(datanode.ErrCompacted, "revision %d; known are changes after %d, to %d", revision, r.forgotten, newest)
	}
	first, _ := slices.BinarySearchFunc(r.changes, revision+1, func(c change, at uint64) int {
		return cmp.Compare(c.event.Revision, at)
	})
	return r.changes[first:], nil
}

// RegistryWatch returns changes as soon as there are some. Errors: ErrInvalid,
// ErrCompacted.
func (p *Pebble) RegistryWatch(ctx context.Context, r *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	if err := CheckWatch(r); err != nil {
		return nil, err
	}
	wait := r.Wait
	if wait == 0 {
		wait = datanode.RegistryWatchMax
	}
	until := p.clock() + wait
	for {
		var reply *datanode.RegistryWatchReply
		var changed chan struct{}
		err := p.reading(func() (err error) {
			changed = p.recent.changed
			reply, err = p.eventsAfter(r)
			return err
		})
		now := p.clock()
		if err != nil || len(reply.Events) > 0 || now >= until {
			return reply, err
		}
		pause := until - now
		if end := time.Duration(p.nextEnd.Load()); end != 0 {
			pause = min(pause, max(end-now, 0))
		}
		timer := time.NewTimer(pause)
		select {
		case <-changed:
		case <-timer.C:
		case <-p.closing:
			err = datanode.ErrClosed
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		if err != nil {
			return nil, err
		}
	}
}

// eventsAfter returns what a watch gets now.
func (p *Pebble) eventsAfter(r *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	changes, err := p.recent.after(r.After, p.revision)
	if err != nil {
		return nil, err
	}
	enough := r.Max
	if enough == 0 {
		enough = watchEvents
	}
	reply := &datanode.RegistryWatchReply{Revision: p.revision}
	bytes := 0
	for i := range changes {
		e := changes[i].event
		if !strings.HasPrefix(e.Key, r.Prefix) {
			continue
		}
		if n := len(reply.Events); n > 0 && (n >= enough || bytes >= datanode.RegistryPageBytesMax) && reply.Events[n-1].Revision < e.Revision {
			reply.Revision = reply.Events[n-1].Revision
			break
		}
		e.Value = slices.Clone(e.Value)
		bytes += len(e.Key) + len(e.Value)
		reply.Events = append(reply.Events, e)
	}
	return reply, nil
}

// undo turns entries, which are all with a prefix above a key or the first of
// them, into those of an earlier revision.
func undo(changes []change, entries []datanode.RegistryEntry, prefix, after string) []datanode.RegistryEntry {
	then := make(map[string]*datanode.RegistryEntry)
	for i := len(changes) - 1; i >= 0; i-- {
		if key := changes[i].event.Key; strings.HasPrefix(key, prefix) && key > after {
			then[key] = &changes[i].before
		}
	}
	entries = slices.DeleteFunc(entries, func(e datanode.RegistryEntry) bool { return then[e.Key] != nil })
	for key, e := range then {
		if e.Revision != 0 {
			entries = append(entries, datanode.RegistryEntry{Key: key, Value: slices.Clone(e.Value), Revision: e.Revision, Lease: e.Lease})
		}
	}
	slices.SortFunc(entries, func(a, b datanode.RegistryEntry) int { return strings.Compare(a.Key, b.Key) })
	return entries
}
