package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"plinth/internal/id"
)

const (
	groupPrefix = "group/"
	// groupRowVersion is of the rows of groups and of answers to them.
	groupRowVersion = 1
	// groupDisksMax bounds the disks of a group of several hosts: the transaction that
	// makes its snapshots has a guard and a compare for each, and a compare for the group.
	groupDisksMax = 59
	// groupHoldTime is how long an owner holds its disks up for the others', groupHoldMax
	// what it does for who asks for more.
	groupHoldTime = 500 * time.Millisecond
	groupHoldMax  = 5 * time.Second
	// groupErrorBytesMax bounds what an owner says of why it has not marked its disks.
	groupErrorBytesMax = 1 << 10
)

func groupKey(g id.Snapshot) string                 { return fmt.Sprintf("%s%016x", groupPrefix, uint64(g)) }
func groupAnswerKey(g id.Snapshot, h string) string { return groupKey(g) + "/" + h }

// parseGroupKey takes a key below group/ apart; host is empty for the group's own.
func parseGroupKey(key string) (g id.Snapshot, host string, err error) {
	number, host, _ := strings.Cut(strings.TrimPrefix(key, groupPrefix), "/")
	d, err := diskOfKey(number, "")
	if err == nil && d == 0 {
		err = errors.New("a group's number is not 0")
	}
	return id.Snapshot(d), host, err
}

// groupRow asks the owners of disks for snapshots of one instant, as JSON in the
// registry under the lease of the host that asks. As long as it is there nothing is
// decided: one transaction deletes it and makes the snapshots' rows, another one,
// which anybody may make, deletes it alone. It is never changed.
type groupRow struct {
	Version int         `json:"version"`
	Host    string      `json:"host"`    // that asks
	Name    string      `json:"name"`    // of the snapshots
	HoldMS  int64       `json:"hold_ms"` // how long owners hold their disks up
	Disks   []groupDisk `json:"disks"`
}

type groupDisk struct {
	Disk     id.Disk     `json:"disk"`
	Snapshot id.Snapshot `json:"snapshot"`
}

func (r groupRow) hold() time.Duration { return time.Duration(r.HoldMS) * time.Millisecond }

func (r groupRow) marshal() ([]byte, error) {
	r.Version = groupRowVersion
	return json.Marshal(&r)
}

func parseGroupRow(value []byte) (*groupRow, error) {
	var r groupRow
	if err := json.Unmarshal(value, &r); err != nil {
		return nil, err
	}
	if r.Version != groupRowVersion {
		return nil, fmt.Errorf("group of version %d: a newer plinth wrote it", r.Version)
	}
	if err := validateName(r.Name); err != nil {
		return nil, err
	}
	if r.HoldMS <= 0 || r.hold() > groupHoldMax || len(r.Disks) == 0 || len(r.Disks) > groupDisksMax {
		return nil, fmt.Errorf("group of %d disks, held up for %d ms", len(r.Disks), r.HoldMS)
	}
	seen := make(map[id.Disk]bool, len(r.Disks))
	for _, d := range r.Disks {
		if d.Disk == 0 || d.Snapshot == 0 || seen[d.Disk] {
			return nil, fmt.Errorf("group with disk %d, snapshot %d", d.Disk, d.Snapshot)
		}
		seen[d.Disk] = true
	}
	return &r, nil
}

// groupAnswer says what a host has marked for a group, or why nothing, as JSON in the
// registry under its lease: it holds those disks up until the group's row is gone.
type groupAnswer struct {
	Version int         `json:"version"`
	Marks   []groupMark `json:"marks,omitempty"`
	Error   string      `json:"error,omitempty"`
}

// groupMark is a stable mark in a disk's log.
type groupMark struct {
	Disk  id.Disk  `json:"disk"`
	Epoch id.Epoch `json:"epoch"`
	Bytes int64    `json:"bytes"` // size of the disk there
}

func (a groupAnswer) marshal() ([]byte, error) {
	a.Version = groupRowVersion
	a.Error = strings.ToValidUTF8(a.Error[:min(len(a.Error), groupErrorBytesMax)], "")
	return json.Marshal(&a)
}

func parseGroupAnswer(value []byte) (*groupAnswer, error) {
	var a groupAnswer
	if err := json.Unmarshal(value, &a); err != nil {
		return nil, err
	}
	if a.Version != groupRowVersion {
		return nil, fmt.Errorf("answer to a group of version %d: a newer plinth wrote it", a.Version)
	}
	if len(a.Marks) > groupDisksMax || len(a.Error) > groupErrorBytesMax || (len(a.Marks) == 0) == (a.Error == "") {
		return nil, fmt.Errorf("answer to a group with %d marks and an error of %d bytes", len(a.Marks), len(a.Error))
	}
	for _, m := range a.Marks {
		if m.Disk == 0 || m.Epoch == 0 || m.Bytes < 0 || m.Bytes > diskBytesMax {
			return nil, fmt.Errorf("answer to a group: disk %d, epoch %d, %d bytes", m.Disk, m.Epoch, m.Bytes)
		}
	}
	return &a, nil
}

// groupVerdict is what the answers to a group come to: it fails for the reason that
// somebody gives, or is complete when nothing is missing.
type groupVerdict struct {
	marks   map[id.Disk]groupMark
	missing []id.Disk
	refused string // who refuses, and why
}

// verdict looks at the answers, by host. Of a disk that two hosts have marked, one after
// the other, the newer owner's mark counts.
func (r *groupRow) verdict(answers map[string]*groupAnswer) groupVerdict {
	v := groupVerdict{marks: make(map[id.Disk]groupMark)}
	for host, a := range answers {
		if text := "host " + host + ": " + a.Error; a.Error != "" && (v.refused == "" || text < v.refused) {
			v.refused = text
		}
		for _, m := range a.Marks {
			in := slices.ContainsFunc(r.Disks, func(d groupDisk) bool { return d.Disk == m.Disk })
			if in && v.marks[m.Disk].Epoch < m.Epoch {
				v.marks[m.Disk] = m
			}
		}
	}
	for _, d := range r.Disks {
		if v.marks[d.Disk].Epoch == 0 {
			v.missing = append(v.missing, d.Disk)
		}
	}
	return v
}
