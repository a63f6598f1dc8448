package pki

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

const (
	authorityFormat   = "plinth authority"
	authorityVersion  = 1
	authorityBytesMax = 8 << 20

	membersMax      = 1024 // far more than 128 hosts and 10 data nodes
	certsPerMember  = 8    // the newest of a member, of which a well-behaved one uses two
	tokensMax       = 256
	contactKeepTime = time.Hour // a contact that tells nothing new is stored that often
)

// authorityState is what authority.json holds. What it says is decided by its
// methods, from it and the time alone; Authority reads and writes it.
type authorityState struct {
	Format   string   `json:"format"`
	Version  int      `json:"version"`
	Cluster  Cluster  `json:"cluster"`
	Home     homeName `json:"home"`     // the member whose folder this is
	Lifetime int64    `json:"lifetime"` // of certificates, seconds
	// Sequence and Made are those of the trust document.
	Sequence    uint64           `json:"sequence"`
	Made        time.Time        `json:"made"`
	Authorities []authorityEntry `json:"authorities"` // the oldest first
	Issuer      int              `json:"issuer"`
	Members     []*memberEntry   `json:"members"`
	Tokens      []*tokenEntry    `json:"tokens"`
	Revoked     []Revocation     `json:"revoked"`

	authorities []*x509.Certificate
	keys        []ed25519.PrivateKey
}

type homeName struct {
	Role Role   `json:"role"`
	Name string `json:"name"`
}

type authorityEntry struct {
	Certificate []byte `json:"certificate"` // DER
	Seed        []byte `json:"seed"`        // of the private key, 32 bytes
	// Since is the first trust document that names it.
	Since uint64 `json:"since"`
}

// memberEntry is a member with certificates that have not expired.
type memberEntry struct {
	Role         Role        `json:"role"`
	Name         string      `json:"name"`
	SANs         SANs        `json:"sans"`
	Certificates []certEntry `json:"certificates"` // the newest last
	Seen         seenEntry   `json:"seen"`
}

type certEntry struct {
	Serial    string    `json:"serial"`
	Issued    time.Time `json:"issued"`
	Until     time.Time `json:"until"`
	Authority string    `json:"authority"` // fingerprint, 64 digits
}

// seenEntry is the last contact of a member: what it showed, and had.
type seenEntry struct {
	Serial   string    `json:"serial,omitempty"`
	Sequence uint64    `json:"sequence,omitempty"`
	At       time.Time `json:"at,omitzero"`
}

// tokenEntry is a token until it expires, used or not.
type tokenEntry struct {
	ID        string    `json:"id"`
	Secret    []byte    `json:"secret"`
	Authority string    `json:"authority"` // whose fingerprint it carries
	Role      Role      `json:"role"`
	Name      string    `json:"name"`
	SANs      SANs      `json:"sans"`
	Expires   time.Time `json:"expires"`
	Replace   bool      `json:"replace,omitempty"`
	// Used is the certificate that was made, so that the same key may ask again.
	Used []byte `json:"used,omitempty"`
}

func (f Fingerprint) full() string { return hex.EncodeToString(f[:]) }

// newAuthorityState begins a cluster with one authority.
func newAuthorityState(cluster Cluster, home Member, lifetime time.Duration, now time.Time) (*authorityState, error) {
	s := &authorityState{
		Format: authorityFormat, Version: authorityVersion, Cluster: cluster, Home: homeName{home.Role, home.Name},
		Lifetime: int64(lifetime / time.Second),
	}
	if err := s.addAuthority(now); err != nil {
		return nil, err
	}
	s.bump(now)
	return s, nil
}

func (s *authorityState) addAuthority(now time.Time) error {
	key := newKey()
	c, err := newAuthorityCert(s.Cluster, key, now)
	if err != nil {
		return err
	}
	s.authorities, s.keys = append(s.authorities, c), append(s.keys, key)
	s.Authorities = append(s.Authorities, authorityEntry{c.Raw, key.Seed(), s.nextSequence(now)})
	return nil
}

// nextSequence is the next trust document's: at least the time, so that an
// authority whose state was put back from a copy does not stay behind its members.
func (s *authorityState) nextSequence(now time.Time) uint64 {
	return max(s.Sequence+1, uint64(max(now.Unix(), 0)))
}

// bump makes a new trust document of what changed.
func (s *authorityState) bump(now time.Time) {
	s.Sequence, s.Made = s.nextSequence(now), now.UTC().Truncate(time.Second)
	if len(s.Revoked) < revokedMany {
		return // a clock that is wrong for a moment must not bring back whoever was revoked
	}
	s.Revoked = slices.DeleteFunc(s.Revoked, func(r Revocation) bool { return now.After(r.Until) })
}

