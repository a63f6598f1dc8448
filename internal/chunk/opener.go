package chunk

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"

	"plinth/internal/id"
)

// Keys resolves the key ids that sealed headers name. Key may block, is called
// concurrently, and returns an error that wraps ErrUnknownKey exactly when the
// pool has no such key.
type Keys interface {
	Key(id.Key) (*Secret, error)
}

// OpenerOptions tunes an Opener. The zero value is right.
type OpenerOptions struct {
	// Verify computes the fingerprint of every chunk opened. Without it this is
	// done under AES256XTS only; under AES256GCM the tag already proves that the
	// host which sealed the chunk put this plaintext under this fingerprint.
	Verify bool
}

// openerKeysMax bounds the expanded keys that an Opener keeps: about 4 KiB
// each, and every session and roll of any host adds one.
const openerKeysMax = 1024

// Opener decrypts what any session of the pool has sealed. It is safe for
// concurrent use and starts no goroutine.
type Opener struct {
	keys   Keys
	hasher *Hasher
	opts   OpenerOptions

	mu       sync.RWMutex
	expanded map[id.Key]*ciphers // at most openerKeysMax
}

// NewOpener returns an opener that asks keys for each key once while it is
// kept, and verifies fingerprints by hasher.
func NewOpener(keys Keys, hasher *Hasher, opts OpenerOptions) *Opener {
	return &Opener{keys: keys, hasher: hasher, opts: opts, expanded: make(map[id.Key]*ciphers)}
}

// OpenChunk decrypts, decompresses and verifies one sealed chunk, and appends
// its plaintext to dst, which does not overlap sealed. Fp is the fingerprint of
// the chunk that the caller wants: a data node that swaps sealed chunks is
// found out here. Who wants whatever is there passes the header's. Sealed is
// not changed or kept. It blocks only for Keys and allocates nothing when dst
// has room for the plaintext.
//
// Errors: ErrCorrupt, ErrUnsupported, ErrUnknownKey, and those of Keys. The
// bytes behind dst's length are then unspecified.
func (o *Opener) OpenChunk(dst, sealed []byte, fp id.Fingerprint) ([]byte, error) {
	out, err := o.openChunk(dst, sealed, fp)
	if err != nil {
		return nil, fmt.Errorf("open chunk %s: %w", fp, err)
	}
	return out, nil
}

func (o *Opener) openChunk(dst, sealed []byte, fp id.Fingerprint) ([]byte, error) {
	h, err := parseKind(sealed, KindChunk)
	if err != nil {
		return nil, err
	}
	if h.Fingerprint != fp {
		return nil, fmt.Errorf("%w: holds chunk %s", ErrCorrupt, h.Fingerprint)
	}
	out, err := o.open(dst, &h, sealed, nil)
	if err != nil {
		return nil, err
	}
	if h.Suite == AES256XTS || o.opts.Verify {
		if sum := o.hasher.Sum(out[len(dst):]); sum != fp {
			return nil, fmt.Errorf("%w: plaintext has fingerprint %s", ErrCorrupt, sum)
		}
	}
	return out, nil
}

// OpenPart does the same for a part that was sealed under ad; its tag is
// verified in either suite.
func (o *Opener) OpenPart(dst, sealed []byte, ad PartAD) ([]byte, error) {
	b := ad.bytes()
	out, err := o.openBound(dst, sealed, KindPart, &b)
	if err != nil {
		return nil, fmt.Errorf("open part of disk %d, epoch %d, pos %d, offset %d: %w", ad.Disk, ad.Epoch, ad.Pos, ad.Offset, err)
	}
	return out, nil
}

// OpenUnit does the same for a unit that was sealed under ad.
func (o *Opener) OpenUnit(dst, sealed []byte, ad UnitAD) ([]byte, error) {
	b := ad.bytes()
	out, err := o.openBound(dst, sealed, KindUnit, &b)
	if err != nil {
		return nil, fmt.Errorf("open unit %d of object %x: %w", ad.Unit, ad.Object, err)
	}
	return out, nil
}

func (o *Opener) openBound(dst, sealed []byte, kind Kind, ad *[adBytes]byte) ([]byte, error) {
	h, err := parseKind(sealed, kind)
	if err != nil {
		return nil, err
	}
	return o.open(dst, &h, sealed, ad)
}

func parseKind(sealed []byte, kind Kind) (Header, error) {
	h, err := parseWhole(sealed)
	if err == nil && h.Kind != kind {
		err = fmt.Errorf("%w: it is a %s", ErrCorrupt, h.Kind)
	}
	return h, err
}

// open appends the plaintext to dst. Of an XTS chunk it is not yet verified.
func (o *Opener) open(dst []byte, h *Header, sealed []byte, ad *[adBytes]byte) ([]byte, error) {
	c, err := o.ciphers(h.Key)
	if err != nil {
		return nil, err
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	start := len(dst)
	dst = slices.Grow(dst, h.PlainLen)
	out := dst[start : start+h.PlainLen]
	payload := sc.payload[:]
	if h.Codec == Raw && h.Pad == 0 {
		payload = out // saves a copy of every incompressible chunk
	}
	payload = payload[:h.payload()]
	if !c.decrypt(sc, payload, h, sealed, ad) {
		return nil, fmt.Errorf("%w: authentication failed under key %d", ErrCorrupt, h.Key)
	}
	data, pad := payload[:len(payload)-h.Pad], payload[len(payload)-h.Pad:]
	if !bytes.Equal(pad, zeros[:len(pad)]) {
		return nil, fmt.Errorf("%w: padding is not zero", ErrCorrupt)
	}
	if h.Codec == S2 {
		if err := decompress(out, data); err != nil {
			return nil, err
		}
	} else if h.Pad != 0 {
		copy(out, data)
	}
	return dst[:start+h.PlainLen], nil
}

// decompress fills out with what the S2 block data holds. The block states its
// length, which is compared before anything is done with it.
func decompress(out, data []byte) error {
	if n, err := s2.DecodedLen(data); err != nil || n != len(out) {
		return fmt.Errorf("%w: s2 block of length %d for %d bytes of plaintext", ErrCorrupt, n, len(out))
	}
	if _, err := s2.Decode(out, data); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// ciphers returns the expanded key, from memory or through keys.
func (o *Opener) ciphers(key id.Key) (*ciphers, error) {
	o.mu.RLock()
	c := o.expanded[key]
	o.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	secret, err := o.keys.Key(key)
	if err != nil {
		return nil, fmt.Errorf("key %d: %w", key, err)
	}
	c = newCiphers(secret)
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.expanded {
		if len(o.expanded) < openerKeysMax {
			break
		}
		delete(o.expanded, k) // any: a wrong choice costs one call to Keys
	}
	o.expanded[key] = c
	return c, nil
}
