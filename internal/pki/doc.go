// Package pki is the cluster's identities: an authority of its own, a certificate
// for each host, data node and admin, and mutual TLS 1.3 between them.
//
// Nouns: a [Member] is a host, data node or admin of a cluster, known by the one URI
// of its certificate, plinth://CLUSTER/ROLE/NAME; CLUSTER is the pool's id. An
// [Authority] makes certificates and takes them back. The trust document says whom
// members believe: one authority, or two while one replaces the other, and what is
// revoked; each of its authorities signs it, so that anybody may pass it on. An
// [Identity] is a member's key, certificate and trust document, in a folder. A
// [Token] lets one machine become a member.
//
//	authority ─signs→ certificates of members (30 days, renewed after 20)
//	         └─signs→ trust document ─fetched once a minute→ members
//
// # Files, version 1, in a folder of mode 0700 (docs/format/cluster.md)
//
//	identity.pem    private key and certificate
//	trust           the trust document
//	member.json     where the authority is
//	joining.pem     the key of a join that has not ended
//	authority.json  where the authority is: its keys, members, tokens, revocations
//	lock            who writes locks it (flock)
//
// # Invariants
//
//  1. A private key of a member never leaves its folder.
//  2. No secret of a token crosses the network: the joiner believes the server by
//     the authority's fingerprint in the token, and proves the secret by an HMAC
//     over its request and a value exported from that one TLS connection.
//  3. A token makes a certificate for one key. The same key may ask again while the
//     token has not expired; it gets the same certificate.
//  4. A member takes a trust document only if it is newer than its own and signed by
//     an authority that its own names.
//  5. What a trust document says is durable at the authority before any member can
//     see it. Its number is at least the time, so that an authority put back from a
//     copy is still ahead of its members.
//  6. A step of a change of authority that could lock out a member waits until that
//     member's own requests show that it cannot (rotate.go).
//  7. Files are replaced whole, under the folder's lock.
//  8. What comes from outside is bounded in bytes, time and number before it is
//     looked at: frames by net/http, documents by the constants here.
//
// Concurrency: values of all exported types may be used by many; several processes
// may use one folder. Load starts nothing, [Identity.Keep] runs until its context
// ends, Serve too. Lock order: the folder's lock, then Identity.mu.
//
// A crash leaves old files or new ones, and perhaps temporary files, which whoever
// writes next takes away. Init and Join go on where they were interrupted.
//
// Clocks may differ by five minutes: certificates begin that long before they are
// made. What holds of a revocation is an authority's time alone.
//
// It does not decide what a role may do (servers do, by [Identity.ServerConfig] and
// [PeerOf]), knows no keys of data, and no registry: the authority's state moves
// there when there is one for several nodes.
package pki
