// Package logrec encodes the records of a disk's log and chains their MACs.
//
// A disk's log has two streams. The operations stream holds every acknowledged
// operation in order: write, part, zero, trim, and the marks snapshot, resize and
// rollback. The results stream holds what destaging did, [Result], and what
// reclaim moved, [Patch]. Either may have records that say what was done for
// changes that hosts forward, [Done]. Data nodes store records whole; only hosts read them.
//
// # Format
//
// Integers are big-endian. The type is a byte of its own in the data node's
// record header; types below 128 must be understood, others may be skipped.
//
//	type        data
//	1 write     u64 first LBA ‖ u32 chunks ‖ sealed chunks, each of its own length
//	2 part      u64 byte offset ‖ u32 plaintext bytes ‖ sealed part
//	3 zero      u64 byte offset ‖ u64 bytes
//	4 trim      u64 byte offset ‖ u64 bytes
//	5 snapshot  u64 snapshot ‖ u64 group ‖ u64 zero
//	6 resize    u64 bytes
//	7 rollback  u64 snapshot ‖ u64 disk bytes after it ‖ u64 zero
//	16 result   u8 version = 1, 2 with a mark ‖ u8 flags (1: more follow) ‖ u16 zero
//	            ‖ u64 through ‖ 16 MAC at through ‖ u64 generation ‖ u64 disk bytes
//	            ‖ u32 trims ‖ u32 updates
//	            ‖ version 2: u8 mark, 5 or 7 ‖ 7 zero ‖ u64 snapshot
//	            ‖ trims: u64 first LBA ‖ u64 end LBA
//	            ‖ updates: u64 LBA ‖ 16 fingerprint ‖ u64 segment ‖ u16 slot ‖ u32 location
//	17 patch    u8 version = 1 ‖ u8 zero ‖ u16 zero ‖ u32 patches
//	            ‖ patches: u64 LBA ‖ u64 generation ‖ u64 old segment ‖ u16 old slot
//	            ‖ u64 new segment ‖ u16 new slot ‖ u32 new location
//	128 done    u8 version = 1 ‖ 3 zero ‖ u32 changes ‖ u32 owners
//	            ‖ changes: 16 session ‖ u64 number ‖ u64 end
//	            ‖ owners: u64 epoch ‖ u64 position
//
// A zero or trimmed chunk is an update whose fingerprint, segment, slot and
// location are all zero bytes.
//
// # MAC chain
//
// Each record's MAC is keyed BLAKE3, cut to 16 bytes, of the MAC before it in
// its stream ‖ disk ‖ stream ‖ epoch ‖ position ‖ type ‖ the record's data. Of
// the sealed chunks of a write only the bytes that authenticate them count
// (package chunk, Authenticator), so that a chunk is not hashed twice. The
// chain starts with 16 zero bytes and goes on through changes of owner; a data
// node can neither change, drop, insert nor reorder a record unnoticed. It can
// still withhold the newest ones, back to the chain's head in the disk's last
// checkpoint record.
//
// # Bounds
//
// Every count and length is checked against the record's length before it is
// used. A Result of more than [UpdatesMax] updates or trims is cut in several
// records; all but the last say that more follow, and only a whole group moves
// the disk's position. A mark is in the last record of its group. A patch record
// is a step of its own and moves no position of the operations.
package logrec
