package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/disk"
	"plinth/internal/gate"
	"plinth/internal/id"
	"plinth/internal/ramcache"
)

// DiskInfo describes a disk to people and programs.
type DiskInfo struct {
	Name    string    `json:"name"`
	ID      id.Disk   `json:"id"`
	Bytes   int64     `json:"bytes"`
	Chunk   uint32    `json:"chunk_bytes"`
	Cipher  string    `json:"cipher"`
	Stable  bool      `json:"stable"`
	Created time.Time `json:"created"`
	// State is "ok", "failed", or "elsewhere" for one that another host serves, or
	// none at present; then with the reason.
	State  string   `json:"state"`
	Reason string   `json:"reason,omitempty"`
	Epoch  id.Epoch `json:"epoch"`
	// Clients counts NBD connections.
	Clients int `json:"clients"`
	// LogicalBytes is what is mapped, as of the last pass. Of the sealed chunks
	// behind it and the disk's snapshots, ExclusiveBytes are what no other disk
	// needs, SharedBytes the rest: estimates, from averages of segments. All as of
	// SpaceAt; nil: no pass yet.
	LogicalBytes   int64      `json:"logical_bytes"`
	ExclusiveBytes int64      `json:"exclusive_bytes"`
	SharedBytes    int64      `json:"shared_bytes"`
	SpaceAt        *time.Time `json:"space_at,omitempty"`
	Snapshots      int        `json:"snapshots"`
	// Limits bound what clients may do; Waits is what they have waited for.
	Limits gate.Limits `json:"limits"`
	Waits  gate.Waits  `json:"waits"`
	// CloneOf is the number of the disk that a clone still depends on: its space
	// is given back only when the clone has passed. 0: it depends on none.
	CloneOf id.Disk `json:"clone_of,omitempty"`
	// IndependentSeconds is how long a clone made in this life took to become
	// independent.
	IndependentSeconds float64    `json:"independent_seconds,omitempty"`
	Stats              disk.Stats `json:"stats"`
}

// Status describes the pool.
type Status struct {
	PoolID   string `json:"pool_id"`
	Geometry string `json:"geometry"`
	// Host is this host's name, Hosts are all that have a session.
	Host  string     `json:"host"`
	Hosts []HostInfo `json:"hosts"`
	Disks []DiskInfo `json:"disks"`
	// Node is all data nodes as one, Nodes are they.
	Node  datanode.Status     `json:"node"`
	Nodes []datanode.NodeInfo `json:"nodes"`
	// Spare is what was written while a node was away and is not moved yet: nil but at the
	// host that reclaims, for a pool of two or three nodes.
	Spare    *SpareStatus      `json:"spare,omitempty"`
	Space    SpaceStatus       `json:"space"`
	CPU      CPUStatus         `json:"cpu"`
	Warnings []string          `json:"warnings,omitempty"`
	Repairs  map[string]uint64 `json:"repairs"`
	// SlowSpindles take far longer than the others: this host's reads go around them.
	SlowSpindles []id.Spindle `json:"slow_spindles,omitempty"`
	// Draining are spindles that are being emptied.
	Draining []DrainingSpindle `json:"draining_spindles,omitempty"`
	// Rebalance is there while one is under way.
	Rebalance *RebalanceStatus `json:"rebalance,omitempty"`
	Scrub     ScrubStatus      `json:"scrub"`
	Rebuild   RebuildStatus    `json:"rebuild"`
	// RehomedBytes counts sealed chunks that this host has moved from data nodes that are
	// drained.
	RehomedBytes int64 `json:"rehomed_bytes"`
	// Flash is nil where no flash cache is asked for.
	Flash *FlashStatus `json:"flash,omitempty"`
	// Lending is nil of a host that has nothing to do with others' flash caches.
	Lending  *LendingStatus `json:"lending,omitempty"`
	RAMCache ramcache.Stats `json:"ram_cache"`
}

// SpareStatus is what lies so that a node's loss is its loss.
type SpareStatus struct {
	Segments int64     `json:"segments"`
	At       time.Time `json:"at"` // when this host looked
}

// HostInfo describes a host that has a session.
type HostInfo struct {
	Name  string    `json:"name"`
	Began time.Time `json:"began"` // the session
	// Warden: it empties segments for the pool.
	Warden bool `json:"warden,omitempty"`
	Disks  int  `json:"disks"` // that it serves
}

