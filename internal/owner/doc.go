// Package owner decides which disks a host may serve, and when. It does no I/O:
// events go in, actions come out, and whoever does the I/O, or a simulation, carries
// them out and reports what came of it.
//
// A host has one lease, its session. It owns a disk while the disk's owner key is
// in the registry under that lease. To take a disk that nobody owns it claims: one
// transaction compares that there is no owner key and that the disk's epoch is still
// what was read, and puts the owner key and the next epoch. Then it fences every
// data node, makes the members of the log equal (I5), and serves. A disk that
// another host owns is asked for, or waited for until that host's lease has ended:
// the registry deletes the owner key then.
//
// # Invariants
//
//  1. A reply leaves only while MayReply: the disk is served and the session is
//     valid by this host's monotonic clock, counted from before the request that
//     made it so was sent (I6). The clock counts while the machine is suspended.
//  2. At most one host may reply for a disk at any time: an owner key exists for
//     longer than its host counts, and a claim compares that there is none.
//  3. What is served was fenced with an epoch above every earlier one (I1, I5).
//  4. A session that was lost is never taken up again: its disks are stopped and
//     claimed anew, under another lease.
//  5. A claim or a release in doubt is looked up before anything else is done with
//     the disk. An owner key of this host's session, under an epoch that it does not
//     serve, is deleted, never served: the epoch is fenced by none.
//
// Events may come late, twice or in another order; each names what it answers, and
// one that answers nothing that is under way does nothing.
//
// Concurrency: none; one goroutine owns a Machine.
package owner
