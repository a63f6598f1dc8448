package chunk

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"sync"
)

// The contexts that separate the keys derived from a session's secret.
const (
	contextGCM = "plinth v1 session key: aes-256-gcm"
	contextXTS = "plinth v1 session key: aes-256-xts"
	contextTag = "plinth v1 session key: blake3 tag of xts parts"
)

// ciphers is a session's secret, expanded for each suite. Safe for concurrent
// use.
type ciphers struct {
	gcm  cipher.AEAD
	xts  *xts
	tags *Hasher
}

func newCiphers(s *Secret) *ciphers {
	var gcm, tag [32]byte
	var both [xtsKeyBytes]byte
	s.Derive(gcm[:], contextGCM)
	s.Derive(both[:], contextXTS)
	s.Derive(tag[:], contextTag)
	aead, err := cipher.NewGCM(newAES(gcm[:]))
	if err != nil {
		panic(err) // AES has the block size that GCM wants
	}
	return &ciphers{gcm: aead, xts: newXTS(&both), tags: newHasher(tag)}
}

// scratch holds what would otherwise be allocated for each seal and open.
type scratch struct {
	nonce   [12]byte
	ad      [headerBytes + adBytes]byte
	tweaks  [tweakBytes]byte
	payload [PlainBytesMax]byte // compressed and decrypted; smaller than the plaintext
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// prepare returns nonce and associated data of the sealed thing that starts
// with b. Both are valid until the scratch is used again.
func (sc *scratch) prepare(h *Header, b []byte, ad *[adBytes]byte) (nonce, data []byte) {
	binary.LittleEndian.PutUint32(sc.nonce[8:], h.Counter) // the first 8 bytes stay zero
	if h.Kind == KindChunk {
		return sc.nonce[:], b[:chunkHeaderBytes]
	}
	copy(sc.ad[:], b[:headerBytes])
	copy(sc.ad[headerBytes:], ad[:])
	return sc.nonce[:], sc.ad[:]
}

// encrypt turns the payload of b, which has its header, into ciphertext in
// place and appends the tag where the suite and kind have one.
func (c *ciphers) encrypt(sc *scratch, h *Header, b []byte, ad *[adBytes]byte) {
	nonce, data := sc.prepare(h, b, ad)
	payload := b[h.bytes() : h.bytes()+h.payload()]
	if h.Suite == AES256GCM {
		c.gcm.Seal(payload[:0], nonce, payload, data)
		return
	}
	c.xts.encrypt(payload, payload, uint64(h.Counter), &sc.tweaks)
	if h.tag() != 0 {
		tag := c.tags.sum(data, payload)
		copy(b[h.Len-tagBytes:], tag[:])
	}
}

// decrypt writes the payload to dst, which has its length and does not overlap
// sealed, and reports whether the tag was right. An XTS chunk has none: its
// caller verifies the fingerprint.
func (c *ciphers) decrypt(sc *scratch, dst []byte, h *Header, sealed []byte, ad *[adBytes]byte) bool {
	nonce, data := sc.prepare(h, sealed, ad)
	body := sealed[h.bytes():]
	if h.Suite == AES256GCM {
		_, err := c.gcm.Open(dst[:0], nonce, body, data)
		return err == nil
	}
	payload := body[:h.payload()]
	if h.tag() != 0 {
		tag := c.tags.sum(data, payload)
		if subtle.ConstantTimeCompare(tag[:], body[len(payload):]) != 1 {
			return false
		}
	}
	c.xts.decrypt(dst, payload, uint64(h.Counter), &sc.tweaks)
	return true
}
