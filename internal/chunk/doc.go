// Package chunk turns what a guest writes into sealed chunks and back: it
// splits at chunk borders, tells zeros, fingerprints, compresses and encrypts.
//
// Nouns: a chunk is the dedupe unit, of one [Size] per disk; its fingerprint
// ([Hasher]) is the keyed hash of its plaintext and its only name. A sealed
// chunk is the chunk compressed, then encrypted: the same bytes lie in log,
// segment, cache and replica. A sealed part is a write of part of a chunk, kept
// in the log until it is merged. A sealed unit is a piece of a checkpoint
// object. A [Sealer] seals under the data keys of one host session, an [Opener]
// opens what any session sealed, a [Secret] is a key that cannot be printed.
//
// # Format, version 1
//
// Integers are little-endian. The length is a multiple of 16 (id.Unit).
//
//	 0  u8   version, 1
//	 1  u8   suite (high nibble: 1 AES-256-GCM, 2 AES-256-XTS),
//	         codec (low nibble: 0 raw, 1 S2 block)
//	 2  u16  length of all that is sealed, in units of 16 bytes
//	 4  u32  key id, not 0
//	 8  u32  count of this seal under that key, not 0
//	12  u16  length of the plaintext, minus 1
//	14  u8   kind (high nibble: 1 chunk, 2 part, 3 unit),
//	         zero bytes that pad the payload (low nibble)
//	15  u8   flags, all zero; others are refused
//	16  16B  fingerprint (chunks only)
//	    …    payload: codec(plaintext), padded with zeros to a multiple of 16,
//	         then encrypted
//	    16B  tag (all but XTS chunks)
//
// The codec is S2 where that saves a sixteenth of the plaintext and a unit,
// else raw; units are always raw. The keys of each suite are derived from the
// session's secret (BLAKE3 derive_key, one context each).
//
//	       associated data                    tag
//	GCM    chunk: the 32-byte header          GCM's, nonce: 8 zero bytes, count
//	       part: header, disk, epoch, pos,
//	       byte offset (u64 each)
//	       unit: header, object (24 bytes),
//	       unit number (u64)
//	XTS    part: as above                     chunk: none
//	                                          part: keyed BLAKE3 (16 bytes) of
//	                                          associated data and ciphertext
//
// XTS takes the count as its data unit number. It has no integrity, and a
// chunk's is the fingerprint, verified whenever it is opened; a changed header
// gives another plaintext. Units are GCM in every case.
//
// Byte budget of an incompressible chunk: 48 bytes under GCM (32 header, 16
// tag), 32 under XTS, 1.2 % and 0.8 % of 4 KiB; a compressed one adds 0 to 15
// bytes of padding. Parts and units: 32 bytes and padding.
//
// # Invariants
//
//  1. No two seals share key and count (I8). A count is never reused, a key
//     never seals in two sessions or processes, and a new one replaces it
//     before 2^32 seals. Nothing about a nonce comes from content.
//  2. A sealed chunk says nothing of where it lies (I9).
//  3. No plaintext is returned that did not authenticate: by tag, or under XTS
//     by fingerprint (I14). A chunk is only returned to who asked for its
//     fingerprint.
//  4. No length from outside is used before it is bounded: all that is sealed
//     takes at most SealedBytesMax bytes and opens to at most PlainBytesMax,
//     and a compressed payload to exactly the length in the header.
//
// Concurrency: all methods may be called at once. Nothing here starts a
// goroutine or does I/O; a Sealer waits for its next key and an Opener for
// Keys. Buffers belong to the caller and are not kept.
//
// A crash leaves counts unused. The next session starts under a new key.
//
// Errors: [ErrCorrupt], [ErrUnsupported], [ErrUnknownKey].
//
// It does not detect that an authentic chunk or part was replayed whole: the
// log's MAC chain does, over what [Authenticator] returns. It does not hide
// lengths: how well a chunk compressed shows in its sealed length.
package chunk
