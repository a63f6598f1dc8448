package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	identityBytesMax = 16 << 10
	memberBytesMax   = 16 << 10
	// lookTime is the least time between two looks at the files.
	lookTime = time.Second

	pemKey  = "PRIVATE KEY"
	pemCert = "CERTIFICATE"
)

// Identity is a member's certificate and whom it believes, as its folder has them:
// changes of the files hold from a second later on, for all configs. It starts
// nothing; [Identity.Keep] renews it and follows what is revoked.
type Identity struct {
	dir  string
	log  *slog.Logger
	now  func() time.Time
	self Member

	mu     sync.Mutex
	state  *credentials
	looked time.Time
	tried  [2]os.FileInfo // what the files were before they were last read
	conns  map[*guarded]struct{}
}

// credentials are one state of an identity. They do not change.
type credentials struct {
	cert  *tls.Certificate // with Leaf
	trust *trust
}

// Load reads the identity of a folder. An expired one is loaded: what it is for
// fails, with an error that says so. Errors: ErrNoIdentity, ErrPermissions,
// ErrCorrupt, ErrUnsupported, ErrForeign for files that do not go together.
func Load(dir string, log *slog.Logger) (*Identity, error) {
	i := &Identity{dir: dir, log: log, now: time.Now, tried: statIdentity(dir), conns: map[*guarded]struct{}{}}
	var err error
	if i.state, err = loadCredentials(dir); err != nil {
		return nil, err
	}
	if i.self, err = memberOf(i.state.cert.Leaf); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, identityFile), err)
	}
	i.looked = i.now()
	return i, nil
}

// Self is who the identity is.
func (i *Identity) Self() Member { return i.self }

// Leaf is the certificate in use.
func (i *Identity) Leaf() *x509.Certificate { return i.current().cert.Leaf }

func loadCredentials(dir string) (*credentials, error) {
	if err := checkDir(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = noIdentity(dir)
		}
		return nil, err
	}
	path := filepath.Join(dir, identityFile)
	text, err := readPrivate(path, identityBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noIdentity(dir)
	}
	if err != nil {
		return nil, err
	}
	s := &credentials{}
	if s.cert, err = parseIdentity(text); err != nil {
		return nil, fmt.Errorf("%s: %w: put a copy back, or join again", path, err)
	}
	path = filepath.Join(dir, trustFile)
	if text, err = readPrivate(path, trustBytesMax); err == nil {
		if s.trust, err = parseTrust(text); err == nil && !s.trust.signedBy(s.trust.authorities) {
			err = fmt.Errorf("%w: no authority signed it", ErrCorrupt)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w: put a copy back, or join again", path, err)
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: put a copy back, or join again", err)
	}
	if err != nil {
		return nil, err
	}
	if m, err := memberOf(s.cert.Leaf); err != nil || m.Cluster != s.trust.Cluster {
		return nil, errors.Join(err, fmt.Errorf("%s: %w: certificate and trust document are of two clusters: join again", dir, ErrForeign))
	}
	return s, nil
}

func noIdentity(dir string) error {
	return fmt.Errorf("%s: %w: plinth cluster init begins one, plinth cluster join enters one", dir, ErrNoIdentity)
}

// parseIdentity reads a private key and its certificate, in this order.
func parseIdentity(text []byte) (*tls.Certificate, error) {
	key, rest, err := parseKey(text)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(rest)
	if block == nil || block.Type != pemCert || len(block.Headers) > 0 || len(rest) > 0 {
		return nil, fmt.Errorf("%w: after the key come one certificate and the end", ErrCorrupt)
	}
	c, err := parseCert(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !key.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
		return nil, fmt.Errorf("%w: the certificate is of another key", ErrCorrupt)
	}
	out := &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
	if !bytes.Equal(encodeIdentity(key, c), text) { // the one spelling
		return nil, fmt.Errorf("%w: not as plinth writes it", ErrCorrupt)
	}
	return out, nil
}

