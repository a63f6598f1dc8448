package host

import (
	"context"
	"errors"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/owner"
)

// watch is watchFor for the host's life.
func (h *Host) watch(prefix string, whole func([]datanode.RegistryEntry, uint64), one func(*datanode.RegistryEvent)) {
	h.watchFor(h.life, prefix, whole, one)
}

// watchFor keeps what this host knows of keys with a prefix: whole lists them all as of a
// revision, one tells of a change. It ends with ctx. A sole host needs none: nobody
// else changes anything.
func (h *Host) watchFor(ctx context.Context, prefix string, whole func([]datanode.RegistryEntry, uint64), one func(*datanode.RegistryEvent)) {
	defer h.work.Done()
	for ctx.Err() == nil {
		err := h.watchOnce(ctx, prefix, whole, one)
		if ctx.Err() != nil || errors.Is(err, datanode.ErrCompacted) {
			continue
		}
		h.log.Warn("what other hosts do is not seen, will retry", "keys", prefix, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryTime):
		}
	}
}

// watchOnce lists, and then tells of changes until an error.
func (h *Host) watchOnce(ctx context.Context, prefix string, whole func([]datanode.RegistryEntry, uint64), one func(*datanode.RegistryEvent)) error {
	var all []datanode.RegistryEntry
	req := &datanode.RegistryListRequest{Prefix: prefix}
	for {
		reply, err := h.node.RegistryList(ctx, req)
		if err != nil {
			return err
		}
		all = append(all, reply.Entries...)
		req.At = reply.Revision
		if !reply.More || len(reply.Entries) == 0 {
			break
		}
		req.After = all[len(all)-1].Key
	}
	whole(all, req.At)
	for after := req.At; ; {
		reply, err := h.node.RegistryWatch(ctx, &datanode.RegistryWatchRequest{Prefix: prefix, After: after})
		if err != nil {
			return err
		}
		for i := range reply.Events {
			one(&reply.Events[i])
		}
		after = reply.Revision
	}
}

// watchOthers begins the watches of a host that is not sole.
func (h *Host) watchOthers() {
	h.work.Add(8)
	go h.watch(keyRebuild, h.seeRebuilds, h.seeRebuild)
	go h.watch(groupPrefix, h.seeGroups, h.seeGroup)
	go h.joinLoop()
	go h.watch(ownerPrefix, h.seeOwners, h.seeOwner)
	go h.watch(diskPrefix, h.seeDisks, h.seeDisk)
	go h.watch(wantPrefix, h.seeWants, h.seeWant)
	go h.watch(keyDraining, func(all []datanode.RegistryEntry, _ uint64) {
		var value []byte
		for i := range all {
			if all[i].Key == keyDraining {
				value = all[i].Value
			}
		}
		h.seeDraining(value)
		h.refreshHealth(h.life)
	}, func(e *datanode.RegistryEvent) {
		if e.Key == keyDraining {
			h.seeDraining(e.Value)
			h.refreshHealth(h.life)
		}
	})
	go h.watch(keyLayouts, func([]datanode.RegistryEntry, uint64) { h.wakeMembers() }, func(*datanode.RegistryEvent) { h.wakeMembers() })
}

// seeOwners takes all owner rows, of one instant.
func (h *Host) seeOwners(all []datanode.RegistryEntry, at uint64) {
	known := make(map[string]bool, len(all))
	for i := range all {
		known[all[i].Key] = true
		h.seeOwner(&datanode.RegistryEvent{Key: all[i].Key, Value: all[i].Value, Revision: all[i].Revision})
	}
	h.mu.Lock()
	var gone []string
	for d := range h.byID {
		if key := ownerKey(d); !known[key] {
			gone = append(gone, key)
		}
	}
	h.mu.Unlock()
	for _, key := range gone {
		h.seeOwner(&datanode.RegistryEvent{Key: key, Deleted: true, Revision: at})
	}
}

