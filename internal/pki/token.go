package pki

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
)

const (
	tokenPrefix      = "plinth-join-v1."
	tokenIDBytes     = 8
	tokenSecretBytes = 24
	tokenBytes       = tokenIDBytes + tokenSecretBytes + sha256.Size + 4

	// TokenTTLDefault is how long a token may be used; TokenTTLMax the longest.
	TokenTTLDefault = time.Hour
	TokenTTLMax     = 7 * 24 * time.Hour

	// proofLabel goes before what proves that a token is known, exporterLabel names
	// the value that ties it to one connection.
	proofLabel    = "plinth join 1\n"
	exporterLabel = "EXPORTER-plinth-join"
	exporterBytes = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Token lets one machine join under the name that the token was made for: the
// fingerprint says whom to believe, the secret proves that it may.
type Token struct {
	ID        [tokenIDBytes]byte
	secret    [tokenSecretBytes]byte
	Authority Fingerprint
}

func newToken(authority Fingerprint) Token {
	t := Token{Authority: authority}
	rand.Read(t.ID[:]) // never fails: the runtime ends the process instead
	rand.Read(t.secret[:])
	return t
}

// Text is the token as people pass it on. It is a secret until it is used.
func (t Token) Text() string {
	b := append(append(append([]byte{}, t.ID[:]...), t.secret[:]...), t.Authority[:]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// String tells nothing, so that no log has a token.
func (t Token) String() string { return fmt.Sprintf("token %x", t.ID[:]) }

// ParseToken reads what Text wrote. No error quotes it. Errors: ErrCorrupt,
// ErrUnsupported.
func ParseToken(text string) (Token, error) {
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		if strings.HasPrefix(text, "plinth-join-v") {
			return Token{}, fmt.Errorf("%w: a join token of another version", ErrUnsupported)
		}
		return Token{}, fmt.Errorf("%w: a join token begins with %s", ErrCorrupt, tokenPrefix)
	}
	if len(body) != base64.RawURLEncoding.EncodedLen(tokenBytes) {
		return Token{}, fmt.Errorf("%w: a join token has %d characters, not %d: copy all of it",
			ErrCorrupt, len(tokenPrefix)+base64.RawURLEncoding.EncodedLen(tokenBytes), len(text))
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) != tokenBytes || crc32.Checksum(b[:tokenBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[tokenBytes-4:]) {
		return Token{}, fmt.Errorf("%w: the join token's checksum does not match: copy it again", ErrCorrupt)
	}
	var t Token
	r := bytes.NewReader(b)
	for _, part := range [][]byte{t.ID[:], t.secret[:], t.Authority[:]} {
		_, _ = r.Read(part) // the length was checked
	}
	return t, nil
}

// proof shows that who asks for a certificate over the connection with that
// exported value knows the secret. It is of no use on another connection, nor for
// another key.
func proof(secret []byte, exported, csr []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(proofLabel))
	h.Write(exported) // of fixed length
	h.Write(csr)
	return h.Sum(nil)
}
