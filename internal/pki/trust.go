package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	trustFormat    = "plinth trust"
	trustVersion   = 1
	trustBytesMax  = 1 << 20
	trustSignature = "plinth trust 1\n" // goes before what is signed, which so is no certificate

	// authoritiesMax are an old and a new one.
	authoritiesMax = 2
	// revokedMax bounds the list of what is revoked. From revokedMany on, entries go
	// whose certificates have expired.
	revokedMax  = 4096
	revokedMany = revokedMax / 2
	// revokedKeep is how long an entry outlives the certificates: a member's clock
	// may be slow.
	revokedKeep = 24 * time.Hour
)

// trustBody is what a trust document says.
type trustBody struct {
	Format   string    `json:"format"`
	Version  int       `json:"version"`
	Cluster  Cluster   `json:"cluster"`
	Sequence uint64    `json:"sequence"` // a member never goes back to a smaller one
	Made     time.Time `json:"made"`
	// Authorities are certificates in DER, the oldest first. Issuer is the number of
	// the one that new certificates are of.
	Authorities [][]byte     `json:"authorities"`
	Issuer      int          `json:"issuer"`
	Revoked     []Revocation `json:"revoked"`
}

// Revocation takes a certificate back, by Serial, or all of a member's that were
// made until Before.
type Revocation struct {
	Serial string    `json:"serial,omitempty"`
	Role   Role      `json:"role"`
	Name   string    `json:"name"`
	Before time.Time `json:"before,omitzero"`
	// Until is when the entry may be forgotten.
	Until time.Time `json:"until"`
}

// trust is a trust document that was read: whom a member believes. It does not
// change.
type trust struct {
	trustBody
	text        []byte // with the signatures
	signed      []byte
	signatures  map[Fingerprint][]byte
	authorities []*x509.Certificate
	pool        *x509.CertPool
	serials     map[string]bool
	members     map[Member]time.Time // revoked until
}

// encode signs the document by each of the keys of its authorities.
func (b trustBody) encode(authorities []*x509.Certificate, keys []ed25519.PrivateKey) ([]byte, error) {
	line, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	text := append(line, '\n')
	for i, key := range keys {
		f := fingerprint(authorities[i])
		signature := ed25519.Sign(key, append([]byte(trustSignature), line...))
		text = fmt.Appendf(text, "signature %x %s\n", f[:], base64.StdEncoding.EncodeToString(signature))
	}
	return text, nil
}

// parseTrust reads a document and checks everything but whether its signatures are
// of anybody who is believed. Errors: ErrCorrupt, ErrUnsupported.
func parseTrust(text []byte) (*trust, error) {
	if len(text) > trustBytesMax {
		return nil, fmt.Errorf("%w: a trust document of more than %d bytes", ErrCorrupt, trustBytesMax)
	}
	line, rest, ok := bytes.Cut(text, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("%w: a trust document that ends in its first line", ErrCorrupt)
	}
	t := &trust{text: bytes.Clone(text), signed: bytes.Clone(line)}
	if err := decodeVersioned(line, trustFormat, trustVersion, &t.trustBody); err != nil {
		return nil, err
	}
	if err := t.parseSignatures(string(rest)); err != nil {
		return nil, err
	}
	if n := len(t.Authorities); n < 1 || n > authoritiesMax || t.Issuer < 0 || t.Issuer >= n {
		return nil, fmt.Errorf("%w: a trust document with %d authorities, of which %d is in use", ErrCorrupt, n, t.Issuer)
	}
	t.pool = x509.NewCertPool()
	for _, der := range t.Authorities {
		c, err := parseAuthorityCert(der)
		if err != nil {
			return nil, fmt.Errorf("trust document: %w", err)
		}
		t.authorities = append(t.authorities, c)
		t.pool.AddCert(c)
	}
	return t, t.parseRevoked()
}

