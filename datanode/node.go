package datanode

import "context"

// Node is a data node as a host sees it: in process today, over a wire later.
type Node interface {
	LogNode
	FragmentNode
	IndexNode
	RegistryNode
	// Status describes the node. It does no I/O that can block for long.
	Status(ctx context.Context) (*Status, error)
	// ReplaceSpindle makes a drive that is mounted, empty, on the directory of a spindle
	// that does not serve that spindle, under another incarnation, durably. Calls to the
	// spindle fail with ErrSpindle until it has returned. ErrInvalid says what is in the
	// way, for an operator, and that nothing was changed; after other errors but ErrClosed
	// it may be that the former drive is refused from now on, and the call made again.
	ReplaceSpindle(ctx context.Context, r *ReplaceSpindleRequest) error
	// AddSpindle makes a spindle more of a drive that is mounted, empty, where the node wants
	// its next one. It serves when the call returns. Errors: ErrInvalid, as for ReplaceSpindle;
	// others leave it unknown whether there is one more, which Status tells.
	AddSpindle(ctx context.Context, r *AddSpindleRequest) error
}

// LogNode is the fenced log. Each disk has two streams, [Ops] and [Results].
type LogNode interface {
	// Fence makes epoch the disk's newest, durably, creating the disk's log at
	// the first call. From its return on, calls under lower epochs fail with
	// ErrFenced, and so does a Fence at or below the disk's epoch.
	Fence(ctx context.Context, r *FenceRequest) (*FenceReply, error)
	// Append adds records at the end of a stream, all or none. When it returns
	// nil they survive the death of this process, not yet a loss of power.
	// Errors: ErrFenced, ErrPosition, ErrLogFull, ErrDead, ErrInvalid.
	Append(ctx context.Context, r *AppendRequest) (*AppendReply, error)
	// Sync returns when everything appended to the disk's streams before the
	// call is on stable media. One fdatasync serves many callers. A failed one
	// means a dead device (ErrDead), now and for every later call.
	Sync(ctx context.Context, r *SyncRequest) error
	// ReadLog returns records from a position on: at least one if there is one,
	// then as many as fit in BytesMax.
	ReadLog(ctx context.Context, r *ReadLogRequest) (*ReadLogReply, error)
	// TrimLog gives up all records of a stream through a position. It is
	// remembered no later than the next Sync; until then a crash may bring
	// records back.
	TrimLog(ctx context.Context, r *TrimLogRequest) error
	// DropLog forgets a removed disk's streams and its epoch, durably.
	DropLog(ctx context.Context, r *DropLogRequest) error
}

// ReplicaNode is what a node can do whose logs are kept on others too. Only who is
// about to make logs equal calls it.
type ReplicaNode interface {
	// JoinLog is a Fence that may be repeated under the same epoch, which it leaves,
	// and that tells which turn this is: the newest alone may reset.
	JoinLog(ctx context.Context, r *JoinLogRequest) (*JoinLogReply, error)
	// CopyLog is an Append of records of other nodes, under the epochs that they have.
	// They do not fall, and none is above the request's. Errors: those of Append.
	CopyLog(ctx context.Context, r *CopyLogRequest) error
	// ResetLog gives up what the streams hold and says where they go on, durably: both,
	// at any position, or one, at a position above its end. Errors: ErrConflict for
	// a turn that is not the newest, or in which there was a reset.
	ResetLog(ctx context.Context, r *ResetLogRequest) error
}

// Replica is a node of several.
type Replica interface {
	Node
	ReplicaNode
}

// FragmentNode is the spindles.
type FragmentNode interface {
	// WriteFragments stores fragments of one segment; those whose error is nil
	// are on stable media at return. Error of the whole call: ErrStaleLayout,
	// ErrInvalid. An existing fragment of that segment and index on that
	// spindle is an error unless Replace is set; it is then replaced in one
	// step, whatever a crash leaves.
	WriteFragments(ctx context.Context, r *WriteFragmentsRequest) (*WriteFragmentsReply, error)
	// DiscardFragments gives up, durably, the fragments of a segment that was
	// never published: its writing failed in part, or what it was for did. A
	// segment that the index knows is refused with ErrInvalid. It may be repeated.
	DiscardFragments(ctx context.Context, r *DiscardFragmentsRequest) error
	// ReadFragments reads ranges; each has its own error: ErrNotFound,
	// ErrSpindle, ErrCorrupt (only the header is damaged, or I/O failed).
	ReadFragments(ctx context.Context, r *ReadFragmentsRequest) (*ReadFragmentsReply, error)
	// ListFragments walks a spindle's own table in (segment, index) order.
	ListFragments(ctx context.Context, r *ListFragmentsRequest) (*ListFragmentsReply, error)
	// Reserve sets how many bytes of fragments, over all spindles, a host may
	// still write for what it has acknowledged, replacing its previous figure.
	// ErrNoSpace leaves the previous figure. Force takes it whatever is free
	// (for what was acknowledged before a restart). The figure is not durable.
	Reserve(ctx context.Context, r *ReserveRequest) error
}

