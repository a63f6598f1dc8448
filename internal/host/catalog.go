package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"plinth/datanode"
	"plinth/internal/chunk"
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
)

const (
	keyPool    = "pool"
	keyLayouts = datanode.LayoutsKey
	nextDisk   = "next/disk"
	nextSeg    = "next/segment"
	nextKey    = "next/key"
	diskPrefix = "disk/"
	namePrefix = "name/"
)

func diskKey(d id.Disk) string { return fmt.Sprintf("%s%016x", diskPrefix, uint64(d)) }
func dataKey(k id.Key) string  { return fmt.Sprintf("key/%016x", uint64(k)) }
func nameKey(n string) string  { return namePrefix + n }

// DiskRecord is a disk in the catalog, as JSON.
type DiskRecord struct {
	Version int       `json:"version"` // 1; 2 with a base
	ID      id.Disk   `json:"id"`
	Name    string    `json:"name"`
	Bytes   int64     `json:"bytes"` // at creation; the disk's log knows later sizes
	Chunk   uint32    `json:"chunk"`
	Cipher  string    `json:"cipher"`
	Stable  bool      `json:"stable,omitempty"`
	Created time.Time `json:"created"`
	// Removing: the name is free again and the space is being given back.
	Removing bool `json:"removing,omitempty"`
	// Limits bound what its clients may do; nil: nothing does. An agent that does
	// not know them does not enforce them.
	Limits *gate.Limits `json:"limits,omitempty"`
	// Base is what a clone began as, until it has stated itself what it needs:
	// before, the lists of that disk hold it.
	Base *CloneBase `json:"base,omitempty"`

	revision uint64   // of the registry's key
	epoch    id.Epoch // claimed with the record of a new disk, else 0
}

// limits returns the limits, none for none.
func (r *DiskRecord) limits() gate.Limits {
	if r.Limits == nil {
		return gate.Limits{}
	}
	return *r.Limits
}

// CloneBase names the snapshot that a clone began as.
type CloneBase struct {
	Disk     id.Disk     `json:"disk"`
	Snapshot id.Snapshot `json:"snapshot"`
}

const (
	diskRecordVersion = 1
	// cloneRecordVersion is refused by agents that do not know bases.
	cloneRecordVersion = 2
)

// marshal encodes the record.
func (r DiskRecord) marshal() ([]byte, error) {
	r.Version = diskRecordVersion
	if r.Base != nil {
		r.Version = cloneRecordVersion
	}
	return json.Marshal(&r)
}

// catalog reads and changes what the registry says of the pool.
type catalog struct {
	node datanode.RegistryNode
}

// get returns a value and its revision, nil and 0 for none.
func (c catalog) get(ctx context.Context, key string) ([]byte, uint64, error) {
	reply, err := c.getEntry(ctx, key)
	if err != nil || reply == nil {
		return nil, 0, err
	}
	return reply.Value, reply.Revision, nil
}

// getEntry returns all of an entry, nil for none.
func (c catalog) getEntry(ctx context.Context, key string) (*datanode.RegistryGetReply, error) {
	reply, err := c.node.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: key})
	if errors.Is(err, datanode.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the registry: %w", key, err)
	}
	return reply, nil
}

func (c catalog) commit(ctx context.Context, txn *datanode.RegistryTxn) error {
	_, err := c.node.RegistryCommit(ctx, txn)
	return err
}

// firstEpoch is a new disk's.
const firstEpoch id.Epoch = 1

// takesMax bounds how often take tries again against other takers.
const takesMax = 64

// take advances a counter by n and returns its value before: the first of n
// numbers that are the caller's alone. Counters begin at 1.
func (c catalog) take(ctx context.Context, key string, n uint64) (uint64, error) {
	for range takesMax {
		revision, first, err := c.counter(ctx, key)
		if err != nil {
			return 0, err
		}
		err = c.commit(ctx, &datanode.RegistryTxn{
			Compares: []datanode.Compare{{Key: key, Revision: revision}},
			Puts:     []datanode.Put{{Key: key, Value: strconv.AppendUint(nil, first+n, 10)}},
		})
		if !errors.Is(err, datanode.ErrConflict) {
			return first, err
		}
	}
	return 0, fmt.Errorf("counter %s of the registry: %w", key, datanode.ErrConflict)
}

// counter returns a counter's revision and value.
func (c catalog) counter(ctx context.Context, key string) (revision, next uint64, err error) {
	value, revision, err := c.get(ctx, key)
	if err != nil || revision == 0 {
		return 0, 1, err
	}
	if next, err = strconv.ParseUint(string(value), 10, 63); err != nil {
		return 0, 0, fmt.Errorf("counter %s of the registry: %w", key, err)
	}
	return revision, next, nil
}

