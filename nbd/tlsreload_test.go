package nbd_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/nbdtest"
)

// A server follows its certificates without a restart, and keeps those it has
// where the new ones cannot be used.
func TestWatchTLS(t *testing.T) {
	server, clients := certificates(t, "host1")
	var j journal
	log := slog.New(slog.NewTextHandler(&j, nil))
	config, err := nbd.WatchTLS(server, log)
	if err != nil || config.ClientCAs == nil {
		t.Fatal(err)
	}
	h := serve(t, "tcp", nbd.Options{Logger: log, TLS: config, TLSRequired: true}, inMemory("a1"))
	try := func(name string) error {
		c, err := client.Dial(t.Context(), "tcp", h.addr, "a1", client.Options{TLS: nbdtest.ClientTLS(t, clients[name])})
		if err == nil {
			err = c.Disconnect(t.Context())
		}
		return err
	}
	// says has clients connect until the server has looked.
	says := func(text string) {
		t.Helper()
		eventually(t, func() bool {
			time.Sleep(20 * time.Millisecond)
			_ = try("host1") // may be refused by now
			return j.has(text)
		})
	}
	stay := h.openAs(t, "a1", client.Options{TLS: nbdtest.ClientTLS(t, clients["host1"])})

	nbdtest.NewAuthority(t).Write(clients["none"], "server", "127.0.0.1", time.Now().Add(time.Hour))
	copyFile(t, filepath.Join(clients["none"], "server-cert.pem"), filepath.Join(server, "server-cert.pem"))
	says("private key does not match")
	if err := try("host1"); err != nil {
		t.Errorf("a certificate without its key took effect: %v", err)
	}

	next := nbdtest.NewAuthority(t)
	clients["host2"] = t.TempDir()
	next.Write(clients["host2"], "client", "host2", time.Now().Add(time.Hour))
	next.Write(server, "server", "127.0.0.1", time.Now().Add(-time.Minute))
	says("expired")
	if err := try("host1"); err != nil {
		t.Errorf("an expired certificate took effect: %v", err)
	}

	next.Write(server, "server", "127.0.0.1", time.Now().Add(time.Hour))
	says("TLS certificates changed")
	if err := try("host2"); err != nil {
		t.Errorf("a client of the new authority: %v", err)
	}
	if err := try("host1"); err == nil {
		t.Error("a client of the old authority is let in")
	}
	if err := stay.Flush(t.Context()); err != nil {
		t.Errorf("a connection of before: %v", err)
	}

	if err := os.Remove(filepath.Join(server, "ca-cert.pem")); err != nil {
		t.Fatal(err)
	}
	says("ca-cert.pem: file does not exist")
	if err := try("host2"); err != nil {
		t.Errorf("without the authority's file: %v", err)
	}
	if err := try("host1"); err == nil {
		t.Error("without the authority's file all are let in")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
