// Package crash holds the tests that end plinth at the worst moments and look at
// what is left. It has no code but tests.
//
// Nouns: a sector is an aligned run of 512 bytes that says which write it is of
// (its number, its place, a checksum). An oracle knows what each sector of a
// disk may hold. A life is one process, or one opening, from start to death.
//
//   - TestCrashKill: SIGKILL of the real program under load over NBD, at random
//     moments and at the named points of package failpoint. Every acknowledged
//     write is there.
//   - TestCrashSnapshots: the same while snapshots and clones come and go, disks
//     are rolled back, and space is reclaimed. What was acknowledged is there and
//     holds what it must, and at the end nothing is left over.
//   - TestCrashLoss: SIGKILL, then the host's directory is lost; then the index
//     and two spindles, and plinth recover brings all disks back.
//   - TestSimPowerLoss: data node and host in memory lose what they have not
//     synced. What survives of a disk is a prefix of its log with everything
//     that was flushed or written with FUA.
//
// docs/design/crash.md has figures and the longer runs.
package crash