// claimEpoch makes a new epoch of a disk, above every earlier one.
func (c catalog) claimEpoch(ctx context.Context, d id.Disk) (id.Epoch, error) {
	n, err := c.take(ctx, datanode.EpochKey(d), 1)
	return id.Epoch(n), err
}

// disks lists all disks, those being removed too.
func (c catalog) disks(ctx context.Context) ([]DiskRecord, error) {
	var out []DiskRecord
	for after := ""; ; {
		reply, err := c.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: diskPrefix, After: after})
		if err != nil {
			return nil, fmt.Errorf("list the disks of the registry: %w", err)
		}
		for _, e := range reply.Entries {
			rec, err := parseDiskRecord(e.Value)
			if err != nil {
				return nil, fmt.Errorf("%s of the registry: %w", e.Key, err)
			}
			rec.revision = e.Revision
			out = append(out, *rec)
			after = e.Key
		}
		if !reply.More || len(reply.Entries) == 0 {
			return out, nil
		}
	}
}

func parseDiskRecord(b []byte) (*DiskRecord, error) {
	var rec DiskRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, err
	}
	if rec.Version != diskRecordVersion && rec.Version != cloneRecordVersion {
		return nil, fmt.Errorf("disk record of version %d: a newer plinth wrote it", rec.Version)
	}
	if rec.Base != nil && (rec.Base.Disk == 0 || rec.Base.Disk >= rec.ID || rec.Base.Snapshot == 0) {
		return nil, fmt.Errorf("disk record %d: it is based on snapshot %d of disk %d", rec.ID, rec.Base.Snapshot, rec.Base.Disk)
	}
	if _, err := chunk.ParseSuite(rec.Cipher); err != nil {
		return nil, err
	}
	limits := rec.limits()
	if err := limits.Validate(); err != nil {
		return nil, fmt.Errorf("disk record %d: %w", rec.ID, err)
	}
	return &rec, chunk.Size(rec.Chunk).Validate()
}

// addDisk records a new disk under a free name, with a number and its first epoch,
// which is the caller's: all in one transaction. more adds to it for a number.
func (c catalog) addDisk(ctx context.Context, rec *DiskRecord, more func(id.Disk) (*datanode.RegistryTxn, error)) error {
	for range takesMax {
		next, first, err := c.counter(ctx, nextDisk)
		if err != nil {
			return err
		}
		rec.ID, rec.epoch = id.Disk(first), firstEpoch
		value, err := rec.marshal()
		if err != nil {
			return err
		}
		txn, err := more(rec.ID)
		if err != nil {
			return err
		}
		for _, key := range []string{nameKey(rec.Name), diskKey(rec.ID), datanode.EpochKey(rec.ID)} {
			txn.Compares = append(txn.Compares, datanode.Compare{Key: key})
		}
		txn.Compares = append(txn.Compares, datanode.Compare{Key: nextDisk, Revision: next})
		txn.Puts = append(txn.Puts,
			datanode.Put{Key: nextDisk, Value: strconv.AppendUint(nil, first+1, 10)},
			datanode.Put{Key: nameKey(rec.Name), Value: strconv.AppendUint(nil, first, 10)},
			datanode.Put{Key: datanode.EpochKey(rec.ID), Value: datanode.EpochValue(rec.epoch)},
			datanode.Put{Key: diskKey(rec.ID), Value: value})
		rec.revision, err = c.decide(ctx, txn, diskKey(rec.ID), value)
		if !errors.Is(err, datanode.ErrConflict) {
			return err
		}
		if _, taken, err := c.get(ctx, nameKey(rec.Name)); err != nil || taken != 0 {
			return errors.Join(err, fmt.Errorf("disk %q: %w", rec.Name, ErrExists))
		}
	}
	return fmt.Errorf("disk %q: %w", rec.Name, datanode.ErrConflict)
}

// changeDisk replaces a disk's record, which is still as it was read; more adds to
// the transaction.
func (c catalog) changeDisk(ctx context.Context, rec *DiskRecord, more *datanode.RegistryTxn) error {
	value, err := rec.marshal()
	if err != nil {
		return err
	}
	revision, err := c.decide(ctx, &datanode.RegistryTxn{
		Guards:   more.Guards,
		Compares: append(more.Compares, datanode.Compare{Key: diskKey(rec.ID), Revision: rec.revision}),
		Puts:     append(more.Puts, datanode.Put{Key: diskKey(rec.ID), Value: value}),
		Deletes:  more.Deletes,
	}, diskKey(rec.ID), value)
	if err == nil {
		rec.revision = revision
	}
	return err
}

// forgetDisk ends a removal. The epochs stay: fragments name them as births, and
// releaseRemoved must be above those.
func (c catalog) forgetDisk(ctx context.Context, d id.Disk) error {
	return c.commit(ctx, &datanode.RegistryTxn{
		Deletes: []string{diskKey(d), disk.CheckpointKey(d), ownerKey(d), statedKey(d)},
	})
}
