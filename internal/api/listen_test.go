package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tempDir returns a folder whose path is short enough for sockets.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantText requires an error with the text.
func wantText(t *testing.T, what string, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v; want an error with %q", what, err, text)
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]Address{
		"unix:/run/p.sock": {Unix: "/run/p.sock"}, "unix:p": {Unix: "p"}, "127.0.0.1:80": {TCP: "127.0.0.1:80"},
		"[::1]:0": {TCP: "[::1]:0"}, "localhost:65535": {TCP: "localhost:65535"}, ":80": {TCP: ":80"},
	} {
		if got, err := ParseAddress(text); err != nil || got != want || got.String() != text {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "unix:", "host", "host:", "host:http", "host:65536", "host:-1", "::1:80", "/run/p.sock"} {
		if got, err := ParseAddress(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	dir := tempDir(t)
	for _, path := range []string{filepath.Join(dir, "s"), filepath.Join(dir, strings.Repeat("x", socketPathMax-len(dir)-1))} {
		l, err := ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o600 || l.Addr().String() != path {
			t.Fatalf("%s: mode %v, address %s, %v", path, info.Mode(), l.Addr(), err)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		_, err = ListenUnix(path)
		wantText(t, "a socket in use", err, "another process listens")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s stays after Close: %v", path, err)
		}
	}
	_, err := ListenUnix(filepath.Join(dir, strings.Repeat("x", socketPathMax-len(dir))))
	wantText(t, "a long path", err, "choose a shorter one")
	_, err = ListenUnix(write(t, filepath.Join(dir, "file"), "mine", 0o600))
	wantText(t, "a file", err, "is not a socket")
	_, err = ListenUnix(filepath.Join(dir, "none", "s"))
	wantText(t, "no folder", err, "no such file")

	// What a dead process left is replaced.
	stale := filepath.Join(dir, "stale")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := ListenUnix(stale)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if names, err := filepath.Glob(filepath.Join(dir, ".s*")); err != nil || len(names) > 0 {
		t.Errorf("private folders stay: %q, %v", names, err)
	}
}

func TestToken(t *testing.T) {
	dir := tempDir(t)
	path := filepath.Join(dir, "token")
	token, err := LoadToken(path)
	if err != nil || len(token) != 64 {
		t.Fatalf("a new token: %q, %v", token, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("its file: %v, %v", info.Mode(), err)
	}
	if again, err := LoadToken(path); err != nil || again != token {
		t.Errorf("read again: %q, %v", again, err)
	}
	s := newServer(t)
	s.RequireToken(token)
	a := s.serve(t, Address{TCP: "127.0.0.1:0"}, ListenOptions{})
	if _, err := client(t, a, ClientOptions{Token: token}).Status(t.Context()); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{"", token[1:], token + "0", strings.ToUpper(token)} {
		_, err := client(t, a, ClientOptions{Token: wrong}).Status(t.Context())
		wantText(t, "a wrong token", err, "--token-file")
	}
	for _, path := range []string{prefix + "/status", prefix + "/openapi.json", "/metrics", "/"} {
		resp := s.ask("GET", path, "")
		wantError(t, path, resp, http.StatusUnauthorized, "unauthorized")
		if resp.Header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s does not say how to authenticate", path)
		}
	}
	for content, want := range map[string]string{"": "fewer than", "short": "fewer than", strings.Repeat("x", 5000): "at most"} {
		_, err := LoadToken(write(t, filepath.Join(dir, "bad"), content, 0o600))
		wantText(t, "a bad token", err, want)
	}
	open := write(t, filepath.Join(dir, "open"), token, 0o600)
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = LoadToken(open)
	wantText(t, "a token open to others", err, "chmod 600")
}

func TestTLS(t *testing.T) {
	dir := tempDir(t)
	cert, key := certificate(t, dir)
	for _, c := range []struct {
		addr string
		opts ListenOptions
		want string
	}{
		{"0.0.0.0:0", ListenOptions{}, "needs TLS"},
		{":0", ListenOptions{}, "needs TLS"},
		{"192.0.2.1:0", ListenOptions{}, "needs TLS"},
		{"127.0.0.1:0", ListenOptions{CertFile: cert}, "both"},
		{"127.0.0.1:0", ListenOptions{KeyFile: key}, "both"},
		{"127.0.0.1:0", ListenOptions{CertFile: key, KeyFile: cert}, "API certificate"},
		{"127.0.0.1:0", ListenOptions{CertFile: filepath.Join(dir, "none"), KeyFile: key}, "no such file"},
	} {
		l, err := Listen(Address{TCP: c.addr}, c.opts)
		wantText(t, c.addr, err, c.want)
		if err == nil {
			l.Close()
		}
	}
	s := newServer(t)
	a := s.serve(t, Address{TCP: "127.0.0.1:0"}, ListenOptions{CertFile: cert, KeyFile: key})
	if _, err := client(t, a, ClientOptions{CAFile: cert}).Status(t.Context()); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	if _, err := client(t, a, ClientOptions{}).Status(t.Context()); err == nil {
		t.Error("a TLS server answers in the clear")
	}
	other, _ := certificate(t, tempDir(t))
	_, err := client(t, a, ClientOptions{CAFile: other}).Status(t.Context())
	wantText(t, "another authority", err, "certificate")
	_, err = NewClient(a, ClientOptions{CAFile: filepath.Join(dir, "none")})
	wantText(t, "no authority", err, "no such file")
	_, err = NewClient(a, ClientOptions{CAFile: key})
	wantText(t, "a key for an authority", err, "none in")
}

// certificate writes one for 127.0.0.1 and its key.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = write(t, filepath.Join(dir, "cert"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o600)
	key = write(t, filepath.Join(dir, "key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})), 0o600)
	return cert, key
}
