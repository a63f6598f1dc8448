package pki

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

const (
	memberFormat  = "plinth member"
	memberVersion = 1
	serversMax    = 16
	// busyTime is how long who is told that there are too many requests waits.
	busyTime     = time.Second
	busyTriesMax = 10
)

// issuers are the roles of those who answer for the authority.
var issuers = []Role{RoleAdmin, RoleDataNode}

// memberState is member.json: where the authority is.
type memberState struct {
	Format  string   `json:"format"`
	Version int      `json:"version"`
	Servers []string `json:"servers"`
}

func parseMemberState(text []byte) (*memberState, error) {
	m := &memberState{}
	if err := decodeVersioned(text, memberFormat, memberVersion, m); err != nil {
		return nil, err
	}
	if len(m.Servers) > serversMax {
		return nil, fmt.Errorf("%w: %d servers", ErrCorrupt, len(m.Servers))
	}
	for _, s := range m.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return nil, fmt.Errorf("%w: server %q is not HOST:PORT", ErrCorrupt, truncated(s))
		}
	}
	return m, nil
}

// Servers are the addresses of the authority that the folder names; none if it is
// in the folder itself.
func (i *Identity) Servers() ([]string, error) {
	path := filepath.Join(i.dir, memberFile)
	text, err := readPrivate(path, memberBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseMemberState(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m.Servers, nil
}

// call sends one request over a connection of its own, again where the server is
// too busy. request may depend on what was negotiated.
func call(ctx context.Context, server string, config *tls.Config, request func(tls.ConnectionState) (*http.Request, error)) (*reply, error) {
	for try := 1; ; try++ {
		out, err := callOnce(ctx, server, config, request)
		if !errors.Is(err, ErrBusy) || try == busyTriesMax {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyTime):
		}
	}
}

func callOnce(ctx context.Context, server string, config *tls.Config, request func(tls.ConnectionState) (*http.Request, error)) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*requestTime)
	defer cancel()
	fail := func(err error) (*reply, error) { return nil, fmt.Errorf("authority at %s: %w", server, err) }
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
	if err != nil {
		return fail(err)
	}
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	defer nc.Close()
	conn := tls.Client(nc, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	q, err := request(conn.ConnectionState())
	if err != nil {
		return fail(err)
	}
	q.Close = true
	if err := q.Write(conn); err != nil {
		return fail(err)
	}
	p, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, replyBytesMax)), q)
	if err != nil {
		return fail(err)
	}
	defer p.Body.Close()
	if p.StatusCode == http.StatusNoContent {
		return &reply{}, nil
	}
	text, err := io.ReadAll(p.Body)
	if err != nil {
		return fail(err)
	}
	out := &reply{}
	if err := json.Unmarshal(text, out); err != nil { // a newer server may say more
		return fail(fmt.Errorf("%w: an answer with status %s", ErrCorrupt, p.Status))
	}
	if p.StatusCode != http.StatusOK {
		return fail(remoteError{truncatedText(out.Error), reasons[out.Reason]})
	}
	return out, nil
}

// remoteError is what the authority said.
type remoteError struct {
	text string
	is   error
}

func (e remoteError) Error() string { return e.text }
func (e remoteError) Unwrap() error { return e.is }

