package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/internal/vfsx/crashfs"
)

// quiet drops what is logged.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// newHost returns the agent of a new pool in memory.
func newHost(t testing.TB) *host.Host {
	t.Helper()
	site, err := standalone.Open(context.Background(), standalone.Options{
		Dir: "data", FS: crashfs.New(), Keys: host.RootSource{File: filepath.Join(t.TempDir(), "root.key")}, Logger: quiet,
		Node: shelf.Options{Spindles: 2, LogBytes: 8 << 20, SpindleBytes: 16 << 20},
		Host: host.Options{FlashPath: "flash", FlashBytes: 40 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	})
	return site.Host
}

func newServer(t testing.TB) *Server {
	h := newHost(t)
	now := func() *host.Host { return h }
	return NewServer(now, Metrics(now), quiet)
}

// serve answers on an address until the test ends, and returns where.
func (s *Server) serve(t *testing.T, a Address, opts ListenOptions) Address {
	t.Helper()
	l, err := Listen(a, opts)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if a.TCP != "" {
		a.TCP = l.Addr().String()
	}
	return a
}

// client returns a client of an address.
func client(t *testing.T, a Address, opts ClientOptions) *Client {
	t.Helper()
	c, err := NewClient(a, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// ask answers one request without a connection.
func (s *Server) ask(method, path, body string) *http.Response {
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Result()
}
