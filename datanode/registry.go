package datanode

import "plinth/internal/id"

const (
	// RegistryKeyBytesMax and RegistryValueBytesMax bound an entry.
	RegistryKeyBytesMax   = 512
	RegistryValueBytesMax = 256 << 10
	// RegistryOpsMax bounds the compares, puts and deletes of a transaction.
	RegistryOpsMax = 128
)

// RegistryGetRequest names a key.
type RegistryGetRequest struct{ Key string }

// RegistryGetReply is its value. Revision is the transaction that last changed
// it; it increases over the whole registry.
type RegistryGetReply struct {
	Value    []byte
	Revision uint64
}

// RegistryListRequest walks keys with a prefix above After; Max 0 means 1024.
type RegistryListRequest struct {
	Prefix string
	After  string
	Max    int
}

// RegistryEntry is one key with its value.
type RegistryEntry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// RegistryListReply is one page, in key order.
type RegistryListReply struct {
	Entries []RegistryEntry
	More    bool
}

// Compare holds when the key's revision is the one given; 0 means absent.
type Compare struct {
	Key      string
	Revision uint64
}

// Guard makes a transaction fail with ErrFenced when (Disk, Epoch) is fenced.
type Guard struct {
	Disk  id.Disk
	Epoch id.Epoch
}

// Put sets a key.
type Put struct {
	Key   string
	Value []byte
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
