package api

import (
	"time"

	"plinth/datanode"
	"plinth/internal/events"
	"plinth/internal/host"
)

// CreateDisk is the body of POST /disks.
type CreateDisk struct {
	Name string `json:"name"`
	// Bytes is the size.
	Bytes int64 `json:"bytes"`
	// ChunkBytes, 0 for the default, and Cipher, empty for the default.
	ChunkBytes uint32 `json:"chunk_bytes,omitempty"`
	Cipher     string `json:"cipher,omitempty"`
	// Stable makes every write wait for stable media.
	Stable bool `json:"stable,omitempty"`
}

// ChangeDisk is the body of PATCH /disks/{name}: one change at a time.
type ChangeDisk struct {
	// Bytes is the new, larger size; 0 leaves it.
	Bytes int64 `json:"bytes,omitempty"`
	// Name is the new name; empty leaves it.
	Name string `json:"name,omitempty"`
	// Limits are the limits that change; nil leaves all.
	Limits *host.LimitsChange `json:"limits,omitempty"`
	// Host is the host that shall serve the disk; empty leaves it where it is.
	Host string `json:"host,omitempty"`
}

// changes counts what is to change.
func (c *ChangeDisk) changes() (n int) {
	for _, is := range []bool{c.Bytes != 0, c.Name != "", c.Limits != nil, c.Host != ""} {
		if is {
			n++
		}
	}
	return n
}

// CreateSnapshot is the body of POST /disks/{name}/snapshots.
type CreateSnapshot struct {
	// Name, empty for the time of day.
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Expires is when it is removed by itself; nil: never.
	Expires *time.Time `json:"expires,omitempty"`
}

// CreateSnapshots is the body of POST /snapshots: one of each disk, all of one
// instant.
type CreateSnapshots struct {
	Disks []string `json:"disks"`
	CreateSnapshot
}

// SnapshotList answers what lists or creates snapshots.
type SnapshotList struct {
	Snapshots []host.SnapshotInfo `json:"snapshots"`
}

// NewName is the body of what takes a name and nothing else.
type NewName struct {
	Name string `json:"name"`
}

// NodeList answers GET /nodes.
type NodeList struct {
	Nodes []datanode.NodeInfo `json:"nodes"`
}

// EventList answers GET /events.
type EventList struct {
	Events []events.Event `json:"events"`
	// Last is the number of the newest event that there is.
	Last uint64 `json:"last"`
}

// AddNode is the body of POST /nodes. One of the two may be left out: the name of a new
// node, and the addresses of one that is being drained.
type AddNode struct {
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// AddSpindle asks for POST /spindles.
type AddSpindle struct {
	Node string `json:"node,omitempty"`
}

// DiskList answers GET /disks.
type DiskList struct {
	Disks []host.DiskInfo `json:"disks"`
}

// Event is one line of an answer to long work: progress, or at the end a report
// or an error.
type Event struct {
	Done   int                `json:"done,omitempty"`
	Total  int                `json:"total,omitempty"`
	Report *host.VerifyReport `json:"report,omitempty"`
	Error  *ErrorBody         `json:"error,omitempty"`
}

// ErrorBody says what went wrong.
type ErrorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *ErrorBody) Error() string { return e.Message }

// errorReply is the body of every answer that is not a success.
type errorReply struct {
	Error ErrorBody `json:"error"`
}
