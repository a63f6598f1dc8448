package host

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"plinth/datanode"
)

const (
	hostPrefix = "host/"
	// hostRowVersion is of a host's row. Fields may be added without another one.
	hostRowVersion = 1
	// hostNameBytesMax is what fits a DNS label, as in certificates.
	hostNameBytesMax = 63
)

func hostKey(name string) string { return hostPrefix + name }

// HostRecord is a host's session, as JSON in the registry under its lease.
type HostRecord struct {
	Version int `json:"version"`
	// Life names one life of the agent.
	Life string `json:"life"`
	// Sole: it has the data node in its own process.
	Sole bool `json:"sole,omitempty"`
	// TTL is the lease's, in seconds.
	TTL float64 `json:"ttl_seconds"`
	// Peer is where it serves the disks that it has to other hosts, HOST:PORT; empty:
	// nowhere.
	Peer string `json:"peer,omitempty"`
	// Lends: there it gives sealed chunks of its flash cache, too.
	Lends bool      `json:"lends,omitempty"`
	Began time.Time `json:"began"`
	// Layouts is the version of the stripe layouts that it has learnt.
	Layouts uint64 `json:"layouts,omitempty"`

	name  string
	lease datanode.LeaseID
}

func parseHostRecord(e *datanode.RegistryEntry) (*HostRecord, error) {
	r := HostRecord{name: strings.TrimPrefix(e.Key, hostPrefix), lease: e.Lease}
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, fmt.Errorf("%s of the registry: %w", e.Key, err)
	}
	if r.Version != hostRowVersion {
		return nil, fmt.Errorf("%s of the registry has version %d: a newer plinth wrote it", e.Key, r.Version)
	}
	return &r, nil
}

// ttl returns how long its lease lasts at most, by the registry's clock.
func (r *HostRecord) ttl() time.Duration {
	ttl := time.Duration(min(max(r.TTL, 0), datanode.LeaseTTLMax.Seconds()) * float64(time.Second))
	return ttl + ttl/datanode.LeaseMarginDivisor
}

// hostRecord returns a host's session, nil for none.
func (c catalog) hostRecord(ctx context.Context, name string) (*HostRecord, error) {
	all, err := c.hosts(ctx, hostKey(name))
	for _, r := range all {
		if r.name == name {
			return r, nil
		}
	}
	return nil, err
}

// hosts lists the sessions of hosts whose keys begin so, in the order of their names.
func (c catalog) hosts(ctx context.Context, prefix string) ([]*HostRecord, error) {
	var out []*HostRecord
	for after := ""; ; {
		reply, err := c.node.RegistryList(ctx, &datanode.RegistryListRequest{Prefix: prefix, After: after})
		if err != nil {
			return nil, fmt.Errorf("list the hosts of the registry: %w", err)
		}
		for i := range reply.Entries {
			r, err := parseHostRecord(&reply.Entries[i])
			if err != nil {
				return nil, err
			}
			out = append(out, r)
			after = reply.Entries[i].Key
		}
		if !reply.More || len(reply.Entries) == 0 {
			slices.SortFunc(out, func(a, b *HostRecord) int { return cmp.Compare(a.name, b.name) })
			return out, nil
		}
	}
}

// rivalError says that another life has the host's name.
type rivalError struct{ has *HostRecord }

func (e *rivalError) Error() string {
	return fmt.Sprintf("another host of that name serves, since %s: %v", e.has.Began.Format(time.RFC3339), ErrInUse)
}

func (e *rivalError) Unwrap() error { return ErrInUse }

// validateHostName accepts what a certificate may have as a host's name.
func validateHostName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	if name == "" || len(name) > hostNameBytesMax || strings.Trim(name, letters+"-_.") != "" ||
		!strings.Contains(letters, name[:1]) || !strings.Contains(letters, name[len(name)-1:]) {
		return fmt.Errorf("%w name %q of a host: use 1 to %d of a-z, 0-9, '-', '_' and '.', a letter or digit at both ends",
			ErrInvalid, name, hostNameBytesMax)
	}
	return nil
}
