package pki

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// known reports an error that says what kind it is.
func known(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrForeign)
}

// sample is the state of a small cluster in the middle of a change.
func sample(f *testing.F) *authorityState {
	now := time.Unix(1_800_000_000, 0)
	home := Member{Cluster{7}, RoleAdmin, "admin"}
	s, err := newAuthorityState(home.Cluster, home, time.Hour, now)
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range []Member{home, {home.Cluster, RoleHost, "h1"}, {home.Cluster, RoleHost, "h2"}} {
		if _, err := s.issue(m, SANs{DNS: []string{"a.example"}}, newKey().Public().(ed25519.PublicKey), now); err != nil {
			f.Fatal(err)
		}
	}
	if err := errors.Join(s.revoke(Member{home.Cluster, RoleHost, "h1"}, "", now), s.take(StepAnnounce, now)); err != nil {
		f.Fatal(err)
	}
	token := newToken(fingerprint(s.authorities[0]))
	s.Tokens = append(s.Tokens, &tokenEntry{ID: "00", Secret: token.secret[:], Role: RoleHost, Name: "h3", Expires: now.Add(time.Hour)})
	return s
}

func FuzzToken(f *testing.F) {
	f.Add(newToken(Fingerprint{1}).Text())
	f.Add(tokenPrefix)
	f.Add("plinth-join-v2.x")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			if !known(err) || len(text) > 40 && strings.Contains(err.Error(), text[20:]) {
				t.Fatal(err)
			}
		} else if token.Text() != text {
			t.Fatalf("two spellings of one token: %q", text)
		}
	})
}

func FuzzURI(f *testing.F) {
	f.Add(Member{Cluster{1}, RoleHost, "h1"}.URI())
	f.Add("plinth://00/host/h1")
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := parseURI(text); err == nil && (m.URI() != text || m.url().String() != text) {
			t.Fatalf("two spellings of one member: %q", text)
		}
	})
}

func FuzzTrust(f *testing.F) {
	s := sample(f)
	text, err := s.trustText()
	if err != nil {
		f.Fatal(err)
	}
	right, err := parseTrust(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(bytes.Replace(text, []byte("sequence"), []byte("sequencf"), 1))
	f.Add([]byte("{}\nsignature  \n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := parseTrust(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		if ok, err := right.succeeds(tr); ok || err == nil && !bytes.Equal(tr.signed, right.signed) {
			t.Fatalf("a document that nobody signed is taken: %s", b)
		}
	})
}

func FuzzAuthorityState(f *testing.F) {
	text, err := json.Marshal(sample(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":"plinth authority","version":1}`))
	f.Add(bytes.Replace(text, []byte(`"members":[`), []byte(`"members":[null,`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseAuthorityState(b)
		if err != nil {
			if !known(err) {
				t.Fatal(err)
			}
			return
		}
		// Whatever was taken can be worked with, and read again.
		now := time.Unix(1_800_000_100, 0)
		s.rotation(now)
		s.prune(now)
		m := Member{s.Cluster, RoleHost, "new"}
		if _, err := s.issue(m, SANs{}, newKey().Public().(ed25519.PublicKey), now); err != nil && !errors.Is(err, ErrRefused) {
			t.Skip(err) // times that no certificate can have
		}
		_ = s.revoke(m, "", now)
		again, err := json.Marshal(s)
		if err == nil {
			_, err = parseAuthorityState(again)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	s := sample(f)
	key := newKey()
	c, err := s.issue(s.home(), SANs{}, key.Public().(ed25519.PublicKey), time.Unix(1_800_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeIdentity(key, c))
	f.Add(encodeKey(key))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := parseIdentity(b)
		if err != nil {
			if !known(err) || len(b) > 200 && strings.Contains(err.Error(), string(b[60:100])) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(encodeIdentity(out.PrivateKey.(ed25519.PrivateKey), out.Leaf), b) {
			t.Fatal("two spellings of one identity")
		}
	})
}

func FuzzRequest(f *testing.F) {
	csr, err := newCSR(newKey())
	if err != nil {
		f.Fatal(err)
	}
	text, err := json.Marshal(joinRequest{wireVersion, "0011223344556677", csr, make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, csr)
	f.Add([]byte(`{"version":1}`), []byte{})
	f.Fuzz(func(t *testing.T, b, der []byte) {
		var q joinRequest
		if err := decodeRequest(b, &q, &q.Version); err != nil && !known(err) {
			t.Fatal(err)
		}
		var r renewRequest
		if err := decodeRequest(b, &r, &r.Version); err != nil && !known(err) {
			t.Fatal(err)
		}
		for _, csr := range [][]byte{q.CSR, der} {
			if key, err := parseCSR(csr); err != nil && !known(err) || err == nil && len(key) != ed25519.PublicKeySize {
				t.Fatal(err)
			}
		}
		if _, err := parseMemberState(b); err != nil && !known(err) {
			t.Fatal(err)
		}
	})
}
