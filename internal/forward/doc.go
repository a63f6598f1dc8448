// Package forward serves clients of a disk that another host owns, and goes on
// serving them while the disk moves between hosts, this one included.
//
// Nouns: the place of a disk is where it is served now ([Place]): in this process,
// or by another host, a peer, at an address. A [Device] is one client's view of the
// disk: it sends each request to the disk's place. A session is the life of one
// Device; [Exports] is what a host serves to sessions of its peers.
//
// # What a client sees
//
// A request whose place is gone is sent again to the next one, until its context
// ends. So a move, or the death of a host, is a pause and not an error. A change is
// carried out once all the same (invariant 4), or else a client that shares the disk
// might see its effect come, and another write over it, and come again.
//
// # Invariants
//
//  1. When a request is sent again, the copy sent before will never be carried out
//     after it. Where the old place's log is fenced this is the fence's doing. Where
//     the session comes back to the same host, [Exports] refuses what arrives on
//     the session's older connections and waits for what it has begun, before it
//     lets the new one in. A request that its client has given up is such a copy too:
//     what follows it goes by a new connection. This is so within a session: what a
//     host that died had sent is carried out as what any client that died had.
//  2. Exports serves disks of this process only, and never looks for a place: a
//     peer's request can not go round in circles, and an old copy of it can not
//     follow a disk that has left and come back.
//  3. Nothing is sent to, or taken from, a peer that has not proved that it has the
//     pool's root key (TLS): what is forwarded is plaintext.
//  4. A change is done once, between hosts of version 2. The first time that it goes to a
//     peer it gets a number (id.Tag), in the cookies of its requests; the disk's log has
//     that, so that the disk knows at any owner how far it is done (Once). Of what a place
//     in this process has begun, the next place says whether the log has it
//     (Once.Carried). ResendTimeMax bounds for how long disks have to know.
//
// # Versions
//
// A host's certificate says which versions of this protocol it speaks, and each end refuses one
// that has none in common with it; the client names the highest common one with the
// export: 2/SESSION/EXPORT. A host of version 1 knows no numbers, and gets none.
//
// # The proof
//
// Each host derives the same signing key from the pool secret (package keyring),
// and signs with it a certificate of its own that lives as long as the process.
// A peer's certificate counts if that key has signed it, at both ends, with TLS
// 1.3. A data node, and whoever keeps the authority of the data nodes'
// certificates, does not have the key. Certificates do not expire: a host that must
// not be a peer any more has the root key, which is then to be changed.
//
// Connections between hosts with this proof carry chunks of flash caches, too: package
// peerflash.
//
// Concurrency: all methods may be called at once. A Device has no goroutines of its
// own but its connection's. A crash leaves nothing.
//
// Errors: those of the place, and of the context where there was none in time.
package forward
