package pki

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPeers(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1")
	meet(t, dn, h1)
	meet(t, h1, dn)
	meet(t, dn, h.admin)

	s, c := pair(t)
	server, client := tls.Server(s, dn.ServerConfig(RoleHost)), tls.Client(c, h1.ClientConfig(RoleDataNode, "dn1"))
	go func() { _ = echo(server) }()
	if err := ask(client); err != nil {
		t.Fatal(err)
	}
	for conn, want := range map[*tls.Conn]*Identity{server: h1, client: dn} {
		if m, err := PeerOf(conn.ConnectionState()); m != want.Self() || err != nil {
			t.Errorf("peer %v, %v, want %v", m, err, want.Self())
		}
		if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("TLS version %#x", v)
		}
	}
	if _, err := PeerOf(tls.ConnectionState{}); !errors.Is(err, ErrForeign) {
		t.Errorf("nobody: %v", err)
	}
}

// Who is refused, by whom, and with what words.
func TestRefusals(t *testing.T) {
	h, other := begin(t, InitOptions{}), begin(t, InitOptions{})
	same := begin(t, InitOptions{Cluster: h.admin.Self().Cluster}) // another authority that says it is ours
	dn, h1 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1")
	for name, c := range map[string]struct {
		server, client *tls.Config
		serverErr      error
		clientErr      error
	}{
		"another cluster's host":          {dn.ServerConfig(), other.join(t, RoleHost, "h1").ClientConfig(RoleDataNode, ""), nil, ErrForeign},
		"another cluster's host, blindly": {dn.ServerConfig(), blind(other.join(t, RoleHost, "h2")), ErrForeign, nil},
		"another authority's host":        {dn.ServerConfig(), blind(same.join(t, RoleHost, "h1")), ErrForeign, nil},
		"another authority's data node":   {same.join(t, RoleDataNode, "dn1").ServerConfig(), h1.ClientConfig(RoleDataNode, ""), nil, ErrForeign},
		"no certificate":                  {dn.ServerConfig(), &tls.Config{InsecureSkipVerify: true}, errAny, nil},
		"TLS 1.2":                         {dn.ServerConfig(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, errAny, nil},
		"a host where admins may":         {dn.ServerConfig(RoleAdmin, RoleDataNode), h1.ClientConfig(RoleDataNode, ""), ErrRole, nil},
		"another role":                    {dn.ServerConfig(), h1.ClientConfig(RoleAdmin, ""), nil, ErrRole},
		"another name":                    {dn.ServerConfig(), h1.ClientConfig(RoleDataNode, "dn2"), nil, ErrRole},
	} {
		s, cl := talk(t, c.server, c.client)
		if s == nil || cl == nil || !is(s, c.serverErr) || !is(cl, c.clientErr) {
			t.Errorf("%s: server %v, client %v", name, s, cl)
		}
	}
}

var errAny = errors.New("any")

// is reports whether err is want; nil and errAny say nothing.
func is(err, want error) bool { return want == nil || want == errAny || errors.Is(err, want) }

// blind is a client that believes every server.
func blind(i *Identity) *tls.Config {
	c := i.ClientConfig(RoleHost, "")
	c.VerifyConnection = nil
	return c
}

func TestClocks(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1")
	for _, c := range []struct {
		offset time.Duration // of the data node's clock
		want   error
	}{
		{0, nil}, {-skew + 10*time.Second, nil}, {skew, nil}, {LifetimeDefault - time.Minute, nil},
		{-skew - 10*time.Second, ErrNotYetValid}, {LifetimeDefault + time.Minute, ErrExpired},
	} {
		// Its own certificate is not the question here, and its trust document neither.
		dn.now = func() time.Time { return time.Now().Add(c.offset) }
		server := dn.ServerConfig()
		server.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return dn.current().cert, nil }
		s, cl := talk(t, server, h1.ClientConfig(RoleDataNode, ""))
		if !errors.Is(s, c.want) || (cl == nil) != (c.want == nil) {
			t.Errorf("clock %s: server %v, client %v, want %v", c.offset, s, cl, c.want)
		}
		if c.want != nil && !strings.Contains(s.Error(), "set the clock") {
			t.Errorf("clock %s: %v does not say what to do", c.offset, s)
		}
	}
	// Who has expired says so itself.
	dn.now = time.Now
	h1.now = func() time.Time { return time.Now().Add(LifetimeDefault + time.Hour) }
	if _, err := talk(t, dn.ServerConfig(), h1.ClientConfig(RoleDataNode, "")); !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "join again") {
		t.Errorf("the client's own: %v", err)
	}
}

