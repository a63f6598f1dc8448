package nbdtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth/nbd/internal/wire"
)

// Authority signs certificates of a test.
type Authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes one with a key of its own.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.cert, a.key = a.sign(a.cert)
	return a
}

// sign signs with the authority's key, or the certificate's own if there is
// none yet.
func (a *Authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

// Write makes a certificate for 127.0.0.1 and localhost under a common name,
// valid until end, and writes it and its key as dir/role-cert.pem and
// dir/role-key.pem, beside the authority's own as dir/ca-cert.pem: as QEMU and
// libnbd look for them. role is server or client.
func (a *Authority) Write(dir, role, name string, end time.Time) {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem":      {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		role + "-cert.pem": {Type: "CERTIFICATE", Bytes: cert.Raw},
		role + "-key.pem":  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// ClientTLS reads what Write wrote for a client; without a certificate there
// it shows none.
func ClientTLS(t testing.TB, dir string) *tls.Config {
	t.Helper()
	c := &tls.Config{ServerName: "127.0.0.1", RootCAs: x509.NewCertPool()}
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil || !c.RootCAs.AppendCertsFromPEM(ca) {
		t.Fatalf("authority in %s: %v", dir, err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if err == nil {
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// DialTLS starts TLS on conn, and returns a connection that begins with the
// server's greeting again: so that what speaks no TLS can be tried on it.
func DialTLS(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	b := make([]byte, 18+wire.OptionReplyHeaderBytes)
	_, err := io.ReadFull(conn, b[:18])
	if err == nil {
		_, err = conn.Write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00"))
	}
	if err == nil {
		_, err = io.ReadFull(conn, b[18:])
	}
	c := tls.Client(conn, config)
	if err == nil {
		err = c.HandshakeContext(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &greeted{Conn: c, greeting: b[:18], skip: 4}, nil
}

type greeted struct {
	*tls.Conn
	greeting []byte // still to be read
	skip     int    // bytes of the client's flags, still to be written
}

func (g *greeted) Read(p []byte) (int, error) {
	if len(g.greeting) > 0 {
		n := copy(p, g.greeting)
		g.greeting = g.greeting[n:]
		return n, nil
	}
	return g.Conn.Read(p)
}

func (g *greeted) Write(p []byte) (int, error) {
	k := min(g.skip, len(p))
	g.skip -= k
	n, err := g.Conn.Write(p[k:])
	return n + k, err
}
