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
	reply := &datanode.RegistryCommitReply{}
	err := p.writing(func() error {
		if err := p.holds(r); err != nil {
			return err
		}
		if len(r.Puts)+len(r.Deletes) > 0 {
			if err := p.apply(r, 0); err != nil {
				return err
			}
			if err := p.copyOut(); err != nil {
				e := datanode.AsError(err)
				e.Text = fmt.Sprintf("registry revision %d is stable here but not copied: %s", p.revision, e.Text)
				return e
			}
		}
		reply.Revision = p.revision
		return nil
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
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

// apply makes the changes in one step, durably, and ends a lease with them, 0
// for none. Without changes there is no new revision.
func (p *Pebble) apply(r *datanode.RegistryTxn, ends datanode.LeaseID) error {
	changes, size, err := p.plan(r)
	if err != nil {
		return err
	}
	if size > p.dumpBytes && size+p.size()-p.dumpBytes > DumpBytesMax {
		return datanode.Errorf(datanode.ErrNoSpace, "registry of %d bytes exceeds %d", size, DumpBytesMax)
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
		return err
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