// trustText is the trust document of the state: the same bytes each time, because
// Ed25519 draws nothing.
func (s *authorityState) trustText() ([]byte, error) {
	body := trustBody{
		Format: trustFormat, Version: trustVersion, Cluster: s.Cluster, Sequence: s.Sequence, Made: s.Made,
		Issuer: s.Issuer, Revoked: s.Revoked,
	}
	for _, a := range s.Authorities {
		body.Authorities = append(body.Authorities, a.Certificate)
	}
	return body.encode(s.authorities, s.keys)
}

func (s *authorityState) home() Member { return Member{s.Cluster, s.Home.Role, s.Home.Name} }

func (s *authorityState) lifetime() time.Duration { return time.Duration(s.Lifetime) * time.Second }

// parseAuthorityState reads and checks a state. Errors: ErrCorrupt, ErrUnsupported.
func parseAuthorityState(text []byte) (*authorityState, error) {
	s := &authorityState{}
	if err := decodeVersioned(text, authorityFormat, authorityVersion, s); err != nil {
		return nil, err
	}
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return s, nil
}

func (s *authorityState) validate() error {
	if n := len(s.Authorities); n < 1 || n > authoritiesMax || s.Issuer < 0 || s.Issuer >= n {
		return fmt.Errorf("%d authorities, of which %d is in use", n, s.Issuer)
	}
	for _, a := range s.Authorities {
		c, err := parseAuthorityCert(a.Certificate)
		if err != nil {
			return err
		}
		if len(a.Seed) != ed25519.SeedSize {
			return fmt.Errorf("an authority's key of %d bytes", len(a.Seed))
		}
		key := ed25519.NewKeyFromSeed(a.Seed)
		if !key.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
			return fmt.Errorf("the key of authority %s is of another", fingerprint(c))
		}
		s.authorities, s.keys = append(s.authorities, c), append(s.keys, key)
	}
	if l := s.lifetime(); s.Lifetime < 1 || s.Lifetime > int64(LifetimeMax/time.Second) || l > LifetimeMax {
		return fmt.Errorf("lifetime of %d s", s.Lifetime)
	}
	if len(s.Members) > membersMax || len(s.Tokens) > tokensMax || len(s.Revoked) > revokedMax {
		return fmt.Errorf("%d members, %d tokens, %d revocations: more than there may be", len(s.Members), len(s.Tokens), len(s.Revoked))
	}
	if err := s.home().Validate(); err != nil {
		return err
	}
	for _, m := range s.Members {
		if m == nil || len(m.Certificates) == 0 || len(m.Certificates) > certsPerMember {
			return fmt.Errorf("a member without certificates, or with more than %d", certsPerMember)
		}
		if err := (Member{s.Cluster, m.Role, m.Name}).Validate(); err != nil {
			return err
		}
		if err := m.SANs.validate(); err != nil {
			return err
		}
	}
	for _, t := range s.Tokens {
		if t == nil || len(t.Secret) != tokenSecretBytes {
			return fmt.Errorf("a token without a secret")
		}
		if err := (Member{s.Cluster, t.Role, t.Name}).Validate(); err != nil {
			return err
		}
		if err := t.SANs.validate(); err != nil {
			return err
		}
	}
	_, err := s.trust()
	return err
}

// trust is the state's trust document, read again.
func (s *authorityState) trust() (*trust, error) {
	text, err := s.trustText()
	if err != nil {
		return nil, err
	}
	return parseTrust(text)
}

// prune forgets what has expired.
func (s *authorityState) prune(now time.Time) {
	for _, m := range s.Members {
		m.Certificates = slices.DeleteFunc(m.Certificates, func(c certEntry) bool { return now.After(c.Until) })
	}
	s.Members = slices.DeleteFunc(s.Members, func(m *memberEntry) bool { return len(m.Certificates) == 0 })
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t *tokenEntry) bool { return now.After(t.Expires) })
}

// member returns a member's entry, or nil.
func (s *authorityState) member(m Member) *memberEntry {
	i := slices.IndexFunc(s.Members, func(e *memberEntry) bool { return e.Role == m.Role && e.Name == m.Name })
	if i < 0 {
		return nil
	}
	return s.Members[i]
}

