package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/datanode/wire/wiretest"
)

// Each row is a client that a node does not let in, or that does not want the
// node, and what it is told.
func TestHandshakeRefusals(t *testing.T) {
	noLeaks(t)
	ca, other := newAuthority(t), newAuthority(t)
	node := newShelf(t)
	host := ca.host(t)
	for _, c := range []struct {
		name   string
		server func(*ServerOptions)
		client func(*ClientOptions)
		want   *datanode.Error
		text   string
	}{
		{"a certificate of another cluster", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{"c2", RoleHost, "h1"})
		}, datanode.ErrWrongCluster, "plinth://c2/host/h1"},
		{"a node of another cluster", func(o *ServerOptions) {
			o.TLS = ca.config(t, Identity{"c2", RoleDataNode, testNode})
		}, nil, datanode.ErrWrongCluster, "plinth://c2/datanode/n1"},
		{"a node that is a host", func(o *ServerOptions) { o.TLS = host }, nil, datanode.ErrForbidden, "no data node"},
		{"another node", nil, func(o *ClientOptions) { o.Node = "n2" }, datanode.ErrWrongCluster, "n2"},
		{"another pool", nil, func(o *ClientOptions) { o.Pool = [16]byte{8} }, datanode.ErrWrongCluster, "pool"},
		{"a role that may do nothing", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{testCluster, RoleDataNode, "n2"})
		}, datanode.ErrForbidden, "may not make any call"},
		{"an unknown role", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{testCluster, "guest", "g"})
		}, datanode.ErrForbidden, "role"},
		{"no identity", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{testCluster, RoleHost, "h"}, wiretest.URIs("https://c1/host/h"))
		}, datanode.ErrForbidden, "plinth URIs"},
		{"two identities", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{testCluster, RoleHost, "h"}, wiretest.URIs("plinth://c1/host/h", "plinth://c1/admin/h"))
		}, datanode.ErrForbidden, "plinth URIs"},
		{"a foreign authority of the client", nil, func(o *ClientOptions) {
			o.TLS = other.host(t)
			o.TLS.RootCAs = ca.Pool
		}, datanode.ErrForbidden, "refuses the certificate"},
		{"a foreign authority of the node", nil, func(o *ClientOptions) {
			o.TLS = ca.host(t)
			o.TLS.RootCAs = other.Pool
		}, datanode.ErrForbidden, "certificate of the node"},
		{"an expired certificate of the client", nil, func(o *ClientOptions) {
			o.TLS = ca.config(t, Identity{testCluster, RoleHost, "h"}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, datanode.ErrForbidden, "expired"},
		{"an expired certificate of the node", func(o *ServerOptions) {
			o.TLS = ca.config(t, Identity{testCluster, RoleDataNode, testNode}, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, nil, datanode.ErrForbidden, "expired"},
		{"a certificate that is withdrawn", func(o *ServerOptions) {
			o.TLS = ca.node(t)
			o.TLS.VerifyConnection = func(tls.ConnectionState) error { return errors.New("withdrawn") }
		}, nil, datanode.ErrForbidden, "refuses the certificate"},
		{"a node whose certificate is withdrawn", nil, func(o *ClientOptions) {
			o.TLS = ca.host(t)
			o.TLS.VerifyConnection = func(tls.ConnectionState) error { return errors.New("withdrawn") }
		}, datanode.ErrForbidden, "withdrawn"},
		{"a newer client", nil, func(o *ClientOptions) { o.versions = versions{VersionMax + 1, VersionMax + 3} },
			datanode.ErrVersion, "node speaks versions"},
		{"an older client", func(o *ServerOptions) { o.versions = versions{VersionMax + 1, VersionMax + 2} }, nil,
			datanode.ErrVersion, "node speaks versions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			so := ServerOptions{TLS: ca.node(t)}
			if c.server != nil {
				c.server(&so)
			}
			v := serve(t, node, so, "127.0.0.1:0")
			defer v.stop(t)
			co := ClientOptions{TLS: host, Paths: []string{v.address}}
			if c.client != nil {
				c.client(&co)
			}
			client, err := tryDial(co)
			if err == nil {
				_ = client.Close()
				t.Fatal("the client was let in")
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %q with %q", err, c.want.Text, c.text)
			}
		})
	}
}

// The newer side speaks the older's version.
func TestMixedVersions(t *testing.T) {
	noLeaks(t)
	ca, node := newAuthority(t), newShelf(t)
	for _, c := range []struct{ server, client versions }{
		{versions{1, 1}, versions{1, 4}},
		{versions{1, 4}, versions{1, 1}},
		{versions{1, 3}, versions{2, 4}},
	} {
		v := serve(t, node, ServerOptions{TLS: ca.node(t), versions: c.server}, "127.0.0.1:0")
		client := dial(t, ClientOptions{TLS: ca.host(t), Paths: []string{v.address}, versions: c.client})
		if _, err := client.Status(t.Context()); err != nil {
			t.Errorf("versions %v and %v: %v", c.server, c.client, err)
		}
		_ = client.Close()
		v.stop(t)
	}
}

// Settings that would let anybody in are refused before anything listens.
func TestLooseSettings(t *testing.T) {
	ca, node := newAuthority(t), newShelf(t)
	loose := ca.node(t)
	loose.ClientCAs = nil
	for _, c := range []*tls.Config{nil, loose} {
		if _, err := NewServer(t.Context(), node, ServerOptions{TLS: c, Cluster: testCluster, Name: testNode}); err == nil {
			t.Error("a server without authorities for clients was made")
		}
	}
	bare, trusting := ca.host(t), ca.host(t)
	bare.Certificates, trusting.RootCAs = nil, nil
	for _, c := range []*tls.Config{nil, bare, trusting} {
		if _, err := tryDial(ClientOptions{TLS: c, Paths: []string{"127.0.0.1:1"}}); err == nil || errors.Is(err, datanode.ErrUnreachable) {
			t.Errorf("a client was made: %v", err)
		}
	}
}

// Neither an old TLS, nor none, nor a client without a certificate gets to say
// anything.
func TestStrictTLS(t *testing.T) {
	noLeaks(t)
	ca, node := newAuthority(t), newShelf(t)
	v := serve(t, node, ServerOptions{TLS: ca.node(t)}, "127.0.0.1:0")
	defer v.stop(t)
	attempt := func(change func(*tls.Config)) error {
		o := ca.host(t)
		o.ServerName, o.NextProtos, o.InsecureSkipVerify = testNode, []string{protocol}, true
		change(o)
		c, err := tls.Dial("tcp", v.address, o)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1)) // the server waits for the hello
		return err
	}
	if err := attempt(func(o *tls.Config) { o.MaxVersion = tls.VersionTLS12 }); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("TLS 1.2: %v", err)
	}
	if err := attempt(func(o *tls.Config) { o.Certificates = nil }); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("no certificate: %v", err)
	}
	if err := attempt(func(o *tls.Config) { o.NextProtos = []string{"h2"} }); err == nil || !strings.Contains(err.Error(), "application protocol") {
		t.Errorf("another protocol: %v", err)
	}
	c, err := net.Dial("tcp", v.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(helloMagic + strings.Repeat("\x00", 100))); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if strings.Contains(string(b[:n]), welcomeMagic) {
			t.Fatal("the server answered without TLS")
		}
		if err != nil {
			break
		}
	}
}

