package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestJoin(t *testing.T) {
	h := begin(t, InitOptions{Name: "root1"})
	sans, err := ParseSANs([]string{"dn1.example", "10.0.0.7", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	token, expires, err := h.CreateToken(TokenOptions{Role: RoleDataNode, Name: "dn1", SANs: sans, TTL: time.Minute})
	if err != nil || time.Until(expires) > time.Minute {
		t.Fatal(expires, err)
	}
	dir := filepath.Join(t.TempDir(), "dn1")
	parsed, err := ParseToken(token.Text())
	if err != nil {
		t.Fatal(err)
	}
	dn, err := Join(t.Context(), dir, JoinOptions{Token: parsed, Server: h.addr}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	leaf := dn.Leaf()
	if got := dn.Self().URI(); got != "plinth://"+h.admin.Self().Cluster.String()+"/datanode/dn1" || leaf.URIs[0].String() != got {
		t.Errorf("URI %s, %s", got, leaf.URIs)
	}
	if fmt.Sprint(leaf.DNSNames, leaf.IPAddresses) != "[dn1.example] [10.0.0.7 ::1]" {
		t.Errorf("names %v, addresses %v", leaf.DNSNames, leaf.IPAddresses)
	}
	if servers, err := dn.Servers(); err != nil || fmt.Sprint(servers) != "["+h.addr+"]" {
		t.Errorf("servers %v, %v", servers, err)
	}
	if err := dn.Renew(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	if got := dn.Leaf(); got.Equal(leaf) || fmt.Sprint(got.DNSNames) != "[dn1.example]" || leaf.PublicKey.(ed25519.PublicKey).Equal(got.PublicKey) {
		t.Errorf("renewed: %v", got.Subject)
	}
	info, err := h.Info()
	if err != nil || len(info.Certificates) != 3 || !info.Certificates[2].InUse || info.Certificates[2].Name != "dn1" {
		t.Errorf("the authority knows %+v, %v", info, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if f, err := e.Info(); err != nil || f.Mode().Perm() != 0o600 || e.Name() == joiningFile {
			t.Errorf("%s has mode %v, %v", e.Name(), f.Mode(), err)
		}
	}
}

// A token is for one key and one time.
func TestTokenUse(t *testing.T) {
	h := begin(t, InitOptions{})
	try := func(token Token) error {
		_, err := Join(t.Context(), filepath.Join(t.TempDir(), "m"), JoinOptions{Token: token, Server: h.addr}, quiet)
		return err
	}
	used := h.token(t, RoleHost, "h1")
	if err := try(used); err != nil {
		t.Fatal(err)
	}
	if err := try(used); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "used by another machine") {
		t.Errorf("used again: %v", err)
	}
	guess := h.token(t, RoleHost, "h2")
	guess.secret[3] ^= 1
	unknown := newToken(guess.Authority)
	first, second := try(guess), try(unknown)
	if !errors.Is(first, ErrRefused) || !errors.Is(second, ErrRefused) || first.Error() != second.Error() {
		t.Errorf("a wrong secret: %v; a wrong id: %v; the two must look alike", first, second)
	}
	guess.secret[3] ^= 1
	if err := try(guess); err != nil {
		t.Errorf("the right secret after a wrong one: %v", err)
	}
	late := h.token(t, RoleHost, "h3")
	h.clock.advance(TokenTTLDefault + time.Minute)
	if err := try(late); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("an expired token: %v", err)
	}
	h.clock.advance(-TokenTTLDefault - time.Minute)

	// Names that are in use, and two tokens for one.
	if _, _, err := h.CreateToken(TokenOptions{Role: RoleHost, Name: "h1"}); !errors.Is(err, ErrRefused) {
		t.Errorf("a name in use: %v", err)
	}
	one, two := h.token(t, RoleHost, "h4"), h.token(t, RoleHost, "h4")
	if err := try(one); err != nil {
		t.Fatal(err)
	}
	if err := try(two); !errors.Is(err, ErrRefused) {
		t.Errorf("the second token for one name: %v", err)
	}
	// Replaced: the old certificate is revoked.
	old := h.join(t, RoleHost, "h5")
	token, _, err := h.CreateToken(TokenOptions{Role: RoleHost, Name: "h5", Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Fetch(t.Context(), h.addr); err != nil {
		t.Errorf("before it is replaced: %v", err)
	}
	if err := try(token); err != nil {
		t.Fatal(err)
	}
	if err := old.Fetch(t.Context(), h.addr); !errors.Is(err, ErrRevoked) {
		t.Errorf("after it was replaced: %v", err)
	}
	// Revoking a name ends its tokens.
	gone := h.token(t, RoleHost, "h6")
	if known, err := h.Revoke(RoleHost, "h6", ""); !known || err != nil {
		t.Fatal(known, err)
	}
	if err := try(gone); !errors.Is(err, ErrRefused) {
		t.Errorf("a token of a revoked name: %v", err)
	}
}

// Ten wrong proofs end a token; of an unknown one nothing is kept.
func TestGuessing(t *testing.T) {
	h := begin(t, InitOptions{})
	right := h.token(t, RoleHost, "h1")
	wrong, unknown := right, newToken(right.Authority)
	wrong.secret[0] ^= 1
	for range wrongProofsMax {
		for _, token := range []Token{wrong, unknown} {
			if _, err := Join(t.Context(), filepath.Join(t.TempDir(), "m"), JoinOptions{Token: token, Server: h.addr}, quiet); !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
		}
	}
	if _, err := Join(t.Context(), filepath.Join(t.TempDir(), "m"), JoinOptions{Token: right, Server: h.addr}, quiet); !errors.Is(err, ErrRefused) {
		t.Errorf("the right secret after ten wrong ones: %v", err)
	}
}

// Who answers in place of the authority, or in between, learns nothing and gives
// nothing that is believed.
func TestManInTheMiddle(t *testing.T) {
	h, other := begin(t, InitOptions{}), begin(t, InitOptions{})
	token := h.token(t, RoleHost, "h1")
	join := func(server string) error {
		_, err := Join(t.Context(), filepath.Join(t.TempDir(), "m"), JoinOptions{Token: token, Server: server}, quiet)
		return err
	}
	if err := join(other.addr); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "somebody in between") {
		t.Errorf("another cluster's authority: %v", err)
	}
	// In between with a certificate of its own: it can pass the trust document on, and
	// is not believed after it.
	m := between(t, h.addr, other.admin)
	if err := join(m.addr); !errors.Is(err, ErrForeign) {
		t.Errorf("in between: %v", err)
	}
	// In between as a host of the cluster, which does not answer for the authority.
	host := h.join(t, RoleHost, "h9")
	m = between(t, h.addr, host)
	if err := join(m.addr); !errors.Is(err, ErrRole) {
		t.Errorf("in between as a host: %v", err)
	}
	// In between as a data node that has turned: the joiner talks to it, and what it
	// passes on proves nothing on its own connection.
	node := h.join(t, RoleDataNode, "dn9")
	m = between(t, h.addr, node)
	if err := join(m.addr); !errors.Is(err, ErrRefused) {
		t.Errorf("in between as a data node: %v", err)
	}
	if said := m.seen(); !strings.Contains(said, `"proof"`) {
		t.Fatalf("it saw no request: %q", said)
	} else if secret := token.Text(); strings.Contains(said, secret[20:60]) || strings.Contains(said, hex.EncodeToString(token.secret[:])) {
		t.Error("the secret crossed the network")
	}
	if err := join(h.addr); err != nil {
		t.Errorf("directly, after all that: %v", err)
	}
}

// relay ends TLS as one identity and passes on what it reads.
type relay struct {
	addr string
	mu   sync.Mutex
	b    strings.Builder
}

func (r *relay) seen() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func (r *relay) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func between(t *testing.T, addr string, as *Identity) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := as.ServerConfig()
	config.ClientAuth, config.VerifyConnection = tls.NoClientCert, nil
	r := &relay{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				down := tls.Server(c, config)
				up, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
				if err != nil || down.Handshake() != nil {
					return
				}
				defer up.Close()
				go func() { _, _ = io.Copy(io.MultiWriter(up, r), down) }()
				_, _ = io.Copy(down, up)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return r
}

// A captured request is worth nothing on another connection.
func TestReplay(t *testing.T) {
	h := begin(t, InitOptions{})
	token := h.token(t, RoleHost, "h1")
	csr, err := newCSR(newKey())
	if err != nil {
		t.Fatal(err)
	}
	exported := make([]byte, exporterBytes)
	q := joinRequest{wireVersion, hex.EncodeToString(token.ID[:]), csr, proof(token.secret[:], exported, csr)}
	if _, _, err := h.redeem(q, append([]byte{1}, exported[1:]...)); !errors.Is(err, ErrRefused) {
		t.Errorf("another connection: %v", err)
	}
	other, err := newCSR(newKey())
	if err != nil {
		t.Fatal(err)
	}
	q.CSR = other
	if _, _, err := h.redeem(q, exported); !errors.Is(err, ErrRefused) {
		t.Errorf("another key: %v", err)
	}
	q.CSR = csr
	first, _, err := h.redeem(q, exported)
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := h.redeem(q, exported); err != nil || !again.Equal(first) {
		t.Errorf("the same key again, whose answer was lost: %v", err)
	}
}

// The endpoint bounds what anybody may cost.
func TestEndpointLimits(t *testing.T) {
	h := begin(t, InitOptions{})
	s := NewServer(h.Authority, h.admin, quiet)
	addr := h.serve(t, s)
	s.limits.mu.Lock()
	s.limits.burst = requestBurst
	s.limits.rate = 1
	s.limits.mu.Unlock()
	config := &tls.Config{InsecureSkipVerify: true}
	status := func(method, path, body string) int {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		p.Body.Close()
		return p.StatusCode
	}
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", pathTrust, "", 200}, {"GET", pathTrust + "?have=x", "", 403}, {"POST", pathJoin, "{", 403},
		{"POST", pathJoin, `{"version":2}`, 403}, {"POST", pathJoin, strings.Repeat(" ", requestBytesMax+1), 403},
		{"POST", pathRenew, `{"version":1,"csr":""}`, 403}, {"GET", "/", "", 404}, {"GET", pathJoin, "", 405},
	} {
		if got := status(c.method, c.path, c.body); got != c.want {
			t.Errorf("%s %s %.20q: status %d, want %d", c.method, c.path, c.body, got, c.want)
		}
	}
	asked := 0 // more than the burst, as some come back while they are asked
	for asked < 20*requestBurst && status("GET", pathTrust, "") != http.StatusTooManyRequests {
		asked++
	}
	if asked < requestBurst/2 || asked == 20*requestBurst {
		t.Errorf("one address may ask %d times", asked)
	}
	// Connections that say nothing.
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	closed := 0
	for range connsPerAddress + 8 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	for _, c := range open[connsPerAddress:] {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		var timeout net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) {
			closed++
		}
	}
	if closed != 8 {
		t.Errorf("%d of 8 connections too many were closed", closed)
	}
}

func TestLimitsForget(t *testing.T) {
	l, now := newLimits(), time.Now()
	for i := range 3 * addressesMax {
		remote := fmt.Sprintf("10.%d.%d.%d:1", i>>16&255, i>>8&255, i&255)
		l.request(remote, now)
		if i%addressesMax == addressesMax-1 {
			now = now.Add(time.Minute)
		}
	}
	if n := len(l.from); n > addressesMax {
		t.Errorf("%d addresses are remembered", n)
	}
	if l.request("10.255.255.255:1", now.Add(time.Minute)) != true {
		t.Error("a new address is refused though all others are idle")
	}
	if source("[2001:db8::1]:1") != source("[2001:db8::ffff:2]:9") || source("[2001:db8:0:1::1]:1") == source("[2001:db8::1]:1") {
		t.Error("a network of IPv6 is not one source")
	}
}

// An answer that does not come ends with the context.
func TestCallEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Join(ctx, filepath.Join(t.TempDir(), "m"), JoinOptions{Server: l.Addr().String()}, quiet); err == nil {
		t.Error("joined nobody")
	}
}
