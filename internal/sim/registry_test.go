package sim

import (
	"slices"
	"time"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/logset"
	"plinth/internal/owner"
)

// registry compares and sets, with leases. It is in node 0, or outside of all nodes.
type registry struct {
	w        *world
	at       *place
	inNode   bool
	rate     float64
	revision uint64

	leases map[datanode.LeaseID]time.Duration // when they end
	owners [disksMax + 2]ownerKey
	epochs [disksMax + 2]epochKey
	rows   [disksMax + 1]row
	ckpts  [disksMax + 1]ckptRow
	disks  [disksMax + 1]diskRow
	snaps  map[id.Snapshot]id.Disk
	newest id.Disk // the last number of a disk
}

type ownerKey struct {
	host  string
	lease datanode.LeaseID
	epoch id.Epoch
}

type epochKey struct {
	newest id.Epoch
	at     uint64
}

type row struct {
	row logset.Row
	at  uint64
}

// ckptRow names a checkpoint, which a clone sees as a snapshot of it until it has its own.
type ckptRow struct {
	at      uint64
	object  id.Segment
	result  id.Pos
	cloneOf id.Snapshot
}

// diskRow is a disk; base is what a clone needs of another one, until its first pass.
type diskRow struct {
	there, removed bool
	base           id.Disk
	baseSnap       id.Snapshot
}

func newRegistry(w *world) *registry {
	r := &registry{w: w, leases: make(map[datanode.LeaseID]time.Duration), snaps: make(map[id.Snapshot]id.Disk), rate: w.drift()}
	if r.inNode = w.Rand.IntN(2) == 0; r.inNode {
		r.at = &w.nodes[0].place
	} else {
		r.at = &place{}
	}
	return r
}

// guard refuses who does not own a disk any more.
func (r *registry) guard(d id.Disk, e id.Epoch) error {
	if r.inNode && e < r.w.nodes[0].logs[d].epoch || !r.inNode && e != r.epochs[d].newest {
		return errFenced
	}
	return nil
}

func (r *registry) grant() datanode.LeaseID {
	lease := datanode.LeaseID(r.w.Rand.Uint64()>>1 + 1)
	r.lasts(lease)
	return lease
}

// lasts makes a lease last its time, by the registry's clock.
func (r *registry) lasts(lease datanode.LeaseID) {
	span := time.Duration(float64(leaseTTL) * (1 + 1.0/datanode.LeaseMarginDivisor) / r.rate)
	end := r.w.Now + span
	r.leases[lease] = end
	r.w.After(span, func() {
		if r.leases[lease] != end {
			return
		}
		delete(r.leases, lease)
		for d := range r.owners {
			if r.owners[d].lease == lease {
				r.w.count.Expired++
				r.disown(id.Disk(d))
			}
		}
	})
}

func (r *registry) disown(d id.Disk) {
	r.owners[d] = ownerKey{}
	for _, h := range r.w.hosts {
		if !h.lost(r.at, 1) {
			h.later(r.w.delay(), func() { h.step(owner.Vanished{Disk: d}) })
		}
	}
}

// claim gives a disk that nobody owns to a host, under the epoch after the newest.
func (r *registry) claim(h string, a owner.Action) owner.Outcome {
	if _, lasts := r.leases[a.Lease]; !lasts {
		return owner.Lost
	}
	if r.owners[a.Disk] != (ownerKey{}) || r.epochs[a.Disk].at != a.EpochAt || !r.disks[a.Disk].there {
		return owner.Refused
	}
	r.own(a.Disk, ownerKey{h, a.Lease, a.Epoch})
	return owner.Done
}

func (r *registry) own(d id.Disk, k ownerKey) {
	r.revision++
	r.owners[d], r.epochs[d] = k, epochKey{k.epoch, r.revision}
}

// renew gives the owner of a disk the next epoch.
func (r *registry) renew(d id.Disk, k ownerKey) (id.Epoch, error) {
	if r.owners[d] != k {
		return 0, errConflict
	}
	k.epoch = r.epochs[d].newest + 1
	r.own(d, k)
	return k.epoch, nil
}

func (r *registry) commitRow(d id.Disk, e id.Epoch, a logset.Action) (uint64, error) {
	if err := r.guard(d, e); err != nil {
		return 0, err
	}
	if r.rows[d].at != a.At {
		return 0, errConflict
	}
	r.revision++
	r.rows[d] = row{slices.Clone(a.Row), r.revision}
	return r.revision, nil
}

