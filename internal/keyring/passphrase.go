package keyring

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"

	"plinth/internal/chunk"
)

const (
	kdfVersion = 1
	kdfBytes   = 28

	// Bounds of what a header may ask of this host, and of how cheap it may make
	// a guess.
	kdfPassesMax    = 64
	kdfMemoryKiBMin = 8 << 10
	kdfMemoryKiBMax = 1 << 20
	kdfThreadsMax   = 64
)

// KDFParams says how a passphrase becomes a root key: argon2id (RFC 9106). It
// is not secret and lies in the pool header, so that a later pool header can
// ask for more.
type KDFParams struct {
	Passes    uint32 // 1 to 64
	MemoryKiB uint32 // 8 MiB to 1 GiB
	Threads   uint8  // 1 to 64
	Salt      [16]byte
}

// NewKDFParams returns the parameters for a new pool, with a random salt: RFC
// 9106's second recommendation, about a tenth of a second and 64 MiB.
func NewKDFParams() KDFParams {
	p := KDFParams{Passes: 3, MemoryKiB: 64 << 10, Threads: 4}
	rand.Read(p.Salt[:]) // never fails: the runtime ends the process instead
	return p
}

// Validate returns an error for parameters out of bounds.
func (p KDFParams) Validate() error {
	if p.Passes < 1 || p.Passes > kdfPassesMax || p.Threads < 1 || p.Threads > kdfThreadsMax ||
		p.MemoryKiB < kdfMemoryKiBMin || p.MemoryKiB > kdfMemoryKiBMax {
		return fmt.Errorf("passphrase parameters out of bounds: %d passes, %d KiB, %d threads", p.Passes, p.MemoryKiB, p.Threads)
	}
	return nil
}

// PassphraseRoot derives the root key from a passphrase, bytes as they are. It
// computes for as long as the parameters ask. Pass is not kept. Whether it is
// the right one shows at OpenPool.
func PassphraseRoot(pass []byte, params KDFParams) (*Root, error) {
	if len(pass) == 0 {
		return nil, errors.New("the passphrase is empty")
	}
	if err := params.Validate(); err != nil {
		return nil, err
	}
	key := argon2.IDKey(pass, params.Salt[:], params.Passes, params.MemoryKiB, params.Threads, chunk.SecretBytes)
	secret, err := chunk.SecretFromBytes(key)
	if err != nil {
		return nil, err
	}
	return newRoot(secret, &params), nil
}

func (p KDFParams) put(b []byte) {
	b[0], b[1] = kdfVersion, p.Threads
	binary.LittleEndian.PutUint32(b[4:], p.Passes)
	binary.LittleEndian.PutUint32(b[8:], p.MemoryKiB)
	copy(b[12:], p.Salt[:])
}

func parseKDFParams(b []byte) (KDFParams, error) {
	if b[0] != kdfVersion {
		return KDFParams{}, fmt.Errorf("%w: passphrase parameters of version %d", ErrUnsupported, b[0])
	}
	p := KDFParams{
		Passes:    binary.LittleEndian.Uint32(b[4:]),
		MemoryKiB: binary.LittleEndian.Uint32(b[8:]),
		Threads:   b[1],
		Salt:      [16]byte(b[12:kdfBytes]),
	}
	if err := p.Validate(); err != nil {
		return KDFParams{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if b[2]|b[3] != 0 {
		return KDFParams{}, fmt.Errorf("%w: reserved bytes of the passphrase parameters are not zero", ErrCorrupt)
	}
	return p, nil
}
