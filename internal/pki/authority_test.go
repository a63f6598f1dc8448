package pki

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Processes that change one folder at a time lose nothing of each other.
func TestConcurrentChanges(t *testing.T) {
	h := begin(t, InitOptions{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { // an Authority of its own, as another process has
			a, err := OpenAuthority(h.dir, quiet)
			if err != nil {
				t.Error(err)
				return
			}
			for k := range 4 {
				name := fmt.Sprintf("h%d-%d", i, k)
				token, _, err := a.CreateToken(TokenOptions{Role: RoleHost, Name: name})
				if err == nil {
					_, err = Join(t.Context(), filepath.Join(t.TempDir(), name), JoinOptions{Token: token, Server: h.addr}, quiet)
				}
				if err == nil && k%2 == 1 {
					_, err = a.Revoke(RoleHost, name, "")
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	info, err := h.Info()
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Certificates) != 1+8 || len(info.Revoked) != 8 || len(info.Tokens) != 8 {
		t.Errorf("%d certificates, %d revocations, %d tokens", len(info.Certificates), len(info.Revoked), len(info.Tokens))
	}
}

// An authority that is put back from a copy is believed, and finds its members again.
func TestPutBack(t *testing.T) {
	h := begin(t, InitOptions{})
	path := filepath.Join(h.dir, authorityFile)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dn, h1, h2 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1"), h.join(t, RoleHost, "h2")
	for range 3 { // its documents run ahead of the time
		if _, err := h.Revoke(RoleHost, "nobody", ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := dn.Fetch(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(h.dir, quiet); err != nil {
		t.Fatal(err)
	}
	for _, i := range []*Identity{dn, h1, h2} {
		if err := i.Fetch(t.Context(), h.addr); err != nil {
			t.Fatal(err)
		}
	}
	info, err := h.Info()
	if err != nil || len(info.Certificates) != 4 {
		t.Fatalf("it knows %+v, %v", info, err)
	}
	h.clock.advance(lookTime * 5)
	if known, err := h.Revoke(RoleHost, "h1", ""); !known || err != nil {
		t.Fatal(known, err)
	}
	if err := dn.Fetch(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	if s, _ := talk(t, dn.ServerConfig(), h1.ClientConfig(RoleDataNode, "")); !is(s, ErrRevoked) || s == nil {
		t.Errorf("who was revoked afterwards: %v", s)
	}
	meet(t, dn, h2)
}

// A clock that was wrong for a moment brings nobody back; of many revocations those
// that are over go.
func TestRevocationsStay(t *testing.T) {
	h := begin(t, InitOptions{})
	list := func() []Revocation {
		t.Helper()
		info, err := h.Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Revoked
	}
	for i, years := range []time.Duration{0, 2, -2} {
		h.clock.advance(years * 366 * 24 * time.Hour)
		if _, err := h.Revoke(RoleHost, fmt.Sprint("h", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(); len(got) != 3 {
		t.Errorf("after a jump of the clock: %v", got)
	}
	err := h.change(func(s *authorityState, now time.Time) error {
		for i := range revokedMany {
			s.Revoked = append(s.Revoked, Revocation{Role: RoleHost, Name: fmt.Sprint("n", i), Before: now, Until: now.Add(-time.Second)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(RoleHost, "last", ""); err != nil {
		t.Fatal(err)
	}
	if got := list(); len(got) > 4 {
		t.Errorf("%d revocations", len(got))
	}
}
