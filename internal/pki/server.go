package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Paths of the endpoint.
const (
	pathTrust = "/v1/trust"
	pathJoin  = "/v1/join"
	pathRenew = "/v1/renew"

	wireVersion     = 1
	requestBytesMax = 16 << 10
	headerBytesMax  = 8 << 10
	replyBytesMax   = trustBytesMax*3/2 + 64<<10
	// requestTime bounds a handshake, a request and its answer each.
	requestTime = 10 * time.Second
	// wrongProofsMax is after how many a token is void: whoever has its id and not
	// its secret is no machine of ours.
	wrongProofsMax = 10
)

// Server is the endpoint at which machines join and members renew. It holds only
// counts; everything else is the authority's.
type Server struct {
	authority *Authority
	identity  *Identity
	log       *slog.Logger
	limits    *limits

	mu    sync.Mutex
	wrong map[string]int // proofs, by id of a token that exists
}

// NewServer answers for an authority, as that member.
func NewServer(a *Authority, i *Identity, log *slog.Logger) *Server {
	return &Server{authority: a, identity: i, log: log, limits: newLimits(), wrong: map[string]int{}}
}

// Serve answers on the listener until ctx ends, and closes it. What is being
// answered then is finished. Connections and requests are bounded in number, bytes
// and time.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler: s.handler(), ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: requestTime, MaxHeaderBytes: headerBytesMax,
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tls.NewListener(&limitedListener{l, s.limits}, s.tlsConfig())) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTime)
	defer cancel()
	err := server.Shutdown(stop)
	if err != nil {
		err = server.Close()
	}
	<-done
	return err
}

// tlsConfig takes everybody: who has no certificate may join, and who has one that
// is refused learns why. Each request is checked.
func (s *Server) tlsConfig() *tls.Config {
	c := s.identity.ServerConfig()
	c.ClientAuth, c.VerifyConnection = tls.RequestClientCert, nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		s.identity.reload() // who has just heard of a change must not meet what was before it
		return s.identity.certificate()
	}
	return c
}

// handler is for a server of TLS that asks for certificates and does not verify
// them, as Serve's.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathTrust, s.trust)
	mux.HandleFunc("POST "+pathJoin, s.join)
	mux.HandleFunc("POST "+pathRenew, s.renew)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || r.TLS.Version < tls.VersionTLS13 {
			http.Error(w, "TLS 1.3 is needed", http.StatusForbidden)
			return
		}
		if !s.limits.request(r.RemoteAddr, time.Now()) {
			w.Header().Set("Retry-After", "1")
			s.fail(w, r, ErrBusy)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, requestBytesMax)
		mux.ServeHTTP(w, r)
	})
}

