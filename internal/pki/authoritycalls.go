package pki

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"time"
)

func newCluster() (c Cluster) {
	rand.Read(c[:]) // never fails: the runtime ends the process instead
	return c
}

// CertInfo is a certificate that holds, as the authority knows it.
type CertInfo struct {
	Role      Role      `json:"role"`
	Name      string    `json:"name"`
	Serial    string    `json:"serial"`
	Issued    time.Time `json:"issued"`
	Until     time.Time `json:"until"`
	Authority string    `json:"authority"`
	InUse     bool      `json:"in_use"` // the one that the member showed last
	Seen      time.Time `json:"seen,omitzero"`
}

// TokenInfo is a token that has not expired.
type TokenInfo struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
	Used    bool      `json:"used"`
}

// Info is what an authority knows.
type Info struct {
	Cluster      Cluster      `json:"cluster"`
	Sequence     uint64       `json:"sequence"`
	Authorities  []string     `json:"authorities"` // the oldest first
	Issuer       string       `json:"issuer"`
	Certificates []CertInfo   `json:"certificates"`
	Tokens       []TokenInfo  `json:"tokens"`
	Revoked      []Revocation `json:"revoked"`
	Rotation     Rotation     `json:"rotation"`
}

// Info reads it.
func (a *Authority) Info() (*Info, error) {
	s, err := a.read()
	if err != nil {
		return nil, err
	}
	s.prune(a.now())
	out := &Info{Cluster: s.Cluster, Sequence: s.Sequence, Revoked: s.Revoked, Rotation: s.rotation(a.now())}
	for _, c := range s.authorities {
		out.Authorities = append(out.Authorities, fingerprint(c).String())
	}
	out.Issuer = out.Authorities[s.Issuer]
	for _, m := range s.Members {
		for _, c := range m.Certificates {
			info := CertInfo{m.Role, m.Name, c.Serial, c.Issued, c.Until, "", c.Serial == m.Seen.Serial, time.Time{}}
			if info.InUse {
				info.Seen = m.Seen.At
			}
			if len(c.Authority) >= 16 {
				info.Authority = c.Authority[:16]
			}
			out.Certificates = append(out.Certificates, info)
		}
	}
	for _, t := range s.Tokens {
		out.Tokens = append(out.Tokens, TokenInfo{t.ID, t.Role, t.Name, t.Expires, t.Used != nil})
	}
	return out, nil
}

var serialForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Revoke takes back a certificate by its serial, or with "" all that a member has,
// and the tokens that were made for its name. Members learn of it within their
// next fetch of the trust document. It reports whether the authority knew of any.
func (a *Authority) Revoke(role Role, name, serial string) (known bool, err error) {
	if serial != "" && !serialForm.MatchString(serial) {
		return false, fmt.Errorf("serial %q is not 32 hexadecimal digits in lower case", truncated(serial))
	}
	err = a.change(func(s *authorityState, now time.Time) error {
		m := Member{s.Cluster, role, name}
		if err := m.Validate(); err != nil {
			return err
		}
		if m == s.home() && serial == "" {
			return fmt.Errorf("%w: %s is the authority's own member: without it nobody could renew", ErrRefused, m)
		}
		e := s.member(m)
		known = e != nil && (serial == "" || slices.ContainsFunc(e.Certificates, func(c certEntry) bool { return c.Serial == serial }))
		known = known || serial == "" && slices.ContainsFunc(s.Tokens, func(t *tokenEntry) bool { return t.Role == role && t.Name == name })
		return s.revoke(m, serial, now)
	})
	return known, err
}

// Rotate takes the next step of a change of the authority. It does nothing where
// the step has to wait, unless forced; members for whom it should have waited may
// then have to join again. It returns the step that was taken, "" for none, and
// what is next.
func (a *Authority) Rotate(force bool) (Step, Rotation, error) {
	if err := a.homeFollows(); err != nil {
		return "", Rotation{}, err
	}
	var took Step
	var next Rotation
	err := a.change(func(s *authorityState, now time.Time) error {
		next = s.rotation(now)
		if len(next.Waits) > 0 && !force {
			return errUnchanged
		}
		if err := s.take(next.Next, now); err != nil {
			return err
		}
		took = next.Next
		return nil
	})
	if err == nil {
		err = a.homeFollows()
	}
	if err != nil {
		return took, next, err
	}
	if took != "" {
		s, err := a.read()
		if err != nil {
			return took, next, err
		}
		next = s.rotation(a.now())
	}
	return took, next, nil
}

// homeFollows gives the folder's own member a certificate of the authority that
// issues, if it has another's.
func (a *Authority) homeFollows() error {
	if err := a.contactHome(); err != nil {
		return err
	}
	s, err := a.read()
	if err != nil {
		return err
	}
	if m := s.member(s.home()); m != nil && m.uses(fingerprint(s.authorities[s.Issuer]).full()) {
		return nil
	}
	return a.RenewHome()
}

// AbortRotation takes an announced authority back.
func (a *Authority) AbortRotation() error {
	return a.change(func(s *authorityState, now time.Time) error { return s.abort(now) })
}
