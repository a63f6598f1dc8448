// Package keyring is the built-in key manager: it keeps a pool's keys, wrapped,
// and unwraps them under one root key.
//
// Nouns: the root key ([Root]) stays with the operator, in a file or as a
// passphrase. It wraps the pool secret in the pool header, which the registry
// keeps. A [Pool] is the unwrapped pool secret: purpose keys are derived from
// it, and it wraps the data key of each host session. A [Ring] resolves the key
// ids in sealed headers.
//
//	root key ─wraps→ pool secret ─wraps→ session secrets ─derive→ data keys
//	                      └─derive→ fingerprint key, MAC key of each disk, signing key of peers
//
// # Formats, version 1
//
// Integers are little-endian.
//
// Root key file, mode 0600, one line of text:
//
//	plinth-root-v1 <64 hex digits: key> <8 hex digits: CRC-32C of the line before it>
//
// Wrapped secret, 64 bytes:
//
//	 0  u8   version, 1
//	 1  3B   zero
//	 4  12B  nonce, random
//	16  48B  AES-256-GCM(secret), tag last
//
// Its associated data for a session: purpose "session", pool id, key id (u32);
// for the pool secret: purpose "pool", then the 60 header bytes before it.
//
// Pool header, 128 bytes, kept by the registry:
//
//	  0  8B   "PLNTPOOL"
//	  8  u16  version, 1
//	 10  u16  incompatible features, all zero; others are refused
//	 12  u16  compatible features, all zero; others are ignored
//	 14  u8   root: 1 file, 2 passphrase
//	 15  u8   zero
//	 16  16B  pool id, random
//	 32  28B  parameters of the passphrase, zero for a file:
//	          u8 version (1), u8 threads, u16 zero, u32 passes, u32 memory in
//	          KiB, 16B salt
//	 60  64B  wrapped pool secret
//	124  u32  CRC-32C of the 124 bytes before it
//
// # Invariants
//
//  1. No key appears in an error, a log, a metric or any printed value: keys
//     live in chunk.Secret, or behind it.
//  2. A wrong root key is ErrWrongRoot before anything is written.
//  3. A root key file is never overwritten, never exists half written under
//     its name, and is not used if others than its owner may read or write it.
//  4. A wrapped secret unwraps only in its pool, for its purpose and key id.
//  5. Parameters of a passphrase are bounded before they are used, so that a
//     header costs at most a GiB and some seconds.
//
// Concurrency: values do not change once made; a Ring may be used by many.
// A crash leaves at most a temporary file beside a root key file that was
// being created; nothing refers to it.
//
// Errors: [ErrWrongRoot], [ErrCorrupt], [ErrUnsupported], [ErrPermissions].
//
// It does not store the header or the wrapped session keys (the registry
// does), and it does not make keys durable: a session's wrapped key must be in
// the registry before its first use.
package keyring
