package registry

import (
	"context"
	"fmt"
	"strings"

	"plinth/datanode"
	"plinth/datanode/index/kv"
)

const (
	listPage = 1024
	listMax  = 4096
)

// RegistryGet returns a key's value. Errors: ErrNotFound, ErrInvalid.
func (p *Pebble) RegistryGet(_ context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	if err := checkKey(r.Key); err != nil {
		return nil, err
	}
	if err := p.store.Enter(); err != nil {
		return nil, err
	}
	defer p.store.Leave()
	p.mu.RLock()
	defer p.mu.RUnlock()
	e, found, err := p.entry(r.Key)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, datanode.Errorf(datanode.ErrNotFound, "registry key %q", r.Key)
	}
	return &datanode.RegistryGetReply{Value: e.Value, Revision: e.Revision}, nil
}

// RegistryList returns keys with a prefix above After, in order. Errors:
// ErrInvalid.
func (p *Pebble) RegistryList(_ context.Context, r *datanode.RegistryListRequest) (*datanode.RegistryListReply, error) {
	max := r.Max
	if max == 0 {
		max = listPage
	}
	if max < 0 || len(r.Prefix) > datanode.RegistryKeyBytesMax || len(r.After) > datanode.RegistryKeyBytesMax {
		return nil, datanode.Errorf(datanode.ErrInvalid, "list of %d, prefix %d bytes", r.Max, len(r.Prefix))
	}
	max = min(max, listMax)
	lower, upper := entryKey(r.Prefix), kv.Above(entryKey(r.Prefix))
	if r.After != "" && r.After >= r.Prefix {
		if !strings.HasPrefix(r.After, r.Prefix) {
			return &datanode.RegistryListReply{}, nil // above all of them
		}
		lower = append(entryKey(r.After), 0)
	}
	if err := p.store.Enter(); err != nil {
		return nil, err
	}
	defer p.store.Leave()
	p.mu.RLock()
	defer p.mu.RUnlock()
	entries, err := p.entries(lower, upper, max+1)
	if err != nil {
		return nil, err
	}
	reply := &datanode.RegistryListReply{Entries: entries}
	if len(entries) > max {
		reply.Entries, reply.More = entries[:max], true
	}
	return reply, nil
}

// RegistryCommit applies a transaction whose guards and compares hold. It blocks
// for a sync and for the copies. Errors: ErrInvalid, ErrFenced, ErrConflict,
// ErrNoSpace (the registry would exceed DumpBytesMax); nothing is changed then.
// An error of the copies comes after the fact: the commit stays.
func (p *Pebble) RegistryCommit(_ context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	if err := checkTxn(r); err != nil {
		return nil, err
	}
	if err := p.store.Enter(); err != nil {
		return nil, err
	}
	defer p.store.Leave()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.holds(r); err != nil {
		return nil, err
	}
	if len(r.Puts)+len(r.Deletes) == 0 {
		return &datanode.RegistryCommitReply{Revision: p.revision}, nil
	}
	if err := p.apply(r); err != nil {
		return nil, err
	}
	if err := p.copyOut(); err != nil {
		e := datanode.AsError(err)
		e.Text = fmt.Sprintf("registry revision %d is stable here but not copied: %s", p.revision, e.Text)
		return nil, e
	}
	return &datanode.RegistryCommitReply{Revision: p.revision}, nil
}

// holds tells whether guards and compares hold.
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
	return nil
}

// apply makes the changes in one step, durably.
func (p *Pebble) apply(r *datanode.RegistryTxn) error {
	size := p.dumpBytes
	gone := func(key string) error {
		e, found, err := p.entry(key)
		if found {
			size -= dumpEntryBytes(key, e.Value)
		}
		return err
	}
	b := p.store.DB.NewBatch()
	for _, put := range r.Puts {
		if err := gone(put.Key); err != nil {
			b.Close()
			return err
		}
		size += dumpEntryBytes(put.Key, put.Value)
		set(b, entryKey(put.Key), entryRow(put.Value, p.revision+1))
	}
	for _, key := range r.Deletes {
		if err := gone(key); err != nil {
			b.Close()
			return err
		}
		if err := b.Delete(entryKey(key), nil); err != nil {
			panic(err) // as set
		}
	}
	if size > DumpBytesMax {
		b.Close()
		return datanode.Errorf(datanode.ErrNoSpace, "registry of %d bytes exceeds %d", size, DumpBytesMax)
	}
	set(b, []byte{keyRevision}, revisionRow(p.revision+1))
	if err := p.store.Commit(b); err != nil {
		return err
	}
	p.revision++
	p.dumpBytes = size
	return p.store.Sync()
}

func checkKey(key string) error {
	if key == "" || len(key) > datanode.RegistryKeyBytesMax {
		return datanode.Errorf(datanode.ErrInvalid, "registry key of %d bytes", len(key))
	}
	return nil
}

// checkTxn tells whether a transaction is in bounds. Like etcd, compares are
// counted by themselves, and no key may be changed twice.
func checkTxn(r *datanode.RegistryTxn) error {
	changes := len(r.Puts) + len(r.Deletes)
	if len(r.Guards) > datanode.RegistryOpsMax || len(r.Compares) > datanode.RegistryOpsMax || changes > datanode.RegistryOpsMax {
		return datanode.Errorf(datanode.ErrInvalid, "transaction of %d guards, %d compares, %d changes", len(r.Guards), len(r.Compares), changes)
	}
	changed := make(map[string]bool, changes)
	change := func(key string) error {
		if changed[key] {
			return datanode.Errorf(datanode.ErrInvalid, "registry key %q changed twice", key)
		}
		changed[key] = true
		return checkKey(key)
	}
	for _, c := range r.Compares {
		if err := checkKey(c.Key); err != nil {
			return err
		}
	}
	for _, put := range r.Puts {
		if len(put.Value) > datanode.RegistryValueBytesMax {
			return datanode.Errorf(datanode.ErrInvalid, "registry value of %d bytes", len(put.Value))
		}
		if err := change(put.Key); err != nil {
			return err
		}
	}
	for _, key := range r.Deletes {
		if err := change(key); err != nil {
			return err
		}
	}
	return nil
}
