package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

const (
	// skew is how far two clocks of a cluster may differ: certificates begin that
	// long before they are made.
	skew = 5 * time.Minute

	// LifetimeDefault is how long a member's certificate holds. It is renewed at
	// two thirds, so a member may be without an authority for ten days.
	LifetimeDefault = 30 * 24 * time.Hour
	// LifetimeMin and LifetimeMax bound other choices.
	LifetimeMin = time.Minute
	LifetimeMax = 366 * 24 * time.Hour

	authorityYears = 10
	serialBytes    = 16
	csrBytesMax    = 4 << 10
	certBytesMax   = 8 << 10
)

// Fingerprint names an authority: SHA-256 of its certificate.
type Fingerprint [sha256.Size]byte

func fingerprint(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.Raw) }

// String is its first 8 bytes, enough for people.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:8]) }

func newKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // the source of randomness ends the process instead
	}
	return key
}

// newSerial is random, so that no two authorities agree on one.
func newSerial() *big.Int {
	var b [serialBytes]byte
	rand.Read(b[:])         // never fails: the runtime ends the process instead
	b[0] = b[0]&0x7f | 0x40 // positive, and always of 16 bytes
	return new(big.Int).SetBytes(b[:])
}

// serialText is a certificate's serial in lists and files: 32 digits.
func serialText(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }

// newAuthorityCert makes the self-signed certificate of an authority.
func newAuthorityCert(cluster Cluster, key ed25519.PrivateKey, now time.Time) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: "plinth authority of " + stamp(now), Organization: []string{cluster.String()}},
		// Long before the first certificate, should its clock be set back meanwhile.
		NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(authorityYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(nil, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

// leaf is what a member's certificate says.
type leaf struct {
	member   Member
	sans     SANs
	key      ed25519.PublicKey
	issued   time.Time
	lifetime time.Duration
}

// newLeaf makes a member's certificate. All serve for both ends of a connection:
// hosts serve hosts, too.
func newLeaf(l leaf, ca *x509.Certificate, caKey ed25519.PrivateKey) (*x509.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: l.member.String(), Organization: []string{l.member.Cluster.String()}},
		NotBefore:    l.issued.Add(-skew), NotAfter: l.issued.Add(l.lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{l.member.url()}, DNSNames: l.sans.DNS, IPAddresses: l.sans.IPs,
		BasicConstraintsValid: true,
	}
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	der, err := x509.CreateCertificate(nil, t, ca, l.key, caKey)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", l.member, err)
	}
	return x509.ParseCertificate(der)
}

// issuedAt is when a certificate was made, to the second.
func issuedAt(c *x509.Certificate) time.Time { return c.NotBefore.Add(skew) }

// renewAt is when its holder asks for the next one: after two thirds.
func renewAt(c *x509.Certificate) time.Time {
	return issuedAt(c).Add(c.NotAfter.Sub(issuedAt(c)) / 3 * 2)
}

// SANs are the names and addresses of a machine, for programs of others that
// check those. Members know each other by their URI alone.
type SANs struct {
	DNS []string `json:"dns,omitempty"`
	IPs []net.IP `json:"ips,omitempty"`
}

const sansMax = 16

// ParseSANs reads a list of host names and IP addresses.
func ParseSANs(list []string) (SANs, error) {
	var s SANs
	if len(list) > sansMax {
		return s, fmt.Errorf("%d names and addresses of one machine: at most %d", len(list), sansMax)
	}
	for _, text := range list {
		if ip := net.ParseIP(text); ip != nil {
			s.IPs = append(s.IPs, ip)
			continue
		}
		s.DNS = append(s.DNS, text)
	}
	return s, s.validate()
}

func (s SANs) validate() error {
	if len(s.DNS)+len(s.IPs) > sansMax {
		return fmt.Errorf("%d names and addresses of one machine: at most %d", len(s.DNS)+len(s.IPs), sansMax)
	}
	for _, name := range s.DNS {
		ok := len(name) > 0 && len(name) <= 253 && name[0] != '.' && name[0] != '-'
		for _, r := range []byte(name) {
			ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.')
		}
		if !ok {
			return fmt.Errorf("%q is neither an IP address nor a host name in lower case", truncated(name))
		}
	}
	for _, ip := range s.IPs {
		if len(ip) != net.IPv4len && len(ip) != net.IPv6len {
			return fmt.Errorf("an IP address has %d bytes", len(ip))
		}
	}
	return nil
}

// newCSR asks for a certificate for a key. Who asks is said elsewhere.
func newCSR(key ed25519.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// parseCSR returns the key that a request was signed by; nothing else of it
// counts. Errors: ErrCorrupt, ErrUnsupported for a key of another kind.
func parseCSR(der []byte) (ed25519.PublicKey, error) {
	if len(der) > csrBytesMax {
		return nil, fmt.Errorf("%w: a request for a certificate of %d bytes", ErrCorrupt, len(der))
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: request for a certificate: %w", ErrCorrupt, err)
	}
	key, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: a request for a key that is not Ed25519", ErrUnsupported)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: request for a certificate: %w", ErrCorrupt, err)
	}
	return key, nil
}

// parseCert reads a certificate of ours in DER.
func parseCert(der []byte) (*x509.Certificate, error) {
	if len(der) > certBytesMax {
		return nil, fmt.Errorf("%w: a certificate of %d bytes", ErrCorrupt, len(der))
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate: %w", ErrCorrupt, err)
	}
	if _, ok := c.PublicKey.(ed25519.PublicKey); !ok {
		return nil, fmt.Errorf("%w: a certificate whose key is not Ed25519", ErrUnsupported)
	}
	return c, nil
}

// parseAuthorityCert is parseCert for a self-signed authority.
func parseAuthorityCert(der []byte) (*x509.Certificate, error) {
	c, err := parseCert(der)
	if err != nil {
		return nil, err
	}
	if !c.IsCA || c.CheckSignatureFrom(c) != nil {
		return nil, fmt.Errorf("%w: an authority's certificate that is not one", ErrCorrupt)
	}
	return c, nil
}
