package chunk

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/s2"

	"plinth/internal/id"
)

// SealsPerKeyMax is the default number of seals under one key. It keeps a
// factor of 2 from the 2^32 where counters end, and at 64 KiB each the 2^43
// blocks leave an attacker a chance of 2^-42 to tell them from noise.
const SealsPerKeyMax = 1 << 31

// SealerOptions tunes a Sealer. The zero value is right.
type SealerOptions struct {
	// SealsPerKeyMax is the number of seals after which a key is replaced; 0
	// means the constant of that name, which is also the largest.
	SealsPerKeyMax uint32
}

// Sealer encrypts for one host session. It owns the session's data keys: it
// counts the seals under each and never uses a count twice (I8). It is safe
// for concurrent use and starts no goroutine.
type Sealer struct {
	next    func() (id.Key, *Secret, error)
	max     uint64
	current atomic.Pointer[sealKey]
	rolling sync.Mutex // held while current is replaced
}

type sealKey struct {
	id    id.Key
	seals atomic.Uint64 // counts handed out; the last may lie above the maximum
	*ciphers
}

// NewSealer returns a sealer that starts under key. No other sealer, in no
// process, has used or will use that key or one that next returns: each is a
// new random secret, durable in the registry (wrapped) before it is handed
// over, or what was sealed could not be opened after a crash.
//
// Next is called for a new key each time one is used up, once at a time, from
// the seal that needs it; all seals wait for it. Its error fails these seals,
// and the next one calls it again.
func NewSealer(key id.Key, secret *Secret, next func() (id.Key, *Secret, error), opts SealerOptions) (*Sealer, error) {
	s := &Sealer{next: next, max: uint64(opts.SealsPerKeyMax)}
	if s.max == 0 {
		s.max = SealsPerKeyMax
	}
	switch {
	case s.max > SealsPerKeyMax:
		return nil, fmt.Errorf("%d seals per key exceed %d", s.max, uint64(SealsPerKeyMax))
	case key == 0 || secret == nil:
		return nil, errors.New("a sealer needs a key")
	}
	s.current.Store(&sealKey{id: key, ciphers: newCiphers(secret)})
	return s, nil
}

// take returns a key and a count under it that no other seal has.
func (s *Sealer) take() (*sealKey, uint32, error) {
	for {
		k := s.current.Load()
		if n := k.seals.Add(1); n <= s.max {
			return k, uint32(n), nil
		}
		if err := s.roll(k); err != nil {
			return nil, 0, err
		}
	}
}

// roll replaces the key used, unless another seal already has.
func (s *Sealer) roll(used *sealKey) error {
	s.rolling.Lock()
	defer s.rolling.Unlock()
	if s.current.Load() != used {
		return nil
	}
	key, secret, err := s.next()
	if err != nil {
		return fmt.Errorf("get a data key after key %d: %w", used.id, err)
	}
	if key == 0 || key == used.id || secret == nil {
		return fmt.Errorf("get a data key after key %d: got key %d", used.id, key)
	}
	s.current.Store(&sealKey{id: key, ciphers: newCiphers(secret)})
	return nil
}

// SealChunk compresses a chunk where that pays, encrypts it and appends the
// sealed chunk to dst, which does not overlap plain. The length of plain is a
// valid Size and fp its fingerprint; this is not checked against each other.
// Plain is not kept. It blocks only for a new key, at most once in
// SealsPerKeyMax seals, and allocates nothing else when dst has SealedCap
// bytes to spare.
func (s *Sealer) SealChunk(dst []byte, suite Suite, fp id.Fingerprint, plain []byte) ([]byte, error) {
	if err := Size(len(plain)).Validate(); err != nil {
		return nil, fmt.Errorf("seal chunk %s: %w", fp, err)
	}
	return s.seal(dst, Header{Kind: KindChunk, Suite: suite, Fingerprint: fp}, nil, plain)
}

// SealPart does the same for 1 to PlainBytesMax bytes that are written to part
// of a chunk, and binds them to ad.
func (s *Sealer) SealPart(dst []byte, suite Suite, ad PartAD, plain []byte) ([]byte, error) {
	b := ad.bytes()
	return s.seal(dst, Header{Kind: KindPart, Suite: suite}, &b, plain)
}

// SealUnit seals 1 to PlainBytesMax bytes of a checkpoint object under
// AES-256-GCM, without compression: UnitSealedBytes is the length it appends.
func (s *Sealer) SealUnit(dst []byte, ad UnitAD, plain []byte) ([]byte, error) {
	b := ad.bytes()
	return s.seal(dst, Header{Kind: KindUnit, Suite: AES256GCM}, &b, plain)
}

func (s *Sealer) seal(dst []byte, h Header, ad *[adBytes]byte, plain []byte) ([]byte, error) {
	if len(plain) < 1 || len(plain) > PlainBytesMax {
		return nil, fmt.Errorf("seal %s: %d bytes are not 1 to %d", h.Kind, len(plain), PlainBytesMax)
	}
	if !h.Suite.Valid() {
		return nil, fmt.Errorf("seal %s: %w: %s", h.Kind, ErrUnsupported, h.Suite)
	}
	key, count, err := s.take()
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", h.Kind, err)
	}
	start := len(dst)
	dst = slices.Grow(dst, SealedCap(len(plain)))
	b := dst[start:cap(dst)]

	// The payload is laid down where it will stay and encrypted in place.
	body := b[h.bytes():]
	n := 0
	if h.Kind != KindUnit {
		n = compress(body, plain)
	}
	h.Codec = S2
	if n == 0 {
		h.Codec, n = Raw, copy(body, plain)
	}
	h.Pad = padding(n)
	clear(body[n : n+h.Pad])
	h.Len = h.bytes() + n + h.Pad + h.tag()
	h.PlainLen, h.Key, h.Counter = len(plain), key.id, count
	h.put(b)

	sc := scratches.Get().(*scratch)
	key.encrypt(sc, &h, b[:h.Len], ad)
	scratches.Put(sc)
	return dst[:start+h.Len], nil
}

// compress writes plain to dst as one S2 block and returns its length, or 0 if
// that saves less than a sixteenth and one id.Unit: it would not pay for the
// work when it is read. Dst has room for s2.MaxEncodedLen.
func compress(dst, plain []byte) int {
	n := len(s2.Encode(dst, plain))
	if n > len(plain)-max(len(plain)/16, id.Unit) {
		return 0
	}
	return n
}
