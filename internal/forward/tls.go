package forward

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"plinth/internal/keyring"
)

// peerName is the name that every host's certificate has beside its own.
const peerName = "peer.plinth"

// TLS returns what both ends of a connection between hosts of a pool use. host is
// the name of this one, for its peers' logs; speaks is [Speaks], or less.
func TLS(pool *keyring.Pool, host string, speaks Versions) (*tls.Config, error) {
	signer := pool.PeerKey()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "plinth pool " + pool.ID().String()},
		NotBefore:    time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // no expiry: RFC 5280, 4.1.2.5
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, signer.Public(), signer)
	if err == nil {
		authority, err = x509.ParseCertificate(der)
	}
	if err != nil {
		return nil, fmt.Errorf("make the authority of peers: %w", err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for peers: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a certificate for peers: %w", err)
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{peerName},
		URIs:      []*url.URL{speaks.uri()},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err = x509.CreateCertificate(rand.Reader, leaf, authority, public, signer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate for peers: %w", err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make a certificate for peers: %w", err)
	}
	trust := x509.NewCertPool()
	trust.AddCert(authority)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}},
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := speaks.agree(s)
			return err
		},
		RootCAs: trust, ClientCAs: trust, ServerName: peerName,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}, nil
}
