package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"plinth/datanode"
)

// Role is what a certificate lets its bearer be.
type Role string

const (
	RoleHost     Role = "host"
	RoleDataNode Role = "datanode"
	RoleAdmin    Role = "admin"
)

// Identity is who a certificate speaks for: its one URI of the form
// plinth://CLUSTER/ROLE/NAME.
type Identity struct {
	Cluster string
	Role    Role
	Name    string
}

func (i Identity) String() string {
	return fmt.Sprintf("plinth://%s/%s/%s", i.Cluster, i.Role, i.Name)
}

// IdentityOf reads the identity from a certificate that was verified. Error:
// datanode.ErrForbidden.
func IdentityOf(leaf *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range leaf.URIs {
		if u.Scheme == "plinth" {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Identity{}, datanode.Errorf(datanode.ErrForbidden, "certificate %q has %d plinth URIs, not one", leaf.Subject, len(found))
	}
	u := found[0]
	role, name, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	i := Identity{u.Host, Role(role), name}
	switch {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || i.String() != u.String():
		return Identity{}, datanode.Errorf(datanode.ErrForbidden, "certificate's URI %q is not of the form plinth://CLUSTER/ROLE/NAME", u)
	case i.Cluster == "" || name == "" || strings.Contains(name, "/") || len(u.String()) > nameBytesMax:
		return Identity{}, datanode.Errorf(datanode.ErrForbidden, "certificate's URI %q is not of the form plinth://CLUSTER/ROLE/NAME", u)
	case i.Role != RoleHost && i.Role != RoleDataNode && i.Role != RoleAdmin:
		return Identity{}, datanode.Errorf(datanode.ErrForbidden, "certificate's role %q is unknown", role)
	}
	return i, nil
}

// protocol is what both sides must name while TLS is negotiated.
const protocol = "plinth-datanode"

// serverTLS makes a server's settings strict: TLS 1.3, and a client's certificate
// under the settings' own authorities. Settings without authorities have a
// VerifyConnection that checks the chain itself. What a GetConfigForClient
// returns is made strict as well.
func serverTLS(base *tls.Config) (*tls.Config, error) {
	if base == nil {
		return nil, errors.New("a server of the wire needs TLS settings")
	}
	c := strict(base)
	switch {
	case base.ClientCAs != nil:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case base.VerifyConnection != nil:
		c.ClientAuth = tls.RequireAnyClientCert
	default:
		return nil, errors.New("TLS settings without authorities for clients")
	}
	if choose := base.GetConfigForClient; choose != nil {
		c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(h)
			if err != nil || chosen == nil {
				return nil, err // nil: c itself
			}
			chosen = chosen.Clone()
			chosen.GetConfigForClient = nil
			return serverTLS(chosen)
		}
	}
	return c, nil
}

// Guard is told of a connection whose handshake is done, and cuts it once its
// peer is not believed any more. release is called at the connection's end, and
// reports whether it was cut.
type Guard func(*tls.Conn) (release func() (cut bool), err error)

// watch calls a guard, if there is one.
func (g Guard) watch(t *tls.Conn) (release func() bool, err error) {
	if g == nil {
		return func() bool { return false }, nil
	}
	if release, err = g(t); err != nil {
		return nil, datanode.Errorf(datanode.ErrForbidden, "%v", err)
	}
	return release, nil
}

// clientTLS makes a client's settings strict: TLS 1.3, and a server's certificate
// under the settings' own authorities. A node is known by the URI in its
// certificate and not by an address, so crypto/tls's own check, which wants the
// address's name in it, is replaced. Settings without authorities have a
// VerifyConnection that checks the chain itself.
func clientTLS(base *tls.Config) (*tls.Config, error) {
	if base == nil {
		return nil, errors.New("a client of the wire needs TLS settings")
	}
	if len(base.Certificates) == 0 && base.GetClientCertificate == nil {
		return nil, errors.New("TLS settings without a client certificate")
	}
	if base.RootCAs == nil && base.VerifyConnection == nil {
		return nil, errors.New("TLS settings without authorities for data nodes")
	}
	c := strict(base)
	c.InsecureSkipVerify = true // verified below
	c.VerifyConnection = func(s tls.ConnectionState) error {
		var err error
		if base.RootCAs != nil {
			err = verifyServer(s, base)
		}
		if err == nil && base.VerifyConnection != nil {
			err = base.VerifyConnection(s)
		}
		if err != nil {
			return datanode.Errorf(datanode.ErrForbidden, "certificate of the node: %v", err)
		}
		return nil
	}
	return c, nil
}

func verifyServer(s tls.ConnectionState, base *tls.Config) error {
	between := x509.NewCertPool()
	for _, cert := range s.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	o := x509.VerifyOptions{Roots: base.RootCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if base.Time != nil {
		o.CurrentTime = base.Time()
	}
	_, err := s.PeerCertificates[0].Verify(o)
	return err
}

// strict returns a copy with what both sides need. Resumed sessions would keep
// alive what a certificate that was withdrawn has opened, and records of growing
// size cost a small frame nothing here.
func strict(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.MinVersion, c.MaxVersion = tls.VersionTLS13, 0
	c.NextProtos = []string{protocol}
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	c.DynamicRecordSizingDisabled = true
	return c
}

// peerOf returns who is at the other end of a connection whose handshake is
// done, if it belongs to the cluster.
func peerOf(t *tls.Conn, cluster string) (Identity, error) {
	s := t.ConnectionState()
	if s.NegotiatedProtocol != protocol || len(s.PeerCertificates) == 0 {
		return Identity{}, datanode.Errorf(datanode.ErrForbidden, "the peer does not speak %s", protocol)
	}
	i, err := IdentityOf(s.PeerCertificates[0])
	if err != nil {
		return i, err
	}
	if i.Cluster != cluster {
		return i, datanode.Errorf(datanode.ErrWrongCluster, "the peer is %s, this is cluster %s", i, cluster)
	}
	return i, nil
}
