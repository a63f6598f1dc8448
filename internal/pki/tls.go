package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
)

// ServerConfig is for those who serve members of these roles, of all if there is
// none: mutual TLS 1.3. The certificate and whom it believes are those of the
// identity at each handshake. A refused peer learns that it was, and the error of
// the handshake says why. It may be used by many listeners and changed before.
func (i *Identity) ServerConfig(roles ...Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is looked at below, by whom the identity believes at that time.
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // a ticket would outlive a revocation
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:       func(cs tls.ConnectionState) error { return i.verifyPeer(cs, roles, "") },
	}
}

// ClientConfig is for calls of a member of that role, and of that name if it is not
// empty. Names and addresses in the certificate do not matter: a member is known
// by its URI, wherever it is.
func (i *Identity) ClientConfig(role Role, name string) *tls.Config {
	return i.clientConfig([]Role{role}, name)
}

func (i *Identity) clientConfig(roles []Role, name string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		InsecureSkipVerify:   true, // of a host name; VerifyConnection does all the rest
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:     func(cs tls.ConnectionState) error { return i.verifyPeer(cs, roles, name) },
	}
}

// certificate is the one to show; an expired one would be refused at the other end,
// where nobody here can read why.
func (i *Identity) certificate() (*tls.Certificate, error) {
	s := i.current()
	if err := checkTime(i.self, s.cert.Leaf, i.now()); err != nil {
		return nil, err
	}
	return s.cert, nil
}

func (i *Identity) verifyPeer(cs tls.ConnectionState, roles []Role, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the peer has shown no certificate", ErrForeign)
	}
	m, err := i.current().trust.verify(cs.PeerCertificates[0], i.now())
	if err != nil {
		return err
	}
	if len(roles) > 0 && !slices.Contains(roles, m.Role) || name != "" && m.Name != name {
		return fmt.Errorf("%w: the peer is %s, expected: %v %s", ErrRole, m, roles, name)
	}
	return nil
}

// guarded is a connection that is cut when its peer is revoked.
type guarded struct {
	conn *tls.Conn
	peer *x509.Certificate
	cut  bool // guarded by Identity.mu
}

// Guard cuts the connection, whose handshake is done, once its peer is not believed
// any more: revoked, or of an authority that is gone. That it has expired does not
// count: a clock that jumps must not cut a cluster. It is done by whatever looks at
// the files next, [Identity.Keep] within a second. The caller calls release when it
// closes the connection; it reports whether it was cut. Errors: those of a peer that
// is not believed now.
func (i *Identity) Guard(c *tls.Conn) (release func() (cut bool), err error) {
	certs := c.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: the peer has shown no certificate", ErrForeign)
	}
	g := &guarded{conn: c, peer: certs[0]}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := i.state.trust.check(g.peer); err != nil { // since the handshake
		return nil, err
	}
	i.conns[g] = struct{}{}
	return sync.OnceValue(func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.conns, g)
		return g.cut
	}), nil
}

// Check says whether the peer of a connection is believed now, as Guard does.
func (i *Identity) Check(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the peer has shown no certificate", ErrForeign)
	}
	_, err := i.current().trust.check(cs.PeerCertificates[0])
	return err
}