// checkpoint names a disk's newest one.
func (r *registry) checkpoint(d id.Disk, e id.Epoch, c ckptRow) (uint64, error) {
	if r.w.flaw != reusedAfterFence {
		if err := r.guard(d, e); err != nil {
			return 0, err
		}
		if r.ckpts[d].at != c.at {
			return 0, errConflict
		}
	}
	r.revision++
	c.at = r.revision
	r.ckpts[d] = c
	return c.at, nil
}

// snapshot names one that is in its disk's log.
func (r *registry) snapshot(d id.Disk, e id.Epoch, s id.Snapshot) error {
	err := r.guard(d, e)
	if err == nil && r.snaps[s] == 0 {
		r.snaps[s] = d
	}
	return err
}

// drop removes a snapshot that no clone begins with.
func (r *registry) drop(s id.Snapshot) error {
	for d := range r.disks {
		if r.disks[d].there && r.disks[d].baseSnap == s {
			return errConflict
		}
	}
	delete(r.snaps, s)
	return nil
}

// clone makes a disk that begins as a snapshot of another, with its checkpoint.
func (r *registry) clone(d id.Disk, e id.Epoch, s id.Snapshot, parent ckptRow) (id.Disk, error) {
	if err := r.guard(d, e); err != nil {
		return 0, err
	}
	if r.snaps[s] != d || r.ckpts[d].at != parent.at || r.newest == disksMax || r.disks[d].removed {
		return 0, errConflict
	}
	r.newest++
	r.revision++
	n := r.newest
	r.disks[n] = diskRow{there: true, base: d, baseSnap: s}
	r.ckpts[n] = ckptRow{at: r.revision, object: parent.object, cloneOf: s}
	r.w.truth[n].begin(r.w.truth[d].snaps[s])
	r.w.count.Clones++
	return n, nil
}

// independent says that a clone's lists name all that it needs.
func (r *registry) independent(d id.Disk, e id.Epoch) error {
	err := r.guard(d, e)
	if err == nil {
		r.disks[d].base, r.disks[d].baseSnap = 0, 0
	}
	return err
}

// bases returns the disks that begin with one.
func (r *registry) bases(d id.Disk) (of []id.Disk) {
	for n := range r.disks {
		if r.disks[n].there && r.disks[n].base == d {
			of = append(of, id.Disk(n))
		}
	}
	return of
}

// remove ends a disk that its owner has, and gives who lets go of what it holds an
// epoch.
func (r *registry) remove(d id.Disk, k ownerKey) (id.Epoch, error) {
	if r.owners[d] != k || r.disks[d].base != 0 || len(r.bases(d)) > 0 || r.w.live() <= diskFirst {
		return 0, errConflict
	}
	k.epoch = r.epochs[d].newest + 1
	r.own(d, k)
	r.disks[d].removed = true
	for s, of := range r.snaps {
		if of == d {
			delete(r.snaps, s) // order does not matter
		}
	}
	r.ckpts[d] = ckptRow{}
	r.w.truth[d].removed = true
	return k.epoch, nil
}

// inherit gives what is left of a removed disk to a host, if no other one has it.
func (r *registry) inherit(h string, lease datanode.LeaseID, d id.Disk) (id.Epoch, error) {
	_, lasts := r.leases[lease]
	if !lasts || !r.disks[d].there || !r.disks[d].removed || r.owners[d] != (ownerKey{}) && r.owners[d].lease != lease {
		return 0, errConflict
	}
	e := r.epochs[d].newest + 1
	r.own(d, ownerKey{h, lease, e})
	return e, nil
}

// gone forgets a removed disk of which nothing is left.
func (r *registry) goneFor(d id.Disk, e id.Epoch) error {
	if r.epochs[d].newest != e {
		return errFenced
	}
	r.disks[d] = diskRow{}
	r.owners[d] = ownerKey{}
	r.w.count.Removed++
	return nil
}

// mover gives who reclaims an epoch.
func (r *registry) mover() id.Epoch {
	r.epochs[moverDisk].newest++
	return r.epochs[moverDisk].newest
}

// exists returns the snapshots of a disk that there are, or that clones begin with.
func (r *registry) exists(d id.Disk) map[id.Snapshot]bool {
	all := make(map[id.Snapshot]bool)
	for s, of := range r.snaps {
		if of == d {
			all[s] = true
		}
	}
	for n := range r.disks {
		if r.disks[n].there && r.disks[n].base == d {
			all[r.disks[n].baseSnap] = true
		}
	}
	return all
}