// IndexNode is the fingerprint index and the reference lists.
type IndexNode interface {
	// Lookup finds fingerprints and registers every hit's slot for the disk
	// (I10) in the same step. Misses, and hits on segments that are condemned,
	// deleting or gone, have Found false. The registrations are stable when the
	// next Publish of the same caller returns.
	Lookup(ctx context.Context, r *LookupRequest) (*LookupReply, error)
	// Publish makes segments, their births and their fingerprints known, and
	// every earlier Lookup's registrations stable. Fragments must be stable
	// before. Publishing a segment again is harmless. An empty request only
	// makes stable.
	Publish(ctx context.Context, r *PublishRequest) error
	// ListSegments walks, in order, the segments on which the disk holds slots,
	// by registration or by birth.
	ListSegments(ctx context.Context, r *ListSegmentsRequest) (*ListSegmentsReply, error)
	// SetLists replaces the disk's reference lists (and births) of the named
	// segments, durably. A segment on which no disk holds anything is then
	// free to delete. A list whose (epoch, seq) is not below the request's is
	// left as it is and reported in Refused. What the disk holds by a move stays
	// (see Forward).
	SetLists(ctx context.Context, r *SetListsRequest) (*SetListsReply, error)
	// CompleteIndex says that every disk of the pool has set its lists since
	// this incarnation of the index began; from now on it is complete.
	CompleteIndex(ctx context.Context, r *CompleteIndexRequest) error
	// DescribeSegments returns what the index holds about segments: for
	// verify, and for status.
	DescribeSegments(ctx context.Context, r *DescribeSegmentsRequest) (*DescribeSegmentsReply, error)
	// Usage says how much of each segment is held, and by whom, from the lists
	// alone: for who decides what to empty, and for figures.
	Usage(ctx context.Context, r *UsageRequest) (*UsageReply, error)
	// Condemn makes live segments of chunks misses for every Lookup, durably, so
	// that what is held of them can only shrink; every registration made before
	// is stable then. Others are left out of the reply: objects, those that are
	// not known or that are being deleted, what exceeds TransitMax. Condemned
	// ones may be named again. It does nothing while the index is incomplete.
	Condemn(ctx context.Context, r *CondemnRequest) (*CondemnReply, error)
	// Forward records, durably, that slots of condemned segments are copied into
	// a live one, and in the same step makes every disk that holds such a slot
	// hold its copy. From then on a disk that holds the one holds the other,
	// whatever it says of the copy: it says what it needs of the source first, or
	// in the same SetLists. A slot that has a move keeps that one; moves of
	// segments that are gone are passed over, so that the call can be repeated.
	// A segment whose held slots all have moves is forwarded. Errors: ErrGone
	// (the copy's segment), ErrInvalid (it is not live, a source is live, the
	// copy is of another chunk; nothing is recorded).
	Forward(ctx context.Context, r *ForwardRequest) error
	// Forwards walks the moves of all segments that are not gone. The copies they
	// lead to are there for who holds the source. What it tells is durable.
	Forwards(ctx context.Context, r *ForwardsRequest) (*ForwardsReply, error)
	// Reclaim deletes up to Max segments on which nothing is held, whatever their
	// state: a durable tombstone, the fragments, the rows. It does nothing while
	// the index is incomplete (I13).
	Reclaim(ctx context.Context, r *ReclaimRequest) (*ReclaimReply, error)
}

// RegistryNode is the registry: a small key-value store with compare-and-set,
// leases and watches. A data node has one in itself; a pool of several has one
// that all share. Calls fail with ErrUnreachable where it cannot be reached.
type RegistryNode interface {
	// RegistryGet returns a key's value, ErrNotFound without one. It sees every
	// transaction that returned before it began, whoever made it.
	RegistryGet(ctx context.Context, r *RegistryGetRequest) (*RegistryGetReply, error)
	// RegistryList returns keys with a prefix, in order. Errors: ErrCompacted.
	RegistryList(ctx context.Context, r *RegistryListRequest) (*RegistryListReply, error)
	// RegistryCommit applies a transaction if all its guards and compares hold,
	// ErrFenced and ErrConflict otherwise, ErrLeaseLost if a lease has ended. It is
	// durable at return: on this node and in copies on the spindles, or on a majority
	// of the registry's own nodes. Once it is sent, the end of ctx does not end it.
	// ErrOutcome says that it may have been applied or may yet be; ErrUnreachable,
	// ErrFenced, ErrConflict, ErrLeaseLost, ErrNoSpace and ErrInvalid that it was not
	// and will not be; after others RegistryGet tells.
	RegistryCommit(ctx context.Context, r *RegistryTxn) (*RegistryCommitReply, error)
	// RegistryGrant makes a lease. Its holder counts TTL by its own monotonic clock
	// from before it sent the request; the registry counts longer (see
	// LeaseMarginDivisor), and so does one that was closed and opened again or that
	// did not see the lease's beginning: a lease ends late, never early. It survives
	// a restart of the registry.
	RegistryGrant(ctx context.Context, r *RegistryGrantRequest) (*RegistryGrantReply, error)
	// RegistryKeepAlive makes a lease last its TTL again, from before the request was
	// sent. ErrLeaseLost if it has ended; after other errors the lease may last
	// longer, but the holder counts from the last call that returned nil.
	RegistryKeepAlive(ctx context.Context, r *RegistryKeepAliveRequest) error
	// RegistryRevoke ends a lease and deletes the keys under it, in one step or in
	// several; at return they are gone. It may be repeated.
	RegistryRevoke(ctx context.Context, r *RegistryRevokeRequest) error
	// RegistryWatch waits for changes. ErrCompacted says that changes After the
	// revision are forgotten, or that this is another registry: the caller lists
	// again.
	RegistryWatch(ctx context.Context, r *RegistryWatchRequest) (*RegistryWatchReply, error)
}
