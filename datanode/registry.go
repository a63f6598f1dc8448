package datanode

import (
	"fmt"
	"strconv"
	"time"

	"plinth/internal/id"
)

const (
	// RegistryKeyBytesMax and RegistryValueBytesMax bound an entry.
	RegistryKeyBytesMax   = 512
	RegistryValueBytesMax = 256 << 10
	// RegistryOpsMax bounds a transaction: its guards and compares together, and
	// its changes, of which a put under a lease counts twice. etcd takes 128 of
	// each, of which its registry needs some for itself.
	RegistryOpsMax = 120
	// RegistryTxnBytesMax bounds the keys and values of a transaction; etcd takes
	// requests of 1.5 MiB.
	RegistryTxnBytesMax = 1 << 20
	// RegistryTxnLeasesMax bounds the leases that a transaction names.
	RegistryTxnLeasesMax = 4
	// RegistryPageMax bounds the entries of a page and what Max may ask for of
	// events, and RegistryPageBytesMax their keys and values, but for the last one:
	// an entry, or the events of a revision.
	RegistryPageMax      = 4096
	RegistryPageBytesMax = 1 << 20
	// RegistryWatchMax bounds how long a watch waits.
	RegistryWatchMax = time.Minute

	// LeaseTTLMin and LeaseTTLMax bound a lease's time.
	LeaseTTLMin = time.Second
	LeaseTTLMax = 10 * time.Minute
	// LeasesMax bounds the leases of a data node's registry, LeaseKeysMax the keys
	// under one of them.
	LeasesMax    = 1024
	LeaseKeysMax = 8192
	// LeaseMarginDivisor is the part of its time by which a registry waits longer
	// than the holder counts, so that a lease ends for its holder first although
	// the registry's clock may run faster by that part. Clocks that are being
	// adjusted differ by 0.1 %.
	LeaseMarginDivisor = 50
)

// LeaseID names a lease; 0 is none. It is never used again.
type LeaseID uint64

// RegistryGetRequest names a key.
type RegistryGetRequest struct{ Key string }

// RegistryGetReply is its value. Revision is the transaction that last changed
// it; it increases over the whole registry. Lease is the one it was put under.
type RegistryGetReply struct {
	Value    []byte
	Revision uint64
	Lease    LeaseID
}

// RegistryListRequest walks keys with a prefix above After; Max 0 means 1024, and
// a page has at most RegistryPageMax entries.
type RegistryListRequest struct {
	Prefix string
	After  string
	Max    int
	// At is the Revision of the first page, so that all are of one instant; 0
	// lists what there is now. ErrCompacted if that instant is forgotten.
	At uint64
}

// RegistryEntry is one key with its value.
type RegistryEntry struct {
	Key      string
	Value    []byte
	Revision uint64
	Lease    LeaseID
}

// RegistryListReply is one page, in key order, as it was right after the
// transaction Revision: a watch After it misses nothing.
type RegistryListReply struct {
	Entries  []RegistryEntry
	More     bool
	Revision uint64
}

// Compare holds when the key's revision is the one given; 0 means absent.
type Compare struct {
	Key      string
	Revision uint64
}

// Guard makes a transaction fail with ErrFenced when (Disk, Epoch) is fenced. A
// registry that is no data node's knows no fences; there the newest epoch is what
// was last put under [EpochKey], and a guard under another one fails: an owner
// is guarded away as soon as the next one has claimed its epoch, before that one
// has fenced.
type Guard struct {
	Disk  id.Disk
	Epoch id.Epoch
}

// EpochKey is where epochs of a disk are claimed, by compare-and-set.
func EpochKey(d id.Disk) string { return fmt.Sprintf("epoch/%016x", uint64(d)) }

// EpochValue is the value of EpochKey once an epoch is claimed: the next one.
func EpochValue(e id.Epoch) []byte { return strconv.AppendUint(nil, uint64(e)+1, 10) }

// MemberKey is where a data node that is one of several of its pool has, in its own
// registry, what it is there (package rack). Who does not know that serves it not.
const MemberKey = "member"

// LayoutsKey is where a registry has stripe layouts (package stripe): the pool's, and in each
// node of several a copy, which says what the node keeps.
const LayoutsKey = "layouts"

// Put sets a key. With a lease, the key is deleted when the lease ends, unless it
// was put again, without a lease or under another one.
type Put struct {
	Key   string
	Value []byte
	Lease LeaseID
}

// RegistryTxn is a transaction: if all compares hold, all puts and deletes are
// applied in one step.
type RegistryTxn struct {
	Guards   []Guard
	Compares []Compare
	Puts     []Put
	Deletes  []string
}

// RegistryCommitReply gives the revision of the keys that were put.
type RegistryCommitReply struct{ Revision uint64 }

// RegistryGrantRequest asks for a lease.
type RegistryGrantRequest struct{ TTL time.Duration }

// RegistryGrantReply is a lease.
type RegistryGrantReply struct{ Lease LeaseID }

// RegistryKeepAliveRequest asks for a lease to last its whole TTL again.
type RegistryKeepAliveRequest struct{ Lease LeaseID }

// RegistryRevokeRequest ends a lease.
type RegistryRevokeRequest struct{ Lease LeaseID }

// RegistryWatchRequest waits for changes of keys with a prefix, after a revision.
type RegistryWatchRequest struct {
	Prefix string
	After  uint64
	// Max is how many events are enough, 0: 256. The last revision is whole,
	// however many more it has.
	Max int
	// Wait is how long to wait for the first event; 0: RegistryWatchMax.
	Wait time.Duration
}

// RegistryEvent is a change of a key by the transaction Revision. A deletion has
// neither value nor lease.
type RegistryEvent struct {
	Key      string
	Value    []byte
	Revision uint64
	Lease    LeaseID
	Deleted  bool
}

// RegistryWatchReply is changes in the order of their revisions; none if there
// were none in time. Nothing of the prefix was changed between the request's After
// and Revision but what Events says; Revision is the next request's After.
type RegistryWatchReply struct {
	Events   []RegistryEvent
	Revision uint64
}