func (t *trust) parseSignatures(rest string) error {
	t.signatures = map[Fingerprint][]byte{}
	for line := range strings.Lines(rest) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		var f Fingerprint
		if len(fields) != 3 || fields[0] != "signature" || !strings.HasSuffix(line, "\n") ||
			len(fields[1]) != 2*len(f) || len(t.signatures) >= authoritiesMax {
			return fmt.Errorf("%w: a line of a trust document that is no signature", ErrCorrupt)
		}
		_, err := hex.Decode(f[:], []byte(fields[1]))
		signature, err2 := base64.StdEncoding.DecodeString(fields[2])
		if err != nil || err2 != nil || len(signature) != ed25519.SignatureSize {
			return fmt.Errorf("%w: a signature of a trust document", ErrCorrupt)
		}
		t.signatures[f] = signature
	}
	return nil
}

func (t *trust) parseRevoked() error {
	if len(t.Revoked) > revokedMax {
		return fmt.Errorf("%w: %d revocations, more than %d", ErrCorrupt, len(t.Revoked), revokedMax)
	}
	t.serials, t.members = map[string]bool{}, map[Member]time.Time{}
	for _, r := range t.Revoked {
		m := Member{t.Cluster, r.Role, r.Name}
		if err := m.Validate(); err != nil || (r.Serial == "") == r.Before.IsZero() {
			return fmt.Errorf("%w: a revocation of neither a certificate nor a member", ErrCorrupt)
		}
		if r.Serial != "" {
			t.serials[r.Serial] = true
		} else if r.Before.After(t.members[m]) {
			t.members[m] = r.Before
		}
	}
	return nil
}

// signedBy reports whether one of the authorities signed the document.
func (t *trust) signedBy(authorities []*x509.Certificate) bool {
	for _, a := range authorities {
		signature := t.signatures[fingerprint(a)]
		key, ok := a.PublicKey.(ed25519.PublicKey)
		if ok && signature != nil && ed25519.Verify(key, append([]byte(trustSignature), t.signed...), signature) {
			return true
		}
	}
	return false
}

// authority returns that of a fingerprint, or nil.
func (t *trust) authority(f Fingerprint) *x509.Certificate {
	for _, a := range t.authorities {
		if fingerprint(a) == f {
			return a
		}
	}
	return nil
}

// issuer returns the authority that new certificates are of.
func (t *trust) issuer() *x509.Certificate { return t.authorities[t.Issuer] }

// succeeds says whether a member that has t takes next in its place. Errors:
// ErrForeign for one that nobody signed whom t believes. An older one is false.
func (t *trust) succeeds(next *trust) (bool, error) {
	switch {
	case next.Cluster != t.Cluster:
		return false, fmt.Errorf("%w: a trust document of cluster %s, not %s", ErrForeign, next.Cluster, t.Cluster)
	case !next.signedBy(t.authorities):
		return false, fmt.Errorf("%w: a trust document that none of the known authorities signed", ErrForeign)
	}
	return next.Sequence > t.Sequence, nil
}

// check verifies a certificate but for its time, and returns whose it is. Errors:
// ErrForeign, ErrRevoked.
func (t *trust) check(c *x509.Certificate) (Member, error) {
	m, err := memberOf(c)
	if err != nil {
		return m, err
	}
	if m.Cluster != t.Cluster {
		return m, fmt.Errorf("%w: the certificate of %s is of cluster %s, not %s", ErrForeign, m, m.Cluster, t.Cluster)
	}
	_, err = c.Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: x509.NewCertPool(), CurrentTime: c.NotBefore,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil || c.IsCA {
		return m, fmt.Errorf("%w: the certificate of %s is of no trusted authority (after a change of authorities it is renewed, or joins again)", ErrForeign, m)
	}
	if before, ok := t.members[m]; t.serials[serialText(c)] || ok && !issuedAt(c).After(before) {
		return m, fmt.Errorf("%w: that of %s", ErrRevoked, m)
	}
	return m, nil
}

// verify is check at a time. Errors: also ErrExpired, ErrNotYetValid.
func (t *trust) verify(c *x509.Certificate, now time.Time) (Member, error) {
	m, err := t.check(c)
	if err != nil {
		return m, err
	}
	return m, checkTime(m, c, now)
}

// checkTime says how far off a certificate is.
func checkTime(m Member, c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: that of %s begins at %s, and it is %s here: set the clock of that machine or of this one",
			ErrNotYetValid, m, stamp(issuedAt(c)), stamp(now))
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: that of %s ended at %s, and it is %s here: join again with a new token, or set the clock",
			ErrExpired, m, stamp(c.NotAfter), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" }