// seeOwner takes a change of an owner row.
func (h *Host) seeOwner(e *datanode.RegistryEvent) {
	d, err := diskOfKey(e.Key, ownerPrefix)
	if err != nil {
		return // nobody's
	}
	if e.Deleted {
		if h.noteOwner(d, nil, e.Revision) {
			h.noteFree(d)
		}
		h.owning.send(owner.Vanished{Disk: d})
		return
	}
	row, err := parseOwnerRow(e.Key, e.Value)
	if err != nil {
		h.log.Warn("an owner is not known", "err", err)
		return
	}
	h.noteOwner(d, row, e.Revision)
}

// seeDisks takes all records of disks, of one instant. What was made here since is not
// among them: that is not gone, and a clone's base goes on to hold what it needs.
func (h *Host) seeDisks(all []datanode.RegistryEntry, at uint64) {
	known := make(map[string]bool, len(all))
	for i := range all {
		known[all[i].Key] = true
		h.seeDisk(&datanode.RegistryEvent{Key: all[i].Key, Value: all[i].Value, Revision: all[i].Revision})
	}
	h.mu.Lock()
	gone := make(map[string]bool)
	for d, e := range h.byID {
		if e.now.revision <= at {
			gone[diskKey(d)] = true
		}
	}
	for d, c := range h.clones {
		if c.revision != 0 && c.revision <= at {
			gone[diskKey(d)] = true
		}
	}
	h.mu.Unlock()
	for key := range gone {
		if !known[key] {
			h.seeDisk(&datanode.RegistryEvent{Key: key, Deleted: true})
		}
	}
}

// seeDisk takes a change of a disk's record. What this host has itself it knows
// better.
func (h *Host) seeDisk(e *datanode.RegistryEvent) {
	d, err := diskOfKey(e.Key, diskPrefix)
	if err != nil {
		return
	}
	var rec *DiskRecord
	if !e.Deleted {
		if rec, err = parseDiskRecord(e.Value); err != nil {
			h.log.Warn("a disk is not known", "key", e.Key, "err", err)
			return
		}
		rec.revision = e.Revision
	}
	if h.has(d) {
		return
	}
	if rec != nil && rec.Base != nil {
		h.learnBase(rec)
	} else {
		h.forgetBase(d)
	}
	if rec == nil || rec.Removing {
		h.unknow(d)
		if rec != nil {
			h.noteFree(d)
		}
		return
	}
	h.know(*rec)
	h.renew(*rec)
}

// has reports whether this host has claimed a disk, or is giving it up for ever.
func (h *Host) has(d id.Disk) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[d]
	return e != nil && e.claimed != 0 || h.leftover[d] != nil
}

// forgetBase notes that a clone that another host has is independent, or gone.
func (h *Host) forgetBase(d id.Disk) {
	h.recordMu.Lock()
	h.mu.Lock()
	known := h.clones[d] != nil
	h.dropClone(d)
	h.mu.Unlock()
	h.recordMu.Unlock()
	if known {
		wake(h.sweep) // its base may give up what it held
	}
}

// unknow forgets a disk that this host has not.
func (h *Host) unknow(d id.Disk) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[d]
	if e == nil || e.claimed != 0 {
		return
	}
	delete(h.byID, d)
	delete(h.owners, d)
	delete(h.formers, d)
	h.stir(d)
	if h.byName[e.now.Name] == e {
		delete(h.byName, e.now.Name)
	}
	e.door.Close()
}

// renew takes a newer record of a disk that this host has not.
func (h *Host) renew(rec DiskRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.byID[rec.ID]
	if e == nil || e.claimed != 0 || e.now.revision >= rec.revision {
		return
	}
	if h.byName[e.now.Name] == e {
		delete(h.byName, e.now.Name)
	}
	e.now = rec
	h.byName[rec.Name] = e
	h.replace(e)
}

// diskRecord reads a disk's record, nil if there is none.
func (c catalog) diskRecord(ctx context.Context, d id.Disk) (*DiskRecord, error) {
	value, revision, err := c.get(ctx, diskKey(d))
	if err != nil || revision == 0 {
		return nil, err
	}
	rec, err := parseDiskRecord(value)
	if err != nil {
		return nil, err
	}
	rec.revision = revision
	return rec, nil
}