// Revoked members cannot come, and those who are there are cut; others stay.
func TestRevocation(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1, h2 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1"), h.join(t, RoleHost, "h2")
	type live struct {
		client  *tls.Conn
		release func() bool
		ended   chan error
	}
	connect := func(i *Identity) live {
		s, c := pair(t)
		server, l := tls.Server(s, dn.ServerConfig()), live{client: tls.Client(c, i.ClientConfig(RoleDataNode, "")), ended: make(chan error, 1)}
		go func() { _ = l.client.Handshake() }()
		if err := server.Handshake(); err != nil {
			t.Fatal(err)
		}
		var err error
		if l.release, err = dn.Guard(server); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, err := io.Copy(server, server)
			l.ended <- err
		}()
		if err := ask(l.client); err != nil {
			t.Fatal(err)
		}
		return l
	}
	one, two := connect(h1), connect(h2)
	if known, err := h.Revoke(RoleHost, "h1", ""); !known || err != nil {
		t.Fatal(known, err)
	}
	meet(t, dn, h1) // until it has heard
	if err := dn.Fetch(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	select {
	case <-one.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the revoked host's connection lives")
	}
	if !one.release() {
		t.Error("it is not said that it was cut")
	}
	if err := ask(one.client); err == nil {
		t.Error("the revoked host goes on")
	}
	if err := ask(two.client); err != nil || two.release() {
		t.Errorf("the other host was cut, too: %v", err)
	}
	two.client.Close()
	s, c := talk(t, dn.ServerConfig(), h1.ClientConfig(RoleDataNode, ""))
	if !errors.Is(s, ErrRevoked) || c == nil {
		t.Errorf("server %v, client %v", s, c)
	}
	if err := h1.Fetch(t.Context(), h.addr); !errors.Is(err, ErrRevoked) {
		t.Errorf("the revoked host fetches: %v", err)
	}
	if err := h1.Renew(t.Context(), h.addr); !errors.Is(err, ErrRevoked) {
		t.Errorf("the revoked host renews: %v", err)
	}
	// A new token lets the name back in, at once, and not the old certificate.
	again := h.join(t, RoleHost, "h1")
	meet(t, dn, again)
	if s, _ := talk(t, dn.ServerConfig(), h1.ClientConfig(RoleDataNode, "")); !errors.Is(s, ErrRevoked) {
		t.Errorf("the old certificate: %v", s)
	}
	// By serial, one of two.
	before := h2.current()
	old := h2.ClientConfig(RoleDataNode, "")
	old.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return before.cert, nil }
	if err := h2.Renew(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	if known, err := h.Revoke(RoleHost, "h2", serialText(before.cert.Leaf)); !known || err != nil {
		t.Fatal(known, err)
	}
	if err := dn.Fetch(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	meet(t, dn, h2)
	if s, _ := talk(t, dn.ServerConfig(), old); !errors.Is(s, ErrRevoked) {
		t.Errorf("the revoked serial: %v", s)
	}
}

// Members that renew and meet all the time never refuse each other.
func TestRenewUnderLoad(t *testing.T) {
	h := begin(t, InitOptions{})
	dn := h.join(t, RoleDataNode, "dn1")
	hosts := []*Identity{h.join(t, RoleHost, "h1"), h.join(t, RoleHost, "h2"), h.join(t, RoleHost, "h3")}
	server := dn.ServerConfig(RoleHost)
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for _, host := range hosts {
		client := host.ClientConfig(RoleDataNode, "dn1")
		wg.Go(func() {
			for range 15 {
				if s, c := talk(t, server, client); s != nil || c != nil {
					errs <- fmt.Errorf("server %w, client %w", s, c)
					return
				}
			}
		})
		wg.Go(func() {
			for range 6 {
				if err := host.Renew(t.Context(), h.addr); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 6 {
			if err := dn.Renew(t.Context(), h.addr); err != nil {
				errs <- err
				return
			}
		}
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	info, err := h.Info()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(info.Certificates); n != 1+4*7 {
		t.Errorf("%d certificates are known, not those of four members and an admin", n)
	}
}