// reply is the answer to all that asks for a certificate; or Error.
type reply struct {
	Certificate []byte `json:"certificate,omitempty"` // DER
	Trust       string `json:"trust,omitempty"`
	Error       string `json:"error,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// reasons are the names of errors between servers and clients.
var reasons = map[string]error{
	"foreign": ErrForeign, "expired": ErrExpired, "not-yet-valid": ErrNotYetValid, "revoked": ErrRevoked, "role": ErrRole,
	"malformed": ErrCorrupt, "unsupported": ErrUnsupported, "refused": ErrRefused, "busy": ErrBusy,
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	out, status := reply{Error: "the authority has failed; its log says why"}, http.StatusInternalServerError
	for reason, is := range reasons {
		if errors.Is(err, is) {
			out, status = reply{Error: err.Error(), Reason: reason}, http.StatusForbidden
		}
	}
	if errors.Is(err, ErrBusy) {
		status = http.StatusTooManyRequests
	}
	level := slog.LevelInfo
	if out.Reason == "" {
		level = slog.LevelError
	}
	s.log.Log(r.Context(), level, "pki: request refused", "path", truncated(r.URL.Path), "remote", r.RemoteAddr, "err", err)
	s.answer(w, status, out)
}

func (s *Server) answer(w http.ResponseWriter, status int, out reply) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // who has gone away asks again
}

// peer returns who asks, as the authority's newest state has it; nil for nobody.
func (s *Server) peer(r *http.Request, state *authorityState) (*x509.Certificate, Member, error) {
	if len(r.TLS.PeerCertificates) == 0 {
		return nil, Member{}, nil
	}
	c := r.TLS.PeerCertificates[0]
	t, err := state.trust()
	if err != nil {
		return nil, Member{}, err
	}
	m, err := t.verify(c, s.authority.now())
	return c, m, err
}

// trust gives the trust document to anybody: it is signed, and no secret. A member
// says with ?have= which it has, and gets none if there is no newer one.
func (s *Server) trust(w http.ResponseWriter, r *http.Request) {
	state, err := s.authority.read()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	c, m, err := s.peer(r, state)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	have := uint64(0)
	if text := r.URL.Query().Get("have"); text != "" {
		if have, err = strconv.ParseUint(text, 10, 64); err != nil {
			s.fail(w, r, fmt.Errorf("%w: have=%s", ErrCorrupt, truncated(text)))
			return
		}
	}
	if c != nil && have > 0 && state.contact(m, c, have, s.authority.now()) {
		err := s.authority.change(func(is *authorityState, now time.Time) error {
			if !is.contact(m, c, have, now) {
				return errUnchanged
			}
			return nil
		})
		if err != nil {
			s.fail(w, r, err)
			return
		}
	}
	if have >= state.Sequence {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	text, err := state.trustText()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, http.StatusOK, reply{Trust: string(text)})
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	var q joinRequest
	exported, err := r.TLS.ExportKeyingMaterial(exporterLabel, nil, exporterBytes)
	if err == nil {
		err = readRequest(r, &q, &q.Version)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	c, state, err := s.authority.redeem(q, exported)
	if errors.Is(err, errBadToken) {
		err = errors.Join(err, s.wrongProof(q.Token))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	m, err := memberOf(c)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Info("pki: joined", "member", m.String(), "remote", r.RemoteAddr, "serial", serialText(c))
	s.certificate(w, r, c, state)
}

// wrongProof counts those for a token that exists, and ends it after too many.
func (s *Server) wrongProof(id string) error {
	state, err := s.authority.read()
	if err != nil {
		return err
	}
	known := false
	for _, t := range state.Tokens {
		known = known || t.ID == id
	}
	s.mu.Lock()
	if known {
		s.wrong[id]++ // at most tokensMax of them at a time, and all are forgotten below
	}
	tooMany := s.wrong[id] >= wrongProofsMax
	if !known || tooMany {
		delete(s.wrong, id)
	}
	if len(s.wrong) > tokensMax {
		clear(s.wrong)
	}
	s.mu.Unlock()
	if !tooMany {
		return nil
	}
	s.log.Warn("pki: a token is void after too many wrong proofs", "token", id)
	return s.authority.void(id)
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request) {
	var q renewRequest
	if err := readRequest(r, &q, &q.Version); err != nil {
		s.fail(w, r, err)
		return
	}
	if len(r.TLS.PeerCertificates) == 0 {
		s.fail(w, r, fmt.Errorf("%w: only who shows a certificate can renew it", ErrForeign))
		return
	}
	c, state, err := s.authority.renew(r.TLS.PeerCertificates[0], q.CSR)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Info("pki: renewed", "member", c.Subject.CommonName, "remote", r.RemoteAddr, "serial", serialText(c))
	s.certificate(w, r, c, state)
}

func (s *Server) certificate(w http.ResponseWriter, r *http.Request, c *x509.Certificate, state *authorityState) {
	text, err := state.trustText()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, http.StatusOK, reply{Certificate: c.Raw, Trust: string(text)})
}

// renewRequest asks for the next certificate of who shows one.
type renewRequest struct {
	Version int    `json:"version"`
	CSR     []byte `json:"csr"`
}

func readRequest(r *http.Request, v any, version *int) error {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return decodeRequest(text, v, version)
}

func decodeRequest(text []byte, v any, version *int) error {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err == nil && head.Version != wireVersion {
		return fmt.Errorf("%w: a request of version %d, this authority knows %d", ErrUnsupported, head.Version, wireVersion)
	}
	if err := decodeStrict(text, v); err != nil {
		return err
	}
	*version = wireVersion
	return nil
}
