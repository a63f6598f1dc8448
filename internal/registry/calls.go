package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

const listPage = 1024

// reading calls f with the leases ended whose time is over, and nothing changing.
func (p *Pebble) reading(f func() error) error {
	if err := p.store.Enter(); err != nil {
		return err
	}
	defer p.store.Leave()
	if p.due() {
		if err := p.ending(); err != nil {
			return err
		}
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return f()
}

func (p *Pebble) ending() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.noteEnds()
	return p.endDue()
}

// writing calls f with the leases ended whose time is over, alone.
func (p *Pebble) writing(f func() error) error {
	if err := p.store.Enter(); err != nil {
		return err
	}
	defer p.store.Leave()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.noteEnds()
	if err := p.endDue(); err != nil {
		return err
	}
	return f()
}

// RegistryGet returns a key's value. Errors: ErrNotFound, ErrInvalid.
func (p *Pebble) RegistryGet(_ context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	if err := CheckKey(r.Key); err != nil {
		return nil, err
	}
	var reply *datanode.RegistryGetReply
	err := p.reading(func() error {
		e, found, err := p.entry(r.Key)
		if err != nil {
			return err
		}
		if !found {
			return datanode.Errorf(datanode.ErrNotFound, "registry key %q", r.Key)
		}
		reply = &datanode.RegistryGetReply{Value: e.Value, Revision: e.Revision, Lease: e.Lease}
		return nil
	})
	return reply, err
}

