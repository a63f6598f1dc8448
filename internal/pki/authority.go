package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// errUnchanged ends a change that has nothing to store.
var errUnchanged = errors.New("unchanged")

// Authority makes and takes back the certificates of a cluster. Its state is one
// file, which every call reads and, under the folder's lock, replaces: several
// processes may use one folder. It starts nothing.
type Authority struct {
	dir string
	log *slog.Logger
	now func() time.Time
}

// InitOptions say what cluster begins. The zero value is right.
type InitOptions struct {
	Cluster  Cluster       // default: random
	Name     string        // of the first admin; default: admin
	SANs     SANs          // of its certificate
	Lifetime time.Duration // of certificates; default: LifetimeDefault
}

// Init begins a cluster in a folder, which it makes: its authority, and the first
// admin's identity. After a crash it goes on; where both are there it is an error.
func Init(dir string, o InitOptions, log *slog.Logger) (*Authority, *Identity, error) {
	if o.Name == "" {
		o.Name = "admin"
	}
	if o.Lifetime == 0 {
		o.Lifetime = LifetimeDefault
	}
	home := Member{o.Cluster, RoleAdmin, o.Name}
	if err := home.Validate(); err != nil {
		return nil, nil, err
	}
	if o.Lifetime < LifetimeMin || o.Lifetime > LifetimeMax {
		return nil, nil, fmt.Errorf("certificates hold for %s to %s, not %s", LifetimeMin, LifetimeMax, o.Lifetime)
	}
	if err := makeDir(dir); err != nil {
		return nil, nil, err
	}
	a := &Authority{dir, log, time.Now}
	if err := locked(dir, func() error { return a.create(home, o.Lifetime) }); err != nil {
		return nil, nil, err
	}
	if err := a.renewHome(&o.SANs); err != nil {
		return nil, nil, err
	}
	i, err := Load(dir, log)
	return a, i, err
}

func (a *Authority) create(home Member, lifetime time.Duration) error {
	if _, err := os.Stat(filepath.Join(a.dir, identityFile)); err == nil {
		return fmt.Errorf("%s has an identity of a cluster already; choose another folder", a.dir)
	}
	s, err := a.read()
	switch {
	case errors.Is(err, ErrNoAuthority):
		if home.Cluster == (Cluster{}) {
			home.Cluster = newCluster()
		}
		if s, err = newAuthorityState(home.Cluster, home, lifetime, a.now()); err != nil {
			return err
		}
	case err == nil && (s.Home != homeName{home.Role, home.Name} || home.Cluster != Cluster{} && home.Cluster != s.Cluster):
		return fmt.Errorf("%s was begun for %s of cluster %s: go on with those, or remove it", a.dir, s.home(), s.Cluster)
	case err != nil:
		return err
	}
	return a.write(s)
}

// OpenAuthority uses that of a folder. Errors: ErrNoAuthority, ErrPermissions,
// ErrCorrupt, ErrUnsupported.
func OpenAuthority(dir string, log *slog.Logger) (*Authority, error) {
	a := &Authority{dir, log, time.Now}
	if _, err := a.read(); err != nil {
		return nil, err
	}
	return a, locked(dir, func() error { // what a crash kept from being published
		s, err := a.read()
		if err != nil {
			return err
		}
		return a.publish(s)
	})
}

func (a *Authority) read() (*authorityState, error) {
	none := fmt.Errorf("%s: %w: plinth cluster init makes one", a.dir, ErrNoAuthority)
	if err := checkDir(a.dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = none
		}
		return nil, err
	}
	path := filepath.Join(a.dir, authorityFile)
	text, err := readPrivate(path, authorityBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none
	}
	if err != nil {
		return nil, err
	}
	s, err := parseAuthorityState(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: put a copy back", path, err)
	}
	return s, nil
}

// write makes the state durable, then publishes its trust document: members never
// see what a crash could undo.
func (a *Authority) write(s *authorityState) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(text) > authorityBytesMax {
		return fmt.Errorf("%w: the authority's state has %d bytes, more than it may", ErrRefused, len(text))
	}
	if err := writePrivate(filepath.Join(a.dir, authorityFile), append(text, '\n')); err != nil {
		return err
	}
	return a.publish(s)
}

