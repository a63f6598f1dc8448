// Package writelog is the log of a data node: it acknowledges writes. One
// physical log holds the streams of all disks, so that one fdatasync serves
// many waiters. [Log] implements datanode.LogNode.
//
// Nouns: a slot is one preallocated file of the log. A file is one use of a
// slot, numbered by its sequence; the head is the newest. A frame is a framed
// record, or a control frame: fence, trim, drop, snapshot, mark. A record is
// live from its append to its trim. A file is pinned while it holds live
// records. Docs: docs/format/log.md has the bytes.
//
// # Invariants
//
//   - W1: A file begins with a snapshot: every disk's epoch and positions, and
//     which older files are pinned and how far each is valid. Only those files,
//     the snapshot and what follows it are needed after a crash.
//   - W2: When a file begins, all but the one before it is stable, the snapshot
//     of that one included; a sync makes stable first that one, then the new one.
//     So only the two newest files can be torn, and a frame that tells that some
//     of the newest is stable proves the whole of the other.
//   - W3: A slot is used again only if the head's snapshot, which is stable then,
//     does not name it. So until the head and the file before it are stable,
//     nothing is lost that the latter's snapshot names.
//   - W4: At most slots-2 files are pinned. So there is always a slot for a new
//     head, and trims and fences work in a log that is full.
//   - W5: A frame counts only with its file's salt, which is drawn anew for each
//     use of a slot: old bytes of a slot never look valid.
//   - W6: Operations, marks among them, pin one file less than all that may be:
//     only a result gives them up, and it finds that file once the results before
//     it are given up, also in a new file after a crash.
//
// # What a crash leaves
//
// Open reads the newest file whose snapshot is whole, then the files it names. If
// the file before it is torn, and nothing proves that it was stable, nothing of the
// newest was: it is passed over, and the torn one taken for the newest. Every frame tells how many bytes of its file were stable when it was written,
// and a mark follows each sync to tell it. A bad frame that some later frame
// proves to have been stable is damage: Open fails with ErrCorrupt and names
// file and offset. A bad frame without such proof is the torn tail: it is cut
// there, once, because Open goes on in a new file.
//
// # Concurrency
//
// All methods may be called concurrently. Lock order: life, writing, mu. One
// goroutine starts syncs when much is unsynced; Close ends it.
//
// # Errors
//
// *datanode.Error from the contract's methods. After the first failed write or
// sync every method that changes or syncs returns ErrDead; reads go on.
//
// # What it does not do
//
// It does not copy aside the records of an idle disk that pin an old file, does
// not change the size of an existing log, and knows no replicas.
package writelog
