package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"

	"plinth/internal/keyring"
	"plinth/nbd"
	"plinth/nbd/client"
)

func speaking(t *testing.T, pool *keyring.Pool, host string, v Versions) *tls.Config {
	t.Helper()
	c, err := TLS(pool, host, v)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Hosts of different versions use the highest that both speak; where there is none, the
// text says which each speaks.
func TestVersions(t *testing.T) {
	pool := newPool(t)
	for _, c := range []struct {
		here, there Versions
		want        uint16 // 0: none
	}{
		{Versions{1, 2}, Versions{1, 2}, 2},
		{Versions{1, 2}, Versions{1, 1}, 1},
		{Versions{1, 1}, Versions{1, 2}, 1},
		{Versions{1, 2}, Versions{2, 9}, 2},
		{Versions{1, 2}, Versions{3, 4}, 0},
		{Versions{3, 4}, Versions{1, 2}, 0},
	} {
		disk := newShared("a", false)
		d := view(t, Options{TLS: speaking(t, pool, "b", c.here),
			Find: to(serve(t, host{"a", disk}, speaking(t, pool, "a", c.there)))})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if c.want == 0 {
			ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
		}
		err := d.WriteAt(ctx, []byte("abc"), 0, false)
		cancel()
		if c.want == 0 {
			text := "host \"a\" speaks versions " + c.there.String() + " of the protocol between hosts, this one " + c.here.String() + ": upgrade plinth"
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%v and %v: %v", c.here, c.there, err)
			}
			continue
		}
		if err != nil || d.now.Load().version != c.want || len(disk.done) != int(c.want-1) {
			t.Errorf("%v and %v: %v, %d changes with numbers", c.here, c.there, err, len(disk.done))
		}
	}
}

// A host that offers a client no version of its own refuses it and says so; names of a
// version that is not known are refused.
func TestStrangeVersions(t *testing.T) {
	pool := newPool(t)
	address := serve(t, host{"a", newShared("a", false)}, speaking(t, pool, "a", Versions{2, 3}))
	old := speaking(t, pool, "b", Versions{1, 1})
	old.VerifyConnection = nil // as of a program that does not look
	c, err := client.Dial(t.Context(), "tcp", address, strings.Repeat("0", 2*sessionBytes)+"/vm", client.Options{TLS: old})
	if err == nil { // TLS 1.3: a server's refusal comes after the handshake
		err = c.Flush(t.Context())
		c.Close()
	}
	if err == nil {
		t.Error("a client without a common version was let in")
	}
	x := NewExports(host{"a", newShared("a", false)})
	session := strings.Repeat("0a", sessionBytes)
	for _, name := range []string{"3/" + session + "/vm", "0/" + session + "/vm", "1/" + session + "/vm", "2/vm", "2//vm", "2/" + session, "2/log-1-2/vm", "99999/" + session + "/vm"} {
		if _, _, err := x.Open(t.Context(), name); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, want := range map[string]string{"2/log-1-1/vm": isInLog, "2/log-1-2/vm": isNotInLog, "2/log-1-2x/vm": ""} {
		if info, err := x.Describe(t.Context(), name); err != nil || info.Description != want {
			t.Errorf("%q: %q, %v", name, info.Description, err)
		}
	}
	if _, err := NewExports(one{nil}).Describe(t.Context(), "2/log-1-1"); err == nil {
		t.Error("a question without a disk is answered")
	}
	var v Versions
	for _, bad := range []string{"", "1", "0-1", "2-1", "x"} {
		leaf := *old.Certificates[0].Leaf
		u := v.uri()
		u.Opaque = bad
		leaf.URIs = append(leaf.URIs[:0:0], u)
		if v, err := spoken(&leaf); err == nil {
			t.Errorf("%q is %v", bad, v)
		}
	}
}
