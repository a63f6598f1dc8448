package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Cluster names a cluster: the id of its pool.
type Cluster [16]byte

func (c Cluster) String() string { return hex.EncodeToString(c[:]) }

// MarshalText and UnmarshalText give it in files as String does.
func (c Cluster) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText takes 32 lower-case hexadecimal digits and nothing else.
func (c *Cluster) UnmarshalText(text []byte) error {
	var out Cluster
	if _, err := hex.Decode(out[:], text); err != nil || out.String() != string(text) {
		return fmt.Errorf("%w: %q is not the id of a cluster", ErrCorrupt, truncated(string(text)))
	}
	*c = out
	return nil
}

// Role is what a member may be asked for.
type Role string

// The roles of members.
const (
	RoleHost     Role = "host"
	RoleDataNode Role = "datanode"
	RoleAdmin    Role = "admin"
)

// Roles lists them.
var Roles = []Role{RoleHost, RoleDataNode, RoleAdmin}

// memberNameMax is what fits a DNS label, which names of machines are.
const memberNameMax = 63

// Member is who a certificate belongs to.
type Member struct {
	Cluster Cluster
	Role    Role
	Name    string
}

// String is ROLE/NAME, as people see a member.
func (m Member) String() string { return string(m.Role) + "/" + m.Name }

// URI is the one URI of the member's certificates: plinth://CLUSTER/ROLE/NAME.
func (m Member) URI() string {
	return uriScheme + m.Cluster.String() + "/" + string(m.Role) + "/" + m.Name
}

const uriScheme = "plinth://"

// Validate finds a role that there is not and a name that cannot be one: 1 to 63
// of a-z, 0-9, '-', '_' and '.', the first and last a letter or digit.
func (m Member) Validate() error {
	if !slices.Contains(Roles, m.Role) {
		return fmt.Errorf("role %q is none of %v", truncated(string(m.Role)), Roles)
	}
	ok := len(m.Name) > 0 && len(m.Name) <= memberNameMax
	for i, r := range []byte(m.Name) {
		inner := i > 0 && i < len(m.Name)-1
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || inner && (r == '-' || r == '_' || r == '.'))
	}
	if !ok {
		return fmt.Errorf("name %q of a %s is not 1 to %d of a-z, 0-9, '-', '_', '.', with a letter or digit at both ends", truncated(m.Name), m.Role, memberNameMax)
	}
	return nil
}

// parseURI is the reverse of Member.URI; every member has one spelling.
func parseURI(text string) (Member, error) {
	rest, ok := strings.CutPrefix(text, uriScheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return Member{}, fmt.Errorf("%q is not %sCLUSTER/ROLE/NAME", truncated(text), uriScheme)
	}
	m := Member{Role: Role(parts[1]), Name: parts[2]}
	if err := m.Cluster.UnmarshalText([]byte(parts[0])); err != nil {
		return Member{}, err
	}
	return m, m.Validate()
}

// memberOf returns whose certificate it is. It verifies nothing.
func memberOf(c *x509.Certificate) (Member, error) {
	if len(c.URIs) != 1 {
		return Member{}, fmt.Errorf("%w: the certificate names %d members, not one", ErrForeign, len(c.URIs))
	}
	m, err := parseURI(c.URIs[0].String())
	if err != nil {
		return Member{}, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return m, nil
}

// PeerOf returns who is at the other end of a connection that a config of an
// [Identity] verified. It verifies nothing itself. Error: ErrForeign if there is no
// certificate, or one that names no member.
func PeerOf(cs tls.ConnectionState) (Member, error) {
	if len(cs.PeerCertificates) == 0 {
		return Member{}, fmt.Errorf("%w: the peer has shown no certificate", ErrForeign)
	}
	return memberOf(cs.PeerCertificates[0])
}

func (m Member) url() *url.URL {
	return &url.URL{Scheme: "plinth", Host: m.Cluster.String(), Path: "/" + string(m.Role) + "/" + m.Name}
}

// truncated bounds what an error quotes of what others sent.
func truncated(s string) string {
	if len(s) > 2*memberNameMax {
		return s[:2*memberNameMax] + "…"
	}
	return s
}
