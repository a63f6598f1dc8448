package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"

	"plinth/internal/chunk"
)

var (
	// ErrWrongRoot is returned by OpenPool and Unwrap when the root key or
	// passphrase is not the one that the secret was wrapped under. The operator
	// must supply the right one; nothing was written.
	ErrWrongRoot = errors.New("wrong root key or passphrase")

	// ErrCorrupt is returned for bytes that are malformed or damaged: restore
	// them from a copy.
	ErrCorrupt = errors.New("corrupt key material")

	// ErrUnsupported is returned for a version or feature this program does not
	// know: a newer program wrote it.
	ErrUnsupported = errors.New("unsupported format of key material")

	// ErrPermissions is returned by LoadRootFile for a file that others than its
	// owner may use. The message says how to change that.
	ErrPermissions = errors.New("root key file is open to others")
)

const (
	wrapVersion  = 1
	wrappedBytes = 64
	wrapNonceOff = 4
	wrapBodyOff  = 16
)

// The contexts that separate the keys derived from root and pool.
const (
	contextRootWrap    = "plinth v1 root key: wrap"
	contextPoolWrap    = "plinth v1 pool secret: wrap session secrets"
	contextFingerprint = "plinth v1 pool secret: fingerprints"
	contextMAC         = "plinth v1 pool secret: mac chain of a disk"
	contextPeers       = "plinth v1 pool secret: certificates of peers"
)

// Root is a root key in memory, and where it came from.
type Root struct {
	wrapper
	kdf *KDFParams // nil for a file
}

func newRoot(secret *chunk.Secret, kdf *KDFParams) *Root {
	return &Root{newWrapper(secret, contextRootWrap), kdf}
}

// Kind returns the way to get at the root key.
func (r *Root) Kind() RootKind {
	if r.kdf != nil {
		return RootPassphrase
	}
	return RootFile
}

// wrapper wraps secrets under one key.
type wrapper struct{ aead cipher.AEAD }

func newWrapper(s *chunk.Secret, context string) wrapper {
	var key [32]byte
	s.Derive(key[:], context)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key's length is fixed by its type
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the block size that GCM wants
	}
	return wrapper{aead}
}

// Wrap encrypts a secret and binds it to ad. The nonce is random: a root or
// pool wraps far fewer than the 2^32 secrets that allows.
func (w wrapper) Wrap(ad []byte, secret *chunk.Secret) []byte {
	out := make([]byte, wrapBodyOff, wrappedBytes)
	out[0] = wrapVersion
	nonce := out[wrapNonceOff:wrapBodyOff]
	rand.Read(nonce) // never fails: the runtime ends the process instead
	key := secret.Reveal()
	return w.aead.Seal(out, nonce, key[:], ad)
}

// Unwrap returns the secret that was wrapped under the same key and ad. Errors:
// ErrWrongRoot if it does not authenticate, ErrCorrupt, ErrUnsupported.
func (w wrapper) Unwrap(ad, wrapped []byte) (*chunk.Secret, error) {
	switch {
	case len(wrapped) != wrappedBytes:
		return nil, fmt.Errorf("%w: a wrapped secret has %d bytes, not %d", ErrCorrupt, wrappedBytes, len(wrapped))
	case wrapped[0] != wrapVersion:
		return nil, fmt.Errorf("%w: wrapped secret of version %d", ErrUnsupported, wrapped[0])
	case wrapped[1]|wrapped[2]|wrapped[3] != 0:
		return nil, fmt.Errorf("%w: reserved bytes of a wrapped secret are not zero", ErrCorrupt)
	}
	key, err := w.aead.Open(nil, wrapped[wrapNonceOff:wrapBodyOff], wrapped[wrapBodyOff:], ad)
	if err != nil {
		return nil, ErrWrongRoot
	}
	return chunk.SecretFromBytes(key)
}