// truncatedText bounds what is shown of a server's words.
func truncatedText(s string) string {
	const max = 512
	out := []rune{}
	for _, r := range s[:min(len(s), max)] {
		if r < ' ' {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

func get(path string) func(tls.ConnectionState) (*http.Request, error) {
	return func(tls.ConnectionState) (*http.Request, error) {
		return http.NewRequest(http.MethodGet, "https://plinth"+path, nil)
	}
}

func post(path string, v any) (*http.Request, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return http.NewRequest(http.MethodPost, "https://plinth"+path, bytes.NewReader(body))
}

// Fetch takes the authority's newest trust document, if it is newer. The authority
// learns by it what this member uses.
func (i *Identity) Fetch(ctx context.Context, server string) error {
	for range 2 { // the second tells that the document has arrived
		have := i.current().trust.Sequence
		out, err := call(ctx, server, i.clientConfig(issuers, ""), get(pathTrust+"?have="+strconv.FormatUint(have, 10)))
		if err != nil || out.Trust == "" {
			return err
		}
		if newer, err := i.takeTrust([]byte(out.Trust)); err != nil || !newer {
			return err
		}
	}
	return nil
}

// Renew gets the next certificate, for a new key, and stores it.
func (i *Identity) Renew(ctx context.Context, server string) error {
	key := newKey()
	csr, err := newCSR(key)
	if err != nil {
		return err
	}
	out, err := call(ctx, server, i.clientConfig(issuers, ""), func(tls.ConnectionState) (*http.Request, error) {
		return post(pathRenew, renewRequest{wireVersion, csr})
	})
	if err != nil {
		return err
	}
	if _, err := i.takeTrust([]byte(out.Trust)); err != nil {
		return err
	}
	if err := i.takeCert(key, out.Certificate); err != nil {
		return err
	}
	return i.Fetch(ctx, server)
}

// JoinOptions say where a machine joins.
type JoinOptions struct {
	Token  Token
	Server string // HOST:PORT
	// Replace joins although the folder has an identity, which is lost.
	Replace bool
}

// Join gets a certificate for a key that is made here and stays here. The server is
// believed if it shows what the authority of the token's fingerprint has signed. A
// join that was interrupted is gone on with by the same call.
func Join(ctx context.Context, dir string, o JoinOptions, log *slog.Logger) (*Identity, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	err := locked(dir, func() error { return join(ctx, dir, o) })
	if err != nil {
		return nil, err
	}
	i, err := Load(dir, log)
	if err != nil {
		return nil, err
	}
	if err := i.Fetch(ctx, o.Server); err != nil {
		log.Warn("pki: joined, but the authority does not know yet that the certificate has arrived", "err", err)
	}
	return i, nil
}

func join(ctx context.Context, dir string, o JoinOptions) error {
	key, done, err := joiningKey(dir, o.Replace)
	if err != nil {
		return err
	}
	if done {
		return removePrivate(filepath.Join(dir, joiningFile))
	}
	t, err := fetchFirst(ctx, o)
	if err != nil {
		return err
	}
	csr, err := newCSR(key)
	if err != nil {
		return err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // of a host name
		VerifyConnection: func(cs tls.ConnectionState) error { return t.verifyIssuer(cs) },
	}
	out, err := call(ctx, o.Server, config, func(cs tls.ConnectionState) (*http.Request, error) {
		exported, err := cs.ExportKeyingMaterial(exporterLabel, nil, exporterBytes)
		if err != nil {
			return nil, err
		}
		return post(pathJoin, joinRequest{wireVersion, hex.EncodeToString(o.Token.ID[:]), csr, proof(o.Token.secret[:], exported, csr)})
	})
	if err != nil {
		return err
	}
	return storeJoined(dir, o.Server, key, t, out)
}

// joiningKey makes the key that is to be certified, or returns that of a join which
// was interrupted; done: all but the end of it.
func joiningKey(dir string, replace bool) (key ed25519.PrivateKey, done bool, err error) {
	path := filepath.Join(dir, joiningFile)
	if text, err := readPrivate(path, identityBytesMax); err == nil {
		k, rest, err := parseKey(text)
		if err == nil && len(rest) == 0 {
			key = k
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	is, err := loadCredentials(dir)
	switch {
	case err == nil && key != nil && key.Public().(ed25519.PublicKey).Equal(is.cert.Leaf.PublicKey):
		return key, true, nil
	case errors.Is(err, ErrNoIdentity) || replace:
	case err != nil:
		return nil, false, fmt.Errorf("%w; --replace gives the identity of the folder up", err)
	case time.Now().Before(is.cert.Leaf.NotAfter):
		m, _ := memberOf(is.cert.Leaf)
		return nil, false, fmt.Errorf("%s is %s of cluster %s already: join in another folder; --replace gives that identity up", dir, m, m.Cluster)
	}
	if key != nil {
		return key, false, nil
	}
	key = newKey()
	return key, false, writePrivate(path, encodeKey(key))
}

// fetchFirst gets the trust document from a server of which nothing is known, and
// believes it for the token's fingerprint.
func fetchFirst(ctx context.Context, o JoinOptions) (*trust, error) {
	nobody := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // what comes is signed
	out, err := call(ctx, o.Server, nobody, get(pathTrust))
	if err != nil {
		return nil, err
	}
	t, err := parseTrust([]byte(out.Trust))
	if err != nil {
		return nil, fmt.Errorf("authority at %s: %w", o.Server, err)
	}
	a := t.authority(o.Token.Authority)
	if a == nil || !t.signedBy([]*x509.Certificate{a}) {
		return nil, fmt.Errorf("%w: the server at %s is not of the cluster that the token is for (its authority is %s, the token's %s): a wrong address, or somebody in between",
			ErrForeign, o.Server, fingerprint(t.issuer()), o.Token.Authority)
	}
	return t, nil
}

func (t *trust) verifyIssuer(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the server has shown no certificate", ErrForeign)
	}
	m, err := t.verify(cs.PeerCertificates[0], time.Now())
	if err == nil && m.Role != RoleAdmin && m.Role != RoleDataNode {
		err = fmt.Errorf("%w: the server is %s, which does not answer for the authority", ErrRole, m)
	}
	return err
}

// storeJoined checks the answer and writes the folder; the identity comes last and
// makes it one.
func storeJoined(dir, server string, key ed25519.PrivateKey, t *trust, out *reply) error {
	next, err := parseTrust([]byte(out.Trust))
	if err != nil {
		return err
	}
	if _, err := t.succeeds(next); err != nil {
		return err
	}
	c, err := parseCert(out.Certificate)
	if err != nil {
		return err
	}
	if _, err := next.verify(c, time.Now()); err != nil {
		return err
	}
	if !key.Public().(ed25519.PublicKey).Equal(c.PublicKey) {
		return fmt.Errorf("%w: the certificate is of another key", ErrForeign)
	}
	state, err := json.Marshal(memberState{memberFormat, memberVersion, []string{server}})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{{memberFile, append(state, '\n')}, {trustFile, next.text}, {identityFile, encodeIdentity(key, c)}} {
		if err := writePrivate(filepath.Join(dir, f.name), f.text); err != nil {
			return err
		}
	}
	return removePrivate(filepath.Join(dir, joiningFile))
}