// hosts describes all hosts that have a session, in the order of their names.
func (h *Host) hosts(ctx context.Context) ([]HostInfo, error) {
	out := []HostInfo{}
	all, err := h.catalog.hosts(ctx, hostPrefix)
	if err != nil {
		return out, err
	}
	warden, _, err := h.catalog.get(ctx, keyWarden)
	serve := make(map[string]int)
	h.mu.Lock()
	for d, e := range h.byID {
		if e.claimed != 0 {
			serve[h.opts.Name]++
		} else {
			serve[h.owners[d].host]++
		}
	}
	h.mu.Unlock()
	for _, r := range all {
		out = append(out, HostInfo{r.name, r.Began, r.name == string(warden), serve[r.name]})
	}
	return out, err
}

// SpaceStatus is where the bytes go.
type SpaceStatus struct {
	// LogicalBytes is what disks map, as of their last pass.
	LogicalBytes int64 `json:"logical_bytes"`
	// UniqueBytes is the same after deduplication, CompressedBytes after
	// compression and sealing, StoredBytes with parity, headers and checkpoints:
	// the sum of the allocated fragments.
	UniqueBytes     int64 `json:"unique_bytes"`
	CompressedBytes int64 `json:"compressed_bytes"`
	StoredBytes     int64 `json:"stored_bytes"`
	CheckpointBytes int64 `json:"checkpoint_bytes"`
	CapacityBytes   int64 `json:"capacity_bytes"`
	// FreeBytes is what new writes can still be promised, parity included.
	FreeBytes int64 `json:"free_bytes"`
	// BufferedBytes is acknowledged and not yet destaged, at its worst case.
	BufferedBytes int64 `json:"buffered_bytes"`
}

// info describes a disk.
func (h *Host) info(e *export) *DiskInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &DiskInfo{
		Name: e.now.Name, ID: e.rec.ID, Bytes: e.rec.Bytes, Chunk: e.rec.Chunk, Cipher: e.rec.Cipher,
		Stable: e.rec.Stable, Created: e.rec.Created, State: "ok", Clients: e.clients, LogicalBytes: e.logical,
		ExclusiveBytes: e.stored.exclusive, SharedBytes: e.stored.shared,
		Limits: e.now.limits(), Waits: e.door.Waits(),
		Snapshots: len(e.snaps), IndependentSeconds: e.independent.Seconds(),
	}
	if at := e.passedAt; !at.IsZero() {
		out.SpaceAt = &at
	}
	if c := h.clones[e.rec.ID]; c != nil {
		out.CloneOf = c.base.Disk
	}
	err := e.err
	if e.disk != nil {
		out.Bytes, out.Epoch, out.Stats = e.disk.Size(), e.disk.Epoch(), e.disk.Stats()
		err = e.disk.Err()
	}
	if err != nil {
		out.State, out.Reason = "failed", err.Error()
		if errors.Is(err, ErrElsewhere) {
			out.State = "elsewhere"
		}
	}
	return out
}

// Disks describes all disks in the order of their names.
func (h *Host) Disks() []DiskInfo {
	out := []DiskInfo{}
	for _, e := range h.exports() {
		out = append(out, *h.info(e))
	}
	return out
}

// Disk describes one disk. Errors: ErrUnknownDisk.
func (h *Host) Disk(name string) (*DiskInfo, error) {
	h.mu.Lock()
	e := h.byName[name]
	h.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("disk %q: %w", name, ErrUnknownDisk)
	}
	return h.info(e), nil
}

