package pki

import (
	"fmt"
	"slices"
	"time"
)

// Step is one of the three that change a cluster's authority.
type Step string

// The steps, in their order.
const (
	// StepAnnounce: a new authority, which everybody learns to believe. The old one
	// issues.
	StepAnnounce Step = "announce"
	// StepSwitch: the new one issues, and members renew. It waits until every member
	// believes the new one: whoever has a new certificate is then taken by all.
	StepSwitch Step = "switch"
	// StepRetire: the old one is not believed any more. It waits until every member
	// uses a certificate of the new one, and for tokens that name the old one.
	StepRetire Step = "retire"
)

// Rotation says where a change of the authority stands.
type Rotation struct {
	Next Step `json:"next"`
	// Waits are those for whom the next step waits, in words.
	Waits []string `json:"waits"`
}

// rotation decides what comes next and for whom it waits.
func (s *authorityState) rotation(now time.Time) Rotation {
	switch {
	case len(s.Authorities) == 1:
		return Rotation{Next: StepAnnounce}
	case s.Issuer == 0:
		return Rotation{StepSwitch, s.waits(now, func(m *memberEntry) string {
			if m.Seen.Sequence < s.Authorities[1].Since {
				return "has not fetched the new authority"
			}
			return ""
		})}
	}
	r := Rotation{StepRetire, s.waits(now, func(m *memberEntry) string {
		if !m.uses(fingerprint(s.authorities[1]).full()) {
			return "does not use a certificate of the new authority"
		}
		return ""
	})}
	for _, t := range s.Tokens {
		if t.Used == nil && now.Before(t.Expires) && t.Authority != fingerprint(s.authorities[1]).full() {
			r.Waits = append(r.Waits, fmt.Sprintf("%s/%s: a token with the old authority expires at %s", t.Role, t.Name, stamp(t.Expires)))
		}
	}
	return r
}

// uses reports whether the certificate that the member showed last is of that
// authority. One it was given and has not shown may never have arrived.
func (m *memberEntry) uses(authority string) bool {
	return slices.ContainsFunc(m.Certificates, func(c certEntry) bool {
		return c.Serial == m.Seen.Serial && c.Authority == authority
	})
}

func (s *authorityState) waits(now time.Time, lacks func(*memberEntry) string) []string {
	var out []string
	for _, m := range s.Members {
		last := m.Certificates[len(m.Certificates)-1].Until
		if what := lacks(m); what != "" && now.Before(last) {
			out = append(out, fmt.Sprintf("%s/%s: %s (last contact: %s; its certificate ends at %s)", m.Role, m.Name, what, m.Seen.when(), stamp(last)))
		}
	}
	slices.Sort(out)
	return out
}

func (e seenEntry) when() string {
	if e.At.IsZero() {
		return "never"
	}
	return stamp(e.At)
}

// take takes the step, whoever it should wait for.
func (s *authorityState) take(step Step, now time.Time) error {
	switch step {
	case StepAnnounce:
		if err := s.addAuthority(now); err != nil {
			return err
		}
	case StepSwitch:
		s.Issuer = 1
	case StepRetire:
		gone := fingerprint(s.authorities[0]).full()
		s.authorities, s.keys, s.Authorities, s.Issuer = s.authorities[1:], s.keys[1:], s.Authorities[1:], 0
		for _, m := range s.Members {
			m.Certificates = slices.DeleteFunc(m.Certificates, func(c certEntry) bool { return c.Authority == gone })
		}
		s.Members = slices.DeleteFunc(s.Members, func(m *memberEntry) bool { return len(m.Certificates) == 0 })
		s.Tokens = slices.DeleteFunc(s.Tokens, func(t *tokenEntry) bool { return t.Used == nil && t.Authority == gone })
	}
	s.bump(now)
	return nil
}

// abort takes an announcement back. After the switch there is no way back but
// another change.
func (s *authorityState) abort(now time.Time) error {
	if len(s.Authorities) == 1 {
		return fmt.Errorf("%w: no change of the authority is under way", ErrRefused)
	}
	if s.Issuer != 0 {
		return fmt.Errorf("%w: the new authority issues already; finish the change and begin another", ErrRefused)
	}
	gone := fingerprint(s.authorities[1]).full()
	s.authorities, s.keys, s.Authorities = s.authorities[:1], s.keys[:1], s.Authorities[:1]
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t *tokenEntry) bool { return t.Used == nil && t.Authority == gone })
	s.bump(now)
	return nil
}
