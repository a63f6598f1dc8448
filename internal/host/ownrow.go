package host

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	ownerPrefix  = "owner/"
	statedPrefix = "stated/"
	// ownerRowVersion is of the row of a disk's owner.
	ownerRowVersion = 1
)

func ownerKey(d id.Disk) string  { return fmt.Sprintf("%s%016x", ownerPrefix, uint64(d)) }
func statedKey(d id.Disk) string { return fmt.Sprintf("%s%016x", statedPrefix, uint64(d)) }

// diskOfKey returns the number at the end of a key with that prefix.
func diskOfKey(key, prefix string) (id.Disk, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(key, prefix), 16, 63)
	if err != nil {
		return 0, fmt.Errorf("key %q of the registry is no disk's: %w", key, err)
	}
	return id.Disk(n), nil
}

// ownerRow says who serves a disk, as JSON in the registry under that host's lease.
type ownerRow struct {
	Version int      `json:"version"`
	Host    string   `json:"host"`
	Epoch   id.Epoch `json:"epoch"`

	lease    datanode.LeaseID
	revision uint64
}

func (r *ownerRow) marshal() ([]byte, error) {
	r.Version = ownerRowVersion
	return json.Marshal(r)
}

func parseOwnerRow(key string, value []byte) (*ownerRow, error) {
	var r ownerRow
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, fmt.Errorf("%s of the registry: %w", key, err)
	}
	if r.Version != ownerRowVersion || r.Host == "" {
		return nil, fmt.Errorf("%s of the registry has version %d: a newer plinth wrote it", key, r.Version)
	}
	return &r, nil
}

// ownerOf returns who serves a disk, nil for nobody.
func (c catalog) ownerOf(ctx context.Context, d id.Disk) (*ownerRow, error) {
	reply, err := c.getEntry(ctx, ownerKey(d))
	if err != nil || reply == nil {
		return nil, err
	}
	r, err := parseOwnerRow(ownerKey(d), reply.Value)
	if err != nil {
		return nil, err
	}
	r.lease, r.revision = reply.Lease, reply.Revision
	return r, nil
}

// putOwner returns the put of a disk's owner row.
func putOwner(host string, lease datanode.LeaseID, d id.Disk, epoch id.Epoch) (datanode.Put, error) {
	value, err := (&ownerRow{Host: host, Epoch: epoch}).marshal()
	return datanode.Put{Key: ownerKey(d), Value: value, Lease: lease}, err
}

// claim makes a host the owner of a disk that has none, under the next epoch, whose
// counter is still as it was read.
func (c catalog) claim(ctx context.Context, host string, lease datanode.LeaseID, d id.Disk, epoch id.Epoch, epochAt uint64) error {
	put, err := putOwner(host, lease, d, epoch)
	if err != nil {
		return err
	}
	_, err = c.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: put.Key}, {Key: datanode.EpochKey(d), Revision: epochAt}},
		Puts:     []datanode.Put{put, {Key: datanode.EpochKey(d), Value: datanode.EpochValue(epoch)}},
	}, put.Key, put.Value)
	return err
}

// release deletes the owner row of a disk if it is under that lease.
func (c catalog) release(ctx context.Context, lease datanode.LeaseID, d id.Disk) error {
	r, err := c.ownerOf(ctx, d)
	if err != nil || r == nil || r.lease != lease {
		return err
	}
	_, err = c.decide(ctx, &datanode.RegistryTxn{
		Compares: []datanode.Compare{{Key: ownerKey(d), Revision: r.revision}}, Deletes: []string{ownerKey(d)},
	}, ownerKey(d), nil)
	return err
}

// ElsewhereError says that another host serves a disk; it is [ErrElsewhere].
type ElsewhereError struct {
	Disk string
	Host string // empty: nobody does at present
}

func (e *ElsewhereError) Error() string {
	if e.Host == "" {
		return fmt.Sprintf("disk %q: no host serves it at present", e.Disk)
	}
	return fmt.Sprintf("disk %q: host %s serves it", e.Disk, e.Host)
}

func (e *ElsewhereError) Unwrap() error { return ErrElsewhere }
