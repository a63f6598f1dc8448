package api

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Address says where an API is: a unix socket's path, or HOST:PORT.
type Address struct {
	Unix string
	TCP  string
}

// ParseAddress reads unix:PATH or HOST:PORT.
func ParseAddress(text string) (Address, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if path == "" {
			return Address{}, errors.New("API address unix: needs a path, like unix:/run/plinth.sock")
		}
		return Address{Unix: path}, nil
	}
	if err := CheckHostPort(text); err != nil {
		return Address{}, fmt.Errorf("API address %q is neither unix:PATH nor HOST:PORT", text)
	}
	return Address{TCP: text}, nil
}

// CheckHostPort returns an error unless text is HOST:PORT with a port by number;
// the host may be empty.
func CheckHostPort(text string) error {
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("address %q is not of the form HOST:PORT", text)
	}
	return nil
}

func (a Address) String() string {
	if a.Unix != "" {
		return "unix:" + a.Unix
	}
	return a.TCP
}

// loopback reports whether only this machine can reach the address.
func (a Address) loopback() bool {
	host, _, err := net.SplitHostPort(a.TCP)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ListenOptions is what TCP needs.
type ListenOptions struct {
	// CertFile and KeyFile are PEM files for TLS: required off loopback.
	CertFile, KeyFile string
}

// Validate returns the error that Listen would return for an address whatever
// the state of the machine.
func (o ListenOptions) Validate(a Address) error {
	switch {
	case a.Unix != "":
		return CheckSocketPath(a.Unix)
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("TLS needs both a certificate and a key file")
	case o.CertFile == "" && !a.loopback():
		return fmt.Errorf("API on %s can be reached from other machines and needs TLS: give a certificate and a key, or listen on 127.0.0.1", a.TCP)
	}
	return nil
}

// Listen opens a listener: a unix socket of mode 0600, in place of one that a
// dead process left; or TCP, under TLS where files are given.
func Listen(a Address, opts ListenOptions) (net.Listener, error) {
	if err := opts.Validate(a); err != nil {
		return nil, err
	}
	if a.Unix != "" {
		return ListenUnix(a.Unix)
	}
	if opts.CertFile == "" {
		return net.Listen("tcp", a.TCP)
	}
	cert, err := tls.LoadX509KeyPair(opts.CertFile, opts.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("API certificate: %w", err)
	}
	return tls.Listen("tcp", a.TCP, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
}

// socketPathMax is what a sockaddr_un holds, without its final zero.
const socketPathMax = 107

// CheckSocketPath returns an error for a path that is too long for a socket.
func CheckSocketPath(path string) error {
	if len(path) > socketPathMax {
		return fmt.Errorf("socket path %s is longer than %d bytes: choose a shorter one", path, socketPathMax)
	}
	return nil
}

// ListenUnix opens a socket of mode 0600. A socket file to which nobody listens
// is replaced; one that answers, or another kind of file, is an error.
func ListenUnix(path string) (net.Listener, error) {
	if err := CheckSocketPath(path); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s exists and is not a socket", path)
		}
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("another process listens on %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Made under a private name first: there is no moment at which others may
	// connect.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// By descriptor, because the private name may be longer than a socket's can be.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", f.Fd()), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	tmp := filepath.Join(dir, "s")
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &unixListener{l, path}, nil
}

// unixListener removes its socket when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
}

// Addr returns the name that the socket has now.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// LoadToken reads the bearer token from a file of mode 0600, and makes one at
// random if there is none.
func LoadToken(path string) (string, error) {
	b, err := ReadToken(path)
	if !errors.Is(err, os.ErrNotExist) {
		return b, err
	}
	var raw [32]byte
	rand.Read(raw[:]) // never fails: the runtime ends the process instead
	token := hex.EncodeToString(raw[:])
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("make an API token: %w", err)
	}
	_, err = f.WriteString(token + "\n")
	return token, errors.Join(err, f.Sync(), f.Close())
}

const (
	tokenBytesMin = 16
	tokenBytesMax = 4096
)

// ReadToken reads a bearer token that must exist.
func ReadToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("API token: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("API token file %s has mode %04o and is open to others; run: chmod 600 %s", path, mode, path)
	}
	if info.Size() > tokenBytesMax {
		return "", fmt.Errorf("API token file %s has %d bytes: a token has at most %d", path, info.Size(), tokenBytesMax)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("API token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < tokenBytesMin {
		return "", fmt.Errorf("API token file %s holds fewer than %d characters", path, tokenBytesMin)
	}
	return token, nil
}

// RequireToken lets only requests with the bearer token through.
func (s *Server) RequireToken(token string) {
	next := s.http.Handler
	want := []byte("Bearer " + token)
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeJSON(w, http.StatusUnauthorized, errorReply{ErrorBody{"unauthorized", "a bearer token is needed"}})
			return
		}
		next.ServeHTTP(w, r)
	})
}
