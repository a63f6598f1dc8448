package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"plinth/datanode"
	"plinth/internal/id"
)

const (
	nextSnap   = "next/snap"
	snapPrefix = "snap/"
)

func snapDir(d id.Disk) string           { return fmt.Sprintf("%s%016x/", snapPrefix, uint64(d)) }
func snapKey(d id.Disk, n string) string { return snapDir(d) + n }

// SnapshotRecord says that a snapshot exists, as JSON in the registry under
// snap/DISK/NAME. What it is, its mark says: in the disk's log and map, stable
// before the row.
type SnapshotRecord struct {
	Version int               `json:"version"` // 1
	ID      id.Snapshot       `json:"id"`
	Bytes   int64             `json:"bytes"` // size of the disk at its instant
	Created time.Time         `json:"created"`
	Expires *time.Time        `json:"expires,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Group   id.Snapshot       `json:"group,omitempty"`
}

const snapshotRecordVersion = 1

func (r *SnapshotRecord) marshal() ([]byte, error) { return json.Marshal(r) }

func parseSnapshotRecord(b []byte) (*SnapshotRecord, error) {
	var rec SnapshotRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, err
	}
	if rec.Version != snapshotRecordVersion {
		return nil, fmt.Errorf("snapshot record of version %d: a newer plinth wrote it", rec.Version)
	}
	if rec.ID == 0 || rec.Bytes < 0 || rec.Bytes > diskBytesMax {
		return nil, fmt.Errorf("snapshot record: number %d, %d bytes", rec.ID, rec.Bytes)
	}
	return &rec, nil
}

// snapshotRow is a record with where it lies.
type snapshotRow struct {
	name     string
	revision uint64
	bytes    int64 // of key and value
	rec      SnapshotRecord
}

// snapshots lists the rows of a disk's snapshots, in the order of their names.
func (c catalog) snapshots(ctx context.Context, d id.Disk) ([]snapshotRow, error) {
	var out []snapshotRow
	dir := snapDir(d)
	for after := ""; ; {
		reply, err := c.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: dir, After: after})
		if err != nil {
			return nil, fmt.Errorf("list the snapshots of disk %d: %w", d, err)
		}
		for _, e := range reply.Entries {
			rec, err := parseSnapshotRecord(e.Value)
			if err != nil {
				return nil, fmt.Errorf("%s of the registry: %w", e.Key, err)
			}
			out = append(out, snapshotRow{strings.TrimPrefix(e.Key, dir), e.Revision, rowBytes(e.Key, e.Value), *rec})
			after = e.Key
		}
		if !reply.More || len(reply.Entries) == 0 {
			return out, nil
		}
	}
}

func rowBytes(key string, value []byte) int64 { return int64(len(key) + len(value)) }

// errDoubt marks a change of the registry of which nobody knows whether it was
// made.
var errDoubt = errors.New("whether the registry has it is not known")

// decide commits a transaction. An error of the registry may come after the fact:
// then key tells whether it was made, by the value it has (nil: none). Errors:
// ErrConflict, errDoubt and others; but for errDoubt nothing was changed.
func (c catalog) decide(ctx context.Context, txn *datanode.RegistryTxn, key string, want []byte) (revision uint64, err error) {
	reply, err := c.node.RegistryCommit(ctx, txn)
	if err == nil {
		return reply.Revision, nil
	}
	now, revision, gerr := c.get(ctx, key)
	if gerr == nil && (want == nil) == (revision == 0) && bytes.Equal(now, want) {
		return revision, nil
	}
	if gerr != nil || errors.Is(err, datanode.ErrOutcome) { // which may yet be made
		return 0, fmt.Errorf("%w: %w", errDoubt, err)
	}
	return 0, err
}

// validate returns ErrInvalid with the reason.
func (s *SnapshotSpec) validate(now time.Time) error {
	if len(s.Disks) == 0 || len(s.Disks) > snapshotDisksMax {
		return fmt.Errorf("%w: a snapshot of %d disks: name 1 to %d", ErrInvalid, len(s.Disks), snapshotDisksMax)
	}
	seen := make(map[string]bool, len(s.Disks))
	for _, d := range s.Disks {
		if seen[d] {
			return fmt.Errorf("%w: disk %q is named twice", ErrInvalid, d)
		}
		seen[d] = true
	}
	if s.Name != "" {
		if err := validateName(s.Name); err != nil {
			return err
		}
	}
	if !s.Expires.IsZero() && !s.Expires.After(now) {
		return fmt.Errorf("%w expiry %v: it is past", ErrInvalid, s.Expires)
	}
	if len(s.Labels) > labelsMax {
		return fmt.Errorf("%w: %d labels, at most %d", ErrInvalid, len(s.Labels), labelsMax)
	}
	for k, v := range s.Labels {
		if k == "" || len(k) > labelKeyBytesMax || len(v) > labelValueBytesMax || !printable(k) || !printable(v) {
			return fmt.Errorf("%w label %q: use a key of 1 to %d bytes and a value of up to %d, of printable characters",
				ErrInvalid, k, labelKeyBytesMax, labelValueBytesMax)
		}
	}
	return nil
}

// printable reports whether s is text of one line.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
