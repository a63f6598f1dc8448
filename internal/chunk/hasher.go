package chunk

import (
	"sync"

	"github.com/zeebo/blake3"

	"plinth/internal/id"
)

// Hasher computes keyed BLAKE3 truncated to 128 bits: fingerprints under the
// key of a dedupe domain, and the tags of XTS parts. It is safe for concurrent
// use and does not allocate once warm.
type Hasher struct {
	states sync.Pool // of *hashState, all under one key
}

type hashState struct {
	h   *blake3.Hasher
	out [32]byte
}

// NewHasher returns a hasher under that key.
func NewHasher(key *Secret) *Hasher {
	return newHasher(key.Reveal())
}

func newHasher(key [SecretBytes]byte) *Hasher {
	return &Hasher{states: sync.Pool{New: func() any {
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic(err) // the key's length is fixed by its type
		}
		return &hashState{h: h}
	}}}
}

// Sum returns the fingerprint of plain.
func (h *Hasher) Sum(plain []byte) id.Fingerprint {
	return h.sum(nil, plain)
}

// sum hashes the concatenation of both.
func (h *Hasher) sum(head, body []byte) id.Fingerprint {
	st := h.states.Get().(*hashState)
	st.h.Reset()
	st.h.Write(head)
	st.h.Write(body)
	fp := id.Fingerprint(st.h.Sum(st.out[:0])[:16])
	h.states.Put(st)
	return fp
}
