// Package host is the agent: it opens a pool, serves its disks, and does the
// work behind them: destaging, checkpoints, passes, reclaim.
//
// Nouns: the catalog is what the registry says of the pool and its disks. A
// session is one life of the agent, with a data key of its own. An export is a
// disk as NBD serves it, or a snapshot, or a snapshot with its changes since an
// older one. A clone's base is the disk whose lists hold what the clone needs,
// until a pass of its own has stated that.
//
// # The catalog
//
// Registry keys; numbers in keys are 16 hexadecimal digits.
//
//	pool          pool header (package keyring)
//	layouts       stripe layouts (package stripe)
//	next/disk     decimal: the next disk number; next/segment, next/key, next/snap
//	              alike
//	key/N         a session's wrapped data key
//	disk/N        a disk: JSON, see DiskRecord
//	name/NAME     decimal: the disk of that name
//	mover         decimal: the disk in whose name segments are emptied
//	snap/N/NAME   a snapshot of disk N: JSON, see SnapshotRecord
//	group/N       snapshots of several hosts' disks in the making, group/N/HOST what one
//	              of the hosts has done for it, under their leases: JSON
//	epoch/N       decimal: the next epoch of a disk, which may be removed
//	rebuild       which spindles have all they should, and how far others are: JSON, see rebuild.Row
//	restore/HOST  what a host was given of the rebuild and has done, under its lease: JSON,
//	              see rebuild.Work
//	scrub         how far the scrub is: JSON, see scrubRow
//	host/NAME     a host's session, under its lease: JSON, see HostRecord
//	owner/N       who serves a disk, under its lease: JSON
//	want/N        the host that shall serve a disk
//	stated/N      decimal: to which incarnation of the index a disk has stated
//	warden        the host that reclaims, under its lease
//	ckpt/N        a disk's newest checkpoint (package disk)
//
// # Invariants
//
//   - I1: an epoch is claimed by a compare-and-set before the disk is fenced
//     with it. Disk, key and segment numbers are taken the same way.
//   - I6: no reply leaves but under the lease of the host's session, or, of a sole
//     host, while the data node's lock is held. A lease that was lost is never valid
//     again.
//   - I8: a data key is durable, wrapped, before it seals anything.
//   - A disk is opened under an epoch that was claimed together with its owner row,
//     under the host's lease, and replies while that very lease is valid. Only its
//     owner changes its record and its snapshots' rows: its epoch guards them. Rows of a
//     group that an owner has marked for are made by the host that asked, under
//     the same guard, while the owner makes no change.
//   - From the mark of a group of several hosts on, a disk takes no write until the group's
//     row is gone, of which one transaction makes all of its snapshots: so nobody sees
//     what is not in one of them and writes what follows from it to another.
//   - I13: the index is called complete only when every disk of the catalog,
//     those being removed included, has set its lists since its incarnation, whoever
//     had it then.
//   - A row of a snapshot is written when its mark is stable, and a mark that
//     neither a row nor a clone's base names is forgotten, unless its row is
//     being written (package disk: Settled).
//   - The lists of a clone's base are held before the checkpoint is read that the
//     clone begins with, until the record without the base is stable. A removed
//     disk gives nothing up while it is the base of another.
//
// # Concurrency
//
// Open starts goroutines, which Close ends: one destages and makes checkpoints,
// one passes and reclaims, one keeps session and owned disks, with a few that make
// its calls, seven watch what other hosts do and one takes part in groups of snapshots (a sole
// host has none of these), one reads what was hot on disks that come; one has the rebuild, with
// one for each layout that this host goes through, one that counts, and one that watches rows of
// it; the budget of CPU time has another, and so have connections to other hosts' flash (package
// peerflash).
// Methods may be called at once; those that change the catalog take turns
// (changing), longer work before it, such as a checkpoint, excepted. Lock order:
// changing or sweeping, then recordMu or renameMu, then mu; the locks of package
// gate are leaves. Who has sweeping never waits for changing: a change may wait
// for a round, and a round for space.
//
// A crash leaves what disks and data node leave, and at most a disk that is
// marked as being removed, which the next Open goes on removing, and marks of
// snapshots without a row.
//
// Clients of a host that is not sole ask where their disk is (Locate), here or at a
// peer, and are told when that changes (Place.While): package remote has them go on there.
//
// Exports do not change, but for what mu guards: a disk that comes or goes has another
// one, so that whoever has the old one works with a disk that is closed.
//
// Errors: [ErrElsewhere], [ErrNoLease], [ErrExists], [ErrUnknownDisk], [ErrUnknownSnapshot], [ErrInUse],
// [ErrBusy], [ErrTooMany], [ErrInvalid].
package host
