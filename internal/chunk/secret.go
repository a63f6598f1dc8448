package chunk

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"

	"github.com/zeebo/blake3"
)

// SecretBytes is the length of every secret.
const SecretBytes = 32

const redacted = "[secret]"

// Secret is a 256-bit key from which the keys of single purposes are derived.
// Printed, logged or marshalled in any way it reads "[secret]". It does not
// change; the zero Secret holds none and cannot be used.
type Secret struct {
	// Behind a pointer because fmt cannot call methods on unexported fields: a
	// struct that has a Secret then shows an address, not the key.
	key *[SecretBytes]byte
}

// NewSecret returns a random secret.
func NewSecret() *Secret {
	s := &Secret{key: new([SecretBytes]byte)}
	rand.Read(s.key[:]) // never fails: the runtime ends the process instead
	return s
}

// SecretFromBytes copies b, which must have SecretBytes bytes.
func SecretFromBytes(b []byte) (*Secret, error) {
	if len(b) != SecretBytes {
		return nil, fmt.Errorf("a secret has %d bytes, not %d", SecretBytes, len(b))
	}
	return &Secret{key: (*[SecretBytes]byte)(append([]byte(nil), b...))}, nil
}

// Reveal returns the key itself, for wrapping and for libraries that take it.
func (s Secret) Reveal() [SecretBytes]byte { return *s.key }

// Derive fills out with the key for one purpose: BLAKE3's derive_key of the
// secret and then subject, under a context string that is a constant of the
// program and used for nothing else.
func (s Secret) Derive(out []byte, context string, subject ...byte) {
	material := append(append(make([]byte, 0, SecretBytes+16), s.key[:]...), subject...)
	blake3.DeriveKey(context, material, out)
}

func (Secret) String() string               { return redacted }
func (Secret) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
