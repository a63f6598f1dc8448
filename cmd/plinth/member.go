package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/urfave/cli/v2"

	"plinth/datanode/wire"
	"plinth/internal/pki"
)

// member is who this process is: by an identity of plinth's authority, or by files.
type member struct {
	wire.Identity
	pool   [16]byte      // the cluster's
	member *pki.Identity // nil by files
	config *tls.Config   // by files
}

// memberOf reads memberFlags. The certificate must be of that role.
func memberOf(c *cli.Context, role wire.Role, log *slog.Logger) (*member, error) {
	m := &member{}
	var err error
	files := []string{c.String("cert"), c.String("key"), c.String("ca")}
	switch dir := c.String("identity"); {
	case dir != "" && files[0]+files[1]+files[2] != "":
		return nil, errors.New("--identity has certificate, key and authorities: leave --cert, --key and --ca out")
	case dir != "":
		if m.member, err = pki.Load(dir, log); err != nil {
			return nil, err
		}
		is := m.member.Self()
		m.Identity = wire.Identity{Cluster: is.Cluster.String(), Role: wire.Role(is.Role), Name: is.Name}
	default:
		if m.config, m.Identity, err = memberTLS(files[0], files[1], files[2]); err != nil {
			return nil, err
		}
	}
	if m.Role != role {
		return nil, fmt.Errorf("the certificate is a %s's, not a %s's", m.Role, role)
	}
	pool, err := hex.DecodeString(m.Cluster)
	if err != nil || len(pool) != len(m.pool) {
		return nil, fmt.Errorf("the certificate's cluster is %q, not the id of a pool: 32 hexadecimal digits", m.Cluster)
	}
	m.pool = [16]byte(pool)
	return m, nil
}

// keep renews the identity's certificate, until stop, which waits.
func (m *member) keep(ctx context.Context) (stop func()) {
	if m.member == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { m.member.Keep(ctx, pki.KeepOptions{}) })
	return func() {
		cancel()
		keeping.Wait()
	}
}

// memberTLS reads a member's certificate, key and authorities from files, and
// says who it is.
func memberTLS(cert, key, ca string) (*tls.Config, wire.Identity, error) {
	if cert == "" || key == "" || ca == "" {
		return nil, wire.Identity{}, errors.New("who this is must be given: --identity, or --cert, --key and --ca")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, wire.Identity{}, err
	}
	self, err := wire.IdentityOf(pair.Leaf)
	if err != nil {
		return nil, self, err
	}
	authorities, err := readAuthorities(ca)
	if err != nil {
		return nil, self, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: authorities, ClientCAs: authorities}, self, nil
}

// readAuthorities reads a file of certificates.
func readAuthorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return authorities, nil
}
