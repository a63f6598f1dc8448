package pki

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// copyDir gives a test a folder to damage.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// What is wrong with files is said in one line that names the file and what to do.
func TestDamagedFiles(t *testing.T) {
	h, other := begin(t, InitOptions{}), begin(t, InitOptions{})
	edit := func(name string, f func([]byte) []byte) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name), f(b), 0o600)
		}
	}
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	empty := func([]byte) []byte { return nil }
	twice := func(b []byte) []byte { return append(b, b...) }
	later := func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1) }
	field := func(b []byte) []byte { return bytes.Replace(b, []byte(`{`), []byte(`{"new":1,`), 1) }
	foreign := func(name string) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(other.dir, name))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
	}
	mode := func(name string, m os.FileMode) func(string) error {
		return func(dir string) error { return os.Chmod(filepath.Join(dir, name), m) }
	}
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	load := func(dir string) error { _, err := Load(dir, quiet); return err }
	open := func(dir string) error { _, err := OpenAuthority(dir, quiet); return err }
	for name, c := range map[string]struct {
		damage func(string) error
		use    func(string) error
		want   error
		says   string
	}{
		"identity cut":               {edit(identityFile, cut), load, ErrCorrupt, "join again"},
		"identity empty":             {edit(identityFile, empty), load, ErrCorrupt, "join again"},
		"identity twice":             {edit(identityFile, twice), load, ErrCorrupt, "join again"},
		"identity of another":        {foreign(identityFile), load, ErrForeign, "join again"},
		"identity gone":              {remove(identityFile), load, ErrNoIdentity, "plinth cluster"},
		"identity open":              {mode(identityFile, 0o640), load, ErrPermissions, "chmod 600"},
		"trust cut":                  {edit(trustFile, cut), load, ErrCorrupt, "join again"},
		"trust empty":                {edit(trustFile, empty), load, ErrCorrupt, "join again"},
		"trust later":                {edit(trustFile, later), load, ErrUnsupported, "version 2"},
		"trust with a field":         {edit(trustFile, field), load, ErrCorrupt, "unknown field"},
		"trust changed":              {edit(trustFile, func(b []byte) []byte { return bytes.Replace(b, []byte(`"sequence":1`), []byte(`"sequence":2`), 1) }), load, ErrCorrupt, "no authority signed"},
		"trust of another":           {foreign(trustFile), load, ErrForeign, "two clusters"},
		"trust gone":                 {remove(trustFile), load, os.ErrNotExist, "join again"},
		"trust open":                 {mode(trustFile, 0o604), load, ErrPermissions, "chmod 600"},
		"folder open":                {mode(".", 0o750), load, ErrPermissions, "chmod 700"},
		"authority cut":              {edit(authorityFile, cut), open, ErrCorrupt, "put a copy back"},
		"authority empty":            {edit(authorityFile, empty), open, ErrCorrupt, "put a copy back"},
		"authority later":            {edit(authorityFile, later), open, ErrUnsupported, "version 2"},
		"authority gone":             {remove(authorityFile), open, ErrNoAuthority, "plinth cluster init"},
		"authority open":             {mode(authorityFile, 0o644), open, ErrPermissions, "chmod 600"},
		"authority with another key": {edit(authorityFile, func(b []byte) []byte { return bytes.Replace(b, []byte(`"seed":"`), []byte(`"seed":"AAAA`), 1) }), open, ErrCorrupt, "put a copy back"},
	} {
		dir := copyDir(t, h.dir)
		if err := c.damage(dir); err != nil {
			t.Fatal(name, err)
		}
		err := c.use(dir)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v with %q", name, err, c.want, c.says)
		}
	}
	// Nothing but a trust document that is gone or behind is made again from the
	// authority's state.
	dir := copyDir(t, h.dir)
	if err := errors.Join(os.Remove(filepath.Join(dir, trustFile)), open(dir), load(dir)); err != nil {
		t.Error(err)
	}
}

// A running member that meets bad files goes on with what it had.
func TestBadChange(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1")
	old, err := os.ReadFile(filepath.Join(dn.dir, trustFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(RoleHost, "nobody", ""); err != nil {
		t.Fatal(err)
	}
	if err := dn.Fetch(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	now := dn.current()
	for _, c := range []struct {
		name   string
		change func() error
	}{
		{"an older trust document", func() error { return os.WriteFile(filepath.Join(dn.dir, trustFile), old, 0o600) }},
		{"half an identity", func() error { return os.Truncate(filepath.Join(dn.dir, identityFile), 100) }},
		{"no folder", func() error { return os.RemoveAll(dn.dir) }},
	} {
		if err := c.change(); err != nil {
			t.Fatal(c.name, err)
		}
		dn.reload()
		if dn.current() != now {
			t.Errorf("%s was taken", c.name)
		}
		meet(t, dn, h1)
	}
}

// Keep renews in time, follows what is revoked and cuts who is.
func TestKeep(t *testing.T) {
	h := begin(t, InitOptions{})
	dn, h1 := h.join(t, RoleDataNode, "dn1"), h.join(t, RoleHost, "h1")
	for _, i := range []*Identity{dn, h.admin} {
		o := KeepOptions{FetchTime: 20 * time.Millisecond}
		if i == h.admin {
			o.Authority = h.Authority
		}
		done := make(chan struct{})
		go func() { i.Keep(t.Context(), o); close(done) }()
		t.Cleanup(func() { <-done })
	}
	eventually := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it does not come to %s", what)
			}
		}
	}
	s, c := pair(t)
	defer c.Close()
	if err := h1.Renew(t.Context(), h.addr); err != nil {
		t.Fatal(err)
	}
	server := tlsServer(t, dn, s, h1, c)
	release, err := dn.Guard(server)
	if err != nil {
		t.Fatal(err)
	}
	first := serialText(dn.Leaf())
	h.clock.advance(LifetimeDefault*2/3 - time.Minute)
	time.Sleep(100 * time.Millisecond)
	if serialText(dn.Leaf()) != first {
		t.Error("renewed before it is due")
	}
	h.clock.advance(2 * time.Minute)
	admin := serialText(h.admin.Leaf())
	eventually("a renewal", func() bool { return serialText(dn.Leaf()) != first && serialText(h.admin.Leaf()) != admin })
	if _, err := h.Revoke(RoleHost, "h1", ""); err != nil {
		t.Fatal(err)
	}
	eventually("a cut", func() bool {
		_, err := server.Write([]byte{1})
		return err != nil
	})
	if !release() {
		t.Error("the connection was not cut by the revocation")
	}
	meet(t, dn, h.admin)
}
