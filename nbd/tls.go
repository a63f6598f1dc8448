package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"

	"plinth/nbd/internal/wire"
)

// The names of the files that LoadTLS reads, which QEMU and libnbd use too.
const (
	tlsCAFile   = "ca-cert.pem"
	tlsCertFile = "server-cert.pem"
	tlsKeyFile  = "server-key.pem"
)

// LoadTLS reads dir/server-cert.pem, dir/server-key.pem and, if it is there,
// dir/ca-cert.pem: then clients must show a certificate that it has signed.
func LoadTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, tlsCertFile), filepath.Join(dir, tlsKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load TLS certificate from %s: %w", dir, err)
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
		DynamicRecordSizingDisabled: true, // as withDefaults does, which does not see later ones
		SessionTicketsDisabled:      true, // a ticket would outlive a change of the authority
	}
	pem, err := os.ReadFile(filepath.Join(dir, tlsCAFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("load TLS authority: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load TLS authority: no certificate in %s", filepath.Join(dir, tlsCAFile))
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}

// Peer is who is at the other end of a connection.
type Peer struct {
	Addr net.Addr
	TLS  bool
	// Names are those of the client's certificate, which was verified: its
	// common name, then its DNS names. Empty: there was none.
	Names []string
}

// local reports a client on a unix socket: the socket's permissions let it in.
func (p Peer) local() bool {
	_, ok := p.Addr.(*net.UnixAddr)
	return ok
}

// Grants says who may use which exports: a certificate's name leads to exports,
// as patterns of path.Match. Allow is for Options.Allow.
type Grants map[string][]string

// Allow reports whether one of the peer's names is granted the export. Clients
// on unix sockets that have not started TLS may use all: the socket's
// permissions let them in.
func (g Grants) Allow(p Peer, export string) bool {
	if p.local() && !p.TLS {
		return true
	}
	for _, name := range p.Names {
		for _, pattern := range g[name] {
			if ok, err := path.Match(pattern, export); ok && err == nil {
				return true
			}
		}
	}
	return false
}

// Validate finds patterns that match nothing because they are malformed.
func (g Grants) Validate() error {
	for name, patterns := range g {
		for _, p := range patterns {
			if _, err := path.Match(p, ""); err != nil {
				return fmt.Errorf("exports of certificate name %q: pattern %q: %w", name, p, err)
			}
		}
	}
	return nil
}

// startTLS answers STARTTLS. What was negotiated before is forgotten: anyone
// may have said it. After the acknowledgement there is no way back.
func (h *handshake) startTLS(ctx context.Context, data []byte) error {
	config := h.server.opts.TLS
	switch {
	case config == nil:
		h.reply(wire.OptStartTLS, wire.RepErrUnsup, []byte("the server has no TLS certificate"))
		return nil
	case h.peer.TLS:
		h.reply(wire.OptStartTLS, wire.RepErrInvalid, []byte("TLS is in use"))
		return nil
	case len(data) > 0:
		h.reply(wire.OptStartTLS, wire.RepErrInvalid, []byte("the option takes no data"))
		return nil
	}
	h.reply(wire.OptStartTLS, wire.RepAck, nil)
	if err := h.w.Flush(); err != nil {
		return err
	}
	if h.r.Buffered() > 0 {
		return errors.New("start TLS: data before the acknowledgement")
	}
	s := newTLSStream(h.conn.Conn, config)
	if err := s.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("start TLS: %w", err)
	}
	h.conn.stream = s
	h.r, h.w = bufio.NewReader(s), bufio.NewWriter(s)
	h.form, h.contexts, h.contextsOf = formSimple, nil, ""
	h.peer.TLS = true
	if certs := s.ConnectionState().PeerCertificates; len(certs) > 0 && len(s.ConnectionState().VerifiedChains) > 0 {
		h.peer.Names = certificateNames(certs[0])
	}
	return nil
}

func certificateNames(c *x509.Certificate) []string {
	var names []string
	if c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	return append(names, c.DNSNames...)
}

// allowed reports whether the peer may use an export, by its canonical name.
func (h *handshake) allowed(export string) bool {
	allow := h.server.opts.Allow
	if allow == nil || allow(h.peer, export) {
		return true
	}
	h.server.opts.Logger.Warn("nbd: export refused", "remote", h.peer.Addr.String(), "export", export,
		"tls", h.peer.TLS, "certificate", h.peer.Names)
	return false
}

// tlsStream is a TLS connection that gathers records: between cork and uncork
// what is written waits, so that a batch of replies is one system call.
type tlsStream struct {
	*tls.Conn
	pipe *tlsPipe
}

func newTLSStream(nc net.Conn, config *tls.Config) *tlsStream {
	p := &tlsPipe{Conn: nc, r: bufio.NewReaderSize(nc, readBufferBytes), w: bufio.NewWriterSize(nc, flushBytes)}
	return &tlsStream{tls.Server(p, config), p}
}

// CloseWrite says goodbye in TLS and below.
func (s *tlsStream) CloseWrite() error {
	err := s.Conn.CloseWrite()
	if half, ok := s.pipe.Conn.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	return err
}

// tlsPipe is what TLS writes its records to.
type tlsPipe struct {
	net.Conn
	r *bufio.Reader

	mu     sync.Mutex
	w      *bufio.Writer
	corked bool
}

func (p *tlsPipe) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *tlsPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.w.Write(b)
	if err == nil && !p.corked {
		err = p.w.Flush()
	}
	return n, err
}

func (p *tlsPipe) cork() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.corked = true
}

func (p *tlsPipe) uncork() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.corked = false
	return p.w.Flush()
}