func parseKey(text []byte) (ed25519.PrivateKey, []byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemKey || len(block.Headers) > 0 || !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return nil, nil, fmt.Errorf("%w: does not begin with a private key", ErrCorrupt)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the private key cannot be read", ErrCorrupt) // err might quote it
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%w: a private key that is not Ed25519", ErrUnsupported)
	}
	return key, rest, nil
}

func encodeKey(key ed25519.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // every Ed25519 key has that form
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
}

func encodeIdentity(key ed25519.PrivateKey, c *x509.Certificate) []byte {
	return append(encodeKey(key), pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})...)
}

func statIdentity(dir string) (out [2]os.FileInfo) {
	for i, name := range []string{identityFile, trustFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			out[i] = info
		}
	}
	return out
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// current returns the newest usable state.
func (i *Identity) current() *credentials {
	i.mu.Lock()
	var cut []*guarded
	if since := i.now().Sub(i.looked); since < 0 || since >= lookTime {
		cut = i.look()
	}
	s := i.state
	i.mu.Unlock()
	i.cut(cut)
	return s
}

// reload looks at the files now.
func (i *Identity) reload() {
	i.mu.Lock()
	cut := i.look()
	i.mu.Unlock()
	i.cut(cut)
}

// cut ends connections. Without mu: closing may call back.
func (i *Identity) cut(list []*guarded) {
	for _, g := range list {
		_ = g.conn.NetConn().Close() // not the goodbye of TLS, which may wait for writers
	}
}

// look reads the files if they changed, and returns the connections of those who
// are not believed any more, which the caller cuts. What cannot be used is logged
// and the state of before stays. The caller holds mu.
func (i *Identity) look() (cut []*guarded) {
	i.looked = i.now()
	is := statIdentity(i.dir)
	if sameFile(is[0], i.tried[0]) && sameFile(is[1], i.tried[1]) {
		return nil
	}
	i.tried = is
	next, err := loadCredentials(i.dir)
	if err == nil {
		err = i.follows(next)
	}
	if err != nil {
		i.log.Warn("pki: changed files cannot be used, those of before stay", "dir", i.dir, "err", err)
		return nil
	}
	i.state = next
	for g := range i.conns {
		if _, err := next.trust.check(g.peer); err != nil {
			i.log.Warn("pki: connection cut", "remote", g.conn.RemoteAddr(), "err", err)
			g.cut = true
			delete(i.conns, g)
			cut = append(cut, g)
		}
	}
	return cut
}

// follows refuses what would be worse than the state in use.
func (i *Identity) follows(next *credentials) error {
	m, err := memberOf(next.cert.Leaf)
	if err != nil {
		return err
	}
	if m != i.self {
		return fmt.Errorf("%w: the certificate is now of %s, and was of %s", ErrForeign, m, i.self)
	}
	if old := i.state.trust; next.trust.Sequence < old.Sequence {
		return fmt.Errorf("%w: the trust document is number %d, older than %d", ErrCorrupt, next.trust.Sequence, old.Sequence)
	}
	return nil
}

// takeTrust stores a newer document that came from anybody. False: it was not newer.
func (i *Identity) takeTrust(text []byte) (bool, error) {
	next, err := parseTrust(text)
	if err != nil {
		return false, err
	}
	newer := false
	err = locked(i.dir, func() error {
		i.reload() // another process may have stored one
		if newer, err = i.current().trust.succeeds(next); !newer || err != nil {
			return err
		}
		return writePrivate(filepath.Join(i.dir, trustFile), next.text)
	})
	i.reload()
	return newer, err
}

// takeCert stores a new certificate of the member's for a key.
func (i *Identity) takeCert(key ed25519.PrivateKey, der []byte) error {
	c, err := parseCert(der)
	if err != nil {
		return err
	}
	m, err := i.current().trust.verify(c, i.now())
	if err != nil {
		return err
	}
	if m != i.self || !key.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
		return fmt.Errorf("%w: the new certificate is not of %s and its key", ErrForeign, i.self)
	}
	err = locked(i.dir, func() error {
		return writePrivate(filepath.Join(i.dir, identityFile), encodeIdentity(key, c))
	})
	i.reload()
	return err
}