// issue makes a certificate and writes it down.
func (s *authorityState) issue(m Member, sans SANs, key ed25519.PublicKey, now time.Time) (*x509.Certificate, error) {
	e := s.member(m)
	if e == nil {
		if len(s.Members) >= membersMax {
			return nil, fmt.Errorf("%w: %d members, more than there may be", ErrRefused, len(s.Members))
		}
		e = &memberEntry{Role: m.Role, Name: m.Name}
		s.Members = append(s.Members, e)
	}
	issued := now.UTC().Truncate(time.Second)
	for _, r := range s.Revoked { // later than what is revoked of this member
		if r.Role == m.Role && r.Name == m.Name && !issued.After(r.Before) {
			issued = r.Before.Add(time.Second)
		}
	}
	ca := s.authorities[s.Issuer]
	c, err := newLeaf(leaf{m, sans, key, issued, s.lifetime()}, ca, s.keys[s.Issuer])
	if err != nil {
		return nil, err
	}
	e.SANs = sans
	e.Certificates = append(e.Certificates, certEntry{serialText(c), issued, c.NotAfter, fingerprint(ca).full()})
	if n := len(e.Certificates); n > certsPerMember {
		e.Certificates = e.Certificates[n-certsPerMember:]
	}
	return c, nil
}

// contact notes the certificate that a member showed, and the trust document that
// it has. One that the state does not know, because it was put back from a copy, is
// taken up again. False: nothing worth storing.
func (s *authorityState) contact(m Member, c *x509.Certificate, sequence uint64, now time.Time) bool {
	serial := serialText(c)
	e := s.member(m)
	if e == nil {
		if len(s.Members) >= membersMax {
			return false
		}
		e = &memberEntry{Role: m.Role, Name: m.Name, SANs: *sansOf(c)}
		s.Members = append(s.Members, e)
	}
	if !slices.ContainsFunc(e.Certificates, func(k certEntry) bool { return k.Serial == serial }) {
		if len(e.Certificates) >= certsPerMember {
			return false
		}
		e.Certificates = slices.Insert(e.Certificates, 0, certEntry{serial, issuedAt(c).UTC(), c.NotAfter, s.authorityOf(c)})
	}
	sequence = min(sequence, s.Sequence)
	if e.Seen.Serial == serial && e.Seen.Sequence == sequence && now.Sub(e.Seen.At) < contactKeepTime {
		return false
	}
	e.Seen = seenEntry{serial, sequence, now.UTC().Truncate(time.Second)}
	return true
}

// authorityOf is the fingerprint of who made a certificate, "" for none that is
// believed.
func (s *authorityState) authorityOf(c *x509.Certificate) string {
	for _, a := range s.authorities {
		if c.CheckSignatureFrom(a) == nil {
			return fingerprint(a).full()
		}
	}
	return ""
}

// revoke takes back a certificate by its serial, or with "" all of a member's.
func (s *authorityState) revoke(m Member, serial string, now time.Time) error {
	s.bump(now) // which forgets what is over
	now = now.UTC().Truncate(time.Second)
	if len(s.Revoked) >= revokedMax {
		return fmt.Errorf("%w: %d revocations, more than there may be; wait until some are over", ErrRefused, len(s.Revoked))
	}
	e := s.member(m)
	r := Revocation{Serial: serial, Role: m.Role, Name: m.Name}
	if serial == "" { // this entry stands for all before it
		r.Before = now
		for _, old := range s.Revoked {
			if old.Role == m.Role && old.Name == m.Name && old.Before.After(r.Before) {
				r.Before = old.Before
			}
		}
		s.Revoked = slices.DeleteFunc(s.Revoked, func(r Revocation) bool { return r.Role == m.Role && r.Name == m.Name })
		s.Tokens = slices.DeleteFunc(s.Tokens, func(t *tokenEntry) bool { return t.Role == m.Role && t.Name == m.Name })
	}
	if e != nil {
		for _, c := range e.Certificates { // one that began later, after a revocation in this second
			if serial == "" && c.Issued.After(r.Before) {
				r.Before = c.Issued
			}
		}
		e.Certificates = slices.DeleteFunc(e.Certificates, func(c certEntry) bool { return serial == "" || c.Serial == serial })
	}
	s.Members = slices.DeleteFunc(s.Members, func(e *memberEntry) bool { return len(e.Certificates) == 0 })
	last := now
	if r.Before.After(last) {
		last = r.Before
	}
	r.Until = last.Add(s.lifetime() + skew + revokedKeep)
	s.Revoked = append(s.Revoked, r)
	return nil
}
