package keyring

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

// PoolID names a pool: random, never changed. It binds wrapped keys to it.
type PoolID [16]byte

func (p PoolID) String() string { return hex.EncodeToString(p[:]) }

// Pool is a pool's secret, unwrapped, and what is derived from it.
type Pool struct {
	id       PoolID
	secret   *chunk.Secret
	sessions wrapper
}

func newPool(id PoolID, secret *chunk.Secret) *Pool {
	return &Pool{id, secret, newWrapper(secret, contextPoolWrap)}
}

// NewPoolID returns a random id.
func NewPoolID() (id PoolID) {
	rand.Read(id[:]) // never fails: the runtime ends the process instead
	return id
}

// CreatePool makes a pool with a random secret and returns its header, which the
// caller keeps: without header or root key the pool is lost.
func CreatePool(root *Root, id PoolID) ([]byte, *Pool) {
	p := newPool(id, chunk.NewSecret())
	return p.Header(root), p
}

// OpenPool unwraps the secret in a pool header. Errors: ErrWrongRoot,
// ErrCorrupt, ErrUnsupported.
func OpenPool(header []byte, root *Root) (*Pool, error) {
	h, err := ParsePoolHeader(header)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if h.Root != root.Kind() {
		return nil, fmt.Errorf("open pool %s: %w: the pool was made with a %s, not a %s", h.ID, ErrWrongRoot, h.Root, root.Kind())
	}
	secret, err := root.Unwrap(poolAD(header[:headerWrapped]), header[headerWrapped:headerSum])
	if err != nil {
		return nil, fmt.Errorf("open pool %s with a %s: %w", h.ID, h.Root, err)
	}
	return newPool(h.ID, secret), nil
}

// ID returns the pool's id.
func (p *Pool) ID() PoolID { return p.id }

// FingerprintKey returns the key of the pool's dedupe domain.
func (p *Pool) FingerprintKey() *chunk.Secret {
	return p.derive(contextFingerprint)
}

// MACKey returns the key of the MAC chain over a disk's log.
func (p *Pool) MACKey(disk id.Disk) *chunk.Secret {
	return p.derive(contextMAC, binary.LittleEndian.AppendUint64(nil, uint64(disk))...)
}

// PeerKey returns the key that signs the certificates by which hosts of the pool
// know each other. It is never written down.
func (p *Pool) PeerKey() ed25519.PrivateKey {
	seed := p.derive(contextPeers).Reveal()
	return ed25519.NewKeyFromSeed(seed[:])
}

func (p *Pool) derive(context string, subject ...byte) *chunk.Secret {
	var key [chunk.SecretBytes]byte
	p.secret.Derive(key[:], context, subject...)
	s, err := chunk.SecretFromBytes(key[:])
	if err != nil {
		panic(err) // the key's length is fixed by its type
	}
	return s
}

// WrapSession returns a session's secret as the registry keeps it under that
// key id. It must be durable there before the secret is first used.
func (p *Pool) WrapSession(key id.Key, s *chunk.Secret) []byte {
	return p.sessions.Wrap(p.sessionAD(key), s)
}

// UnwrapSession is the reverse. Errors: ErrCorrupt if it is not what this pool
// wrapped under that key id, ErrUnsupported.
func (p *Pool) UnwrapSession(key id.Key, wrapped []byte) (*chunk.Secret, error) {
	s, err := p.sessions.Unwrap(p.sessionAD(key), wrapped)
	if err == ErrWrongRoot {
		err = ErrCorrupt // the pool's own secret is right, or there were no Pool
	}
	if err != nil {
		return nil, fmt.Errorf("unwrap key %d of pool %s: %w", key, p.id, err)
	}
	return s, nil
}

func (p *Pool) sessionAD(key id.Key) []byte {
	ad := append([]byte("session"), p.id[:]...)
	return binary.LittleEndian.AppendUint32(ad, uint32(key))
}

func poolAD(prefix []byte) []byte { return append([]byte("pool"), prefix...) }