func TestRolesBoundCalls(t *testing.T) {
	noLeaks(t)
	ca, node := newAuthority(t), newShelf(t)
	v := serve(t, node, ServerOptions{TLS: ca.node(t)}, "127.0.0.1:0")
	defer v.stop(t)
	c := dial(t, ClientOptions{TLS: ca.config(t, Identity{testCluster, RoleAdmin, "a"}), Paths: []string{v.address}})
	defer func() { _ = c.Close() }()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("an admin may ask for the status: %v", err)
	}
	if _, err := c.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: 1}); !errors.Is(err, datanode.ErrForbidden) {
		t.Errorf("an admin's Fence gave %v", err)
	}
	h := dial(t, ClientOptions{TLS: ca.host(t), Paths: []string{v.address}})
	defer func() { _ = h.Close() }()
	if reply, err := h.Fence(t.Context(), &datanode.FenceRequest{Disk: 1, Epoch: 1}); err != nil || reply.Previous != 0 {
		t.Errorf("a host's Fence after the admin's gave %+v, %v", reply, err)
	}
}

// A call that an older node does not know is not sent: it would hang up over it.
func TestCallOfNoFeature(t *testing.T) {
	b := newBench(t, ServerOptions{}, ClientOptions{})
	replace := func() error {
		return b.c.ReplaceSpindle(t.Context(), &datanode.ReplaceSpindleRequest{})
	}
	if err := replace(); !errors.Is(err, datanode.ErrInvalid) || !strings.Contains(err.Error(), "serves") {
		t.Errorf("at a node that knows it: %v", err)
	}
	b.c.mu.Lock()
	b.c.features = 0
	b.c.mu.Unlock()
	if err := replace(); !errors.Is(err, datanode.ErrInvalid) || !strings.Contains(err.Error(), "upgrade plinth") {
		t.Errorf("at an older one: %v", err)
	}
}