// Status describes the pool, with a warning for whatever an operator should see
// to.
func (h *Host) Status(ctx context.Context) (*Status, error) {
	node, err := h.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	s := &Status{
		PoolID: h.keys.ID().String(), Host: h.opts.Name, Hosts: []HostInfo{}, Geometry: h.layouts().Geometry.String(), Disks: h.Disks(), Node: *node, CPU: h.CPU(),
		Repairs: map[string]uint64{
			"ranges_reconstructed": h.pool.Stripes.Reconstructed(), "fragments_rewritten": h.pool.Stripes.Repaired(),
			"ranges_read_around": h.pool.Stripes.ReadAround(),
		},
	}
	s.RAMCache, s.RehomedBytes = h.ram.Stats(), h.rehomed.Load()
	s.Lending = h.lendingStatus()
	s.Scrub, s.Rebuild = h.scrubStatus(node), h.rebuildStatus()
	if s.Nodes, err = h.nodes(ctx, node); err != nil {
		s.Nodes = []datanode.NodeInfo{}
		s.Warnings = append(s.Warnings, "which data nodes there are is not known: "+err.Error())
	}
	s.Warnings = append(s.Warnings, h.nodeWarnings(s.Nodes)...)
	if s.Spare = h.spareStatus(); s.Spare != nil && s.Spare.Segments > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d segments were written while a data node was away, and are lost with another one: they are moved while all nodes answer", s.Spare.Segments))
	}
	if s.Hosts, err = h.hosts(ctx); err != nil {
		s.Warnings = append(s.Warnings, "which hosts there are is not known: "+err.Error())
	}
	s.Space = SpaceStatus{
		UniqueBytes: node.Index.PlainBytes, CompressedBytes: node.Index.SealedBytes,
		CheckpointBytes: node.Index.ObjectBytes, FreeBytes: node.FreeBytes, BufferedBytes: h.pool.Space.Charged(),
	}
	for _, sp := range node.Spindles {
		s.Space.StoredBytes += sp.AllocatedBytes
		s.Space.CapacityBytes += sp.CapacityBytes
		if sp.State != datanode.SpindleOK && !ofSilent(s.Nodes, sp.Spindle) {
			s.Warnings = append(s.Warnings, fmt.Sprintf("spindle %d (%s) is %s: %s", sp.Spindle, sp.Path, sp.State, sp.Reason))
		}
	}
	for _, sp := range h.pool.Stripes.Slow() {
		s.SlowSpindles = append(s.SlowSpindles, sp)
		s.Warnings = append(s.Warnings, fmt.Sprintf("spindle %d takes far longer than the others: reads go around it", sp))
	}
	h.avoidDraining(node.Spindles)
	s.Draining = h.drainingStatus(ctx)
	for i := range s.Draining {
		s.Warnings = append(s.Warnings, s.Draining[i].warning())
	}
	s.Rebalance = h.rebalanceStatus(ctx, s.Nodes)
	s.Warnings = slices.Concat(s.Warnings, s.Rebalance.warnings(), s.Rebuild.warnings(), s.Scrub.warnings())
	for _, d := range s.Disks {
		s.Space.LogicalBytes += d.LogicalBytes
		if d.State == "failed" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("disk %s: %s", d.Name, d.Reason))
		}
	}
	s.Warnings = append(s.Warnings, h.lostSnapshots()...)
	if s.Flash = h.flashStatus(); s.Flash != nil && s.Flash.Failure != "" {
		s.Warnings = append(s.Warnings, fmt.Sprintf("flash cache %s is off: %s", s.Flash.Path, s.Flash.Failure))
	}
	if !node.Index.Complete {
		s.Warnings = append(s.Warnings, "the index is incomplete: nothing is reclaimed until every disk has passed")
	}
	return s, nil
}

// lostSnapshots says which disks have snapshots whose marks were lost with the log.
func (h *Host) lostSnapshots() (out []string) {
	for _, e := range h.exports() {
		h.mu.Lock()
		n := 0
		for _, s := range e.snaps {
			if s.lost {
				n++
			}
		}
		if n > 0 {
			out = append(out, fmt.Sprintf("disk %s: %d snapshots are lost with the log: remove them", e.now.Name, n))
		}
		h.mu.Unlock()
	}
	return out
}

// stored is what the spindles have of a disk: sealed bytes.
type stored struct{ exclusive, shared int64 }

// account notes what the spindles have of each disk, given what all of them hold
// of every segment. A segment's bytes are shared out by its slots.
func (h *Host) account(segments []datanode.SegmentUse) {
	sums := make(map[id.Disk]stored)
	for _, s := range segments {
		if s.Slots == 0 || s.Kind == datanode.KindObject {
			continue
		}
		for _, d := range s.Disks {
			sum := sums[d.Disk]
			exclusive := s.SealedBytes * int64(d.Exclusive) / int64(s.Slots)
			sum.exclusive += exclusive
			sum.shared += s.SealedBytes*int64(d.Slots)/int64(s.Slots) - exclusive
			sums[d.Disk] = sum
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for d, e := range h.byID {
		e.stored = sums[d]
	}
}
