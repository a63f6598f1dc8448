// Package host is the agent: it opens a pool, serves its disks, and does the
// work behind them: destaging, checkpoints, passes, reclaim.
//
// Nouns: the catalog is what the registry says of the pool and its disks. A
// session is one life of the agent, with a data key of its own. An export is a
// disk as NBD serves it.
//
// # The catalog
//
// Registry keys; numbers in keys are 16 hexadecimal digits.
//
//	pool          pool header (package keyring)
//	layouts       stripe layouts (package stripe)
//	next/disk     decimal: the next disk number; next/segment, next/key alike
//	key/N         a session's wrapped data key
//	disk/N        a disk: JSON, see DiskRecord
//	name/NAME     decimal: the disk of that name
//	epoch/N       decimal: the next epoch of a disk, which may be removed
//	ckpt/N        a disk's newest checkpoint (package disk)
//
// # Invariants
//
//   - I1: an epoch is claimed by a compare-and-set before the disk is fenced
//     with it. Disk, key and segment numbers are taken the same way.
//   - I8: a data key is durable, wrapped, before it seals anything.
//   - I13: the index is called complete only when every disk of the catalog,
//     those being removed included, has set its lists since its incarnation.
//
// # Concurrency
//
// Open starts two goroutines, which Close ends: one destages and makes
// checkpoints, one passes and reclaims. Methods may be called at once; those
// that change the catalog take turns.
//
// A crash leaves what disks and data node leave, and at most a disk that is
// marked as being removed, which the next Open goes on removing.
//
// Errors: [ErrExists], [ErrUnknownDisk], [ErrInUse], [ErrInvalid].
package host