func (a *Authority) publish(s *authorityState) error {
	text, err := s.trustText()
	if err != nil {
		return err
	}
	path := filepath.Join(a.dir, trustFile)
	if is, err := os.ReadFile(path); err == nil && bytes.Equal(is, text) {
		return nil
	}
	return writePrivate(path, text)
}

// change lets f alter the state, and stores it unless f fails.
func (a *Authority) change(f func(s *authorityState, now time.Time) error) error {
	err := locked(a.dir, func() error {
		s, err := a.read()
		if err != nil {
			return err
		}
		now := a.now()
		s.prune(now)
		if err := f(s, now); err != nil {
			return err
		}
		return a.write(s)
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// RenewHome gives the folder's own member a new certificate.
func (a *Authority) RenewHome() error { return a.renewHome(nil) }

func (a *Authority) renewHome(sans *SANs) error {
	key := newKey()
	var c *x509.Certificate
	err := a.change(func(s *authorityState, now time.Time) (err error) {
		if sans == nil {
			sans = &SANs{}
			if e := s.member(s.home()); e != nil {
				sans = &e.SANs
			} else if i, err := loadCredentials(a.dir); err == nil { // expired, and forgotten
				sans = sansOf(i.cert.Leaf)
			}
		}
		c, err = s.issue(s.home(), *sans, key.Public().(ed25519.PublicKey), now)
		return err
	})
	if err != nil {
		return err
	}
	err = locked(a.dir, func() error {
		return writePrivate(filepath.Join(a.dir, identityFile), encodeIdentity(key, c))
	})
	if err != nil {
		return err
	}
	return a.contactHome()
}

// contactHome notes what the folder's own member uses.
func (a *Authority) contactHome() error {
	i, err := loadCredentials(a.dir)
	if err != nil {
		return err
	}
	return a.change(func(s *authorityState, now time.Time) error {
		if !s.contact(s.home(), i.cert.Leaf, s.Sequence, now) {
			return errUnchanged
		}
		return nil
	})
}

func sansOf(c *x509.Certificate) *SANs { return &SANs{c.DNSNames, c.IPAddresses} }

// TokenOptions say for whom a token is.
type TokenOptions struct {
	Role Role
	Name string
	SANs SANs          // that its certificates get
	TTL  time.Duration // default: TokenTTLDefault
	// Replace lets it join although a member of that name has a certificate, which is
	// revoked when it does.
	Replace bool
}

// CreateToken makes a token for one use. Errors: ErrRefused if the name is in use.
func (a *Authority) CreateToken(o TokenOptions) (Token, time.Time, error) {
	if o.TTL == 0 {
		o.TTL = TokenTTLDefault
	}
	if o.TTL < time.Second || o.TTL > TokenTTLMax {
		return Token{}, time.Time{}, fmt.Errorf("a token holds for 1s to %s, not %s", TokenTTLMax, o.TTL)
	}
	var t Token
	var expires time.Time
	err := a.change(func(s *authorityState, now time.Time) error {
		m := Member{s.Cluster, o.Role, o.Name}
		if err := m.Validate(); err != nil {
			return err
		}
		if s.member(m) != nil && !o.Replace {
			return fmt.Errorf("%w: %s is a member; revoke it first, or replace it", ErrRefused, m)
		}
		if m == s.home() {
			return fmt.Errorf("%w: %s is the authority's own member", ErrRefused, m)
		}
		if len(s.Tokens) >= tokensMax {
			return fmt.Errorf("%w: there are %d tokens; wait until some expire", ErrRefused, len(s.Tokens))
		}
		newest := fingerprint(s.authorities[len(s.authorities)-1]) // which stays the longest
		t = newToken(newest)
		expires = now.Add(o.TTL).UTC().Truncate(time.Second)
		s.Tokens = append(s.Tokens, &tokenEntry{
			ID: hex.EncodeToString(t.ID[:]), Secret: t.secret[:], Authority: newest.full(),
			Role: o.Role, Name: o.Name, SANs: o.SANs, Expires: expires, Replace: o.Replace,
		})
		return nil
	})
	return t, expires, err
}

// joinRequest asks for a certificate by a token.
type joinRequest struct {
	Version int    `json:"version"`
	Token   string `json:"token"` // its id
	CSR     []byte `json:"csr"`
	Proof   []byte `json:"proof"`
}

var errBadToken = fmt.Errorf("%w: no such token here: it was never made, has expired, or was made void", ErrRefused)

// redeem answers a request that came over a connection with that exported value.
func (a *Authority) redeem(r joinRequest, exported []byte) (*x509.Certificate, *authorityState, error) {
	key, err := parseCSR(r.CSR)
	if err != nil {
		return nil, nil, err
	}
	s, err := a.read()
	if err != nil {
		return nil, nil, err
	}
	if _, err := s.prove(r, exported, a.now()); err != nil { // a guess costs no write
		return nil, nil, err
	}
	var c *x509.Certificate
	err = a.change(func(is *authorityState, now time.Time) error {
		s = is
		t, err := s.prove(r, exported, now)
		if err != nil {
			return err
		}
		if t.Used != nil {
			c, err = parseCert(t.Used)
			if err == nil && !key.Equal(c.PublicKey) {
				err = fmt.Errorf("%w: the token for %s/%s was used by another machine: if that was not you, revoke %s/%s", ErrRefused, t.Role, t.Name, t.Role, t.Name)
			}
			if err == nil {
				err = errUnchanged // its answer was lost
			}
			return err
		}
		m := Member{s.Cluster, t.Role, t.Name}
		if s.member(m) != nil {
			if !t.Replace {
				return fmt.Errorf("%w: %s has joined by another token", ErrRefused, m)
			}
			kept := *t
			if err := s.revoke(m, "", now); err != nil { // takes the name's tokens, too
				return err
			}
			s.Tokens = append(s.Tokens, &kept)
			t = &kept
		}
		if c, err = s.issue(m, t.SANs, key, now); err != nil {
			return err
		}
		t.Used = c.Raw
		return nil
	})
	return c, s, err
}

// prove returns the token that a request proves to know.
func (s *authorityState) prove(r joinRequest, exported []byte, now time.Time) (*tokenEntry, error) {
	i := slices.IndexFunc(s.Tokens, func(t *tokenEntry) bool { return t.ID == r.Token })
	if i < 0 || !hmac.Equal(r.Proof, proof(s.Tokens[i].Secret, exported, r.CSR)) {
		return nil, errBadToken
	}
	t := s.Tokens[i]
	if !now.Before(t.Expires) {
		return nil, fmt.Errorf("%w: the token for %s/%s expired at %s, and it is %s here: make another", ErrRefused, t.Role, t.Name, stamp(t.Expires), stamp(now))
	}
	return t, nil
}

// void makes a token worthless.
func (a *Authority) void(id string) error {
	return a.change(func(s *authorityState, _ time.Time) error {
		n := len(s.Tokens)
		s.Tokens = slices.DeleteFunc(s.Tokens, func(t *tokenEntry) bool { return t.ID == id })
		if len(s.Tokens) == n {
			return errUnchanged
		}
		return nil
	})
}

// renew makes the next certificate of who showed one, for another key.
func (a *Authority) renew(peer *x509.Certificate, csr []byte) (*x509.Certificate, *authorityState, error) {
	key, err := parseCSR(csr)
	if err != nil {
		return nil, nil, err
	}
	if key.Equal(peer.PublicKey) {
		return nil, nil, fmt.Errorf("%w: a new certificate is for a new key", ErrRefused)
	}
	var c *x509.Certificate
	var s *authorityState
	err = a.change(func(is *authorityState, now time.Time) error {
		s = is
		t, err := s.trust()
		if err != nil {
			return err
		}
		m, err := t.verify(peer, now)
		if err != nil {
			return err
		}
		c, err = s.issue(m, *sansOf(peer), key, now)
		return err
	})
	return c, s, err
}