// RegistryList returns keys with a prefix above After, in order. Errors:
// ErrInvalid, ErrCompacted.
func (p *Pebble) RegistryList(_ context.Context, r *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	most, err := CheckList(r)
	if err != nil {
		return nil, err
	}
	lower, upper := entryKey(r.Prefix), kv.Above(entryKey(r.Prefix))
	if r.After != "" && r.After >= r.Prefix {
		lower = append(entryKey(r.After), 0)
	}
	reply := &datanode.RegistryListReply{}
	err = p.reading(func() error {
		reply.Revision = p.revision
		var since []change
		if r.At != 0 {
			if reply.Revision = r.At; r.At != p.revision {
				if since, err = p.recent.after(r.At, p.revision); err != nil {
					return err
				}
			}
		}
		if r.After >= r.Prefix && !strings.HasPrefix(r.After, r.Prefix) {
			return nil // above all of them
		}
		entries, err := p.entries(lower, upper, most+1+len(since))
		if err != nil {
			return err
		}
		reply.Entries, reply.More = Page(undo(since, entries, r.Prefix, r.After), most)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// Page cuts entries where a page is full, and tells whether it did.
func Page(entries []datanode.RegistryEntry, most int) ([]datanode.RegistryEntry, bool) {
	bytes := 0
	for i := range entries {
		if i == most || bytes >= datanode.RegistryPageBytesMax {
			return entries[:i], true
		}
		bytes += len(entries[i].Key) + len(entries[i].Value)
	}
	return entries, false
}

// RegistryCommit applies a transaction whose guards and compares hold. It blocks
// for a sync and for the copies. Errors: ErrInvalid, ErrFenced, ErrConflict,
// ErrLeaseLost, ErrNoSpace (the registry would exceed DumpBytesMax, or a lease
// LeaseKeysMax); nothing is changed then. An error of the copies comes after the
// fact: the commit stays.
func (p *Pebble) RegistryCommit(_ context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	if err := CheckTxn(r); err != nil {
		return nil, err
	}
	if err := p.store.Enter(); err != nil {
		return nil, err
	}
	defer p.store.Leave()
	c := &commit{txn: r}
	p.queueMu.Lock()
	p.queue = append(p.queue, c)
	p.queueMu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.noteEnds()
	if !c.done {
		p.queueMu.Lock()
		batch := p.queue
		p.queue = nil
		p.queueMu.Unlock()
		p.commitAll(batch)
	}
	if c.err != nil {
		return nil, c.err
	}
	return &datanode.RegistryCommitReply{Revision: c.revision}, nil
}

// commit is a transaction and what became of it. Whoever gets mu first carries all
// out that wait, with one sync and one copy: each of those takes as long for one
// as for many.
type commit struct {
	txn      *datanode.RegistryTxn
	done     bool // guarded by mu, as is the rest
	changed  bool
	revision uint64
	err      error
}

// commitAll carries transactions out, one after the other; mu is held.
func (p *Pebble) commitAll(batch []*commit) {
	err := p.endDue()
	var changes []change
	changed := false
	for _, c := range batch {
		if c.done, c.err = true, err; err != nil {
			continue
		}
		if c.err = p.holds(c.txn); c.err == nil && len(c.txn.Puts)+len(c.txn.Deletes) > 0 {
			var more []change
			more, c.err = p.apply(c.txn, 0)
			changes = append(changes, more...)
			c.changed = c.err == nil
			changed = changed || c.changed
		}
		c.revision = p.revision
	}
	if !changed {
		return
	}
	if err := p.settle(changes); err != nil {
		for _, c := range batch { // who changed nothing has seen what may be lost
			c.err = err
		}
		return
	}
	if err := p.copyOut(); err != nil {
		e := datanode.AsError(err)
		e.Text = fmt.Sprintf("registry revision %d is stable here but not copied: %s", p.revision, e.Text)
		for _, c := range batch {
			if c.changed {
				own := *e // a caller may add to it
				c.err = &own
			}
		}
	}
}

// holds tells whether guards and compares hold and the leases last.
func (p *Pebble) holds(r *datanode.RegistryTxn) error {
	for _, g := range r.Guards {
		if p.opts.CheckEpoch == nil {
			return datanode.Errorf(datanode.ErrInvalid, "this registry knows no epochs")
		}
		if err := p.opts.CheckEpoch(g.Disk, g.Epoch); err != nil {
			return err
		}
	}
	for _, c := range r.Compares {
		e, _, err := p.entry(c.Key)
		if err != nil {
			return err
		}
		if e.Revision != c.Revision {
			return datanode.Errorf(datanode.ErrConflict, "key %q has revision %d, not %d", c.Key, e.Revision, c.Revision)
		}
	}
	for _, put := range r.Puts {
		l := p.leases[put.Lease]
		switch {
		case put.Lease == 0:
		case l == nil:
			return datanode.Errorf(datanode.ErrLeaseLost, "lease %d", put.Lease)
		case len(l.keys)+len(r.Puts) > datanode.LeaseKeysMax:
			return datanode.Errorf(datanode.ErrNoSpace, "lease %d has %d keys", put.Lease, len(l.keys))
		}
	}
	return nil
}

// size is how large a dump is.
func (p *Pebble) size() int { return p.dumpBytes + len(p.leases)*dumpLeaseBytes }

// apply makes the changes in one step, and ends a lease with them, 0 for none.
// Without changes there is no new revision. settle is to follow before mu is given
// free.
func (p *Pebble) apply(r *datanode.RegistryTxn, ends datanode.LeaseID) ([]change, error) {
	changes, size, err := p.plan(r)
	if err != nil {
		return nil, err
	}
	if size > p.dumpBytes && size+p.size()-p.dumpBytes > DumpBytesMax {
		return nil, datanode.Errorf(datanode.ErrNoSpace, "registry of %d bytes exceeds %d", size, DumpBytesMax)
	}
	revision := p.revision
	if len(r.Puts)+len(r.Deletes) > 0 {
		revision++
	}
	b := p.store.DB.NewBatch()
	for i := range changes {
		if e := &changes[i].event; e.Deleted {
			unset(b, entryKey(e.Key))
		} else {
			set(b, entryKey(e.Key), entryRow(e.Value, revision, e.Lease))
		}
	}
	set(b, []byte{keyRevision}, revisionRow(revision))
	if ends != 0 {
		unset(b, leaseKey(ends))
	}
	if err := p.store.Commit(b); err != nil {
		return nil, err
	}
	p.revision, p.dumpBytes = revision, size
	for i := range changes {
		e, before := &changes[i].event, &changes[i].before
		if l := p.leases[before.Lease]; l != nil {
			delete(l.keys, e.Key)
		}
		if l := p.leases[e.Lease]; l != nil {
			l.keys[e.Key] = true
		}
	}
	delete(p.leases, ends)
	return changes, nil
}

// settle makes changes stable that were applied, and has watches see them.
func (p *Pebble) settle(changes []change) error {
	if err := p.store.Sync(); err != nil {
		return err
	}
	p.recent.add(changes)
	return nil
}

// plan returns what a transaction changes, and how large a dump's entries are
// then.
func (p *Pebble) plan(r *datanode.RegistryTxn) ([]change, int, error) {
	changes := make([]change, 0, len(r.Puts)+len(r.Deletes))
	size := p.dumpBytes
	for _, put := range r.Puts {
		before, found, err := p.entry(put.Key)
		if err != nil {
			return nil, 0, err
		}
		if found {
			size -= dumpEntryBytes(put.Key, before.Value)
		}
		size += dumpEntryBytes(put.Key, put.Value)
		e := datanode.RegistryEvent{Key: put.Key, Value: slices.Clone(put.Value), Revision: p.revision + 1, Lease: put.Lease}
		changes = append(changes, change{e, before})
	}
	for _, key := range r.Deletes {
		before, found, err := p.entry(key)
		if err != nil {
			return nil, 0, err
		}
		if found {
			size -= dumpEntryBytes(key, before.Value)
			changes = append(changes, change{datanode.RegistryEvent{Key: key, Revision: p.revision + 1, Deleted: true}, before})
		}
	}
	return changes, size, nil
}
