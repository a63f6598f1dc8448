package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// tlsLookTime is the least time between two looks at the files of certificates.
const tlsLookTime = time.Second

// WatchTLS is LoadTLS whose config follows changes of the files: a handshake looks
// at them if none did within a second. What cannot be used is logged, and the
// certificates of before stay: so for a certificate without its key, halfway
// through a change, for an expired one, and for an authority that is gone, without
// which clients would need no certificate. Connections that have begun stay as
// they are.
func WatchTLS(dir string, log *slog.Logger) (*tls.Config, error) {
	w := &tlsWatch{dir: dir, log: log, looked: time.Now(), tried: statTLS(dir)}
	var err error
	if w.config, err = LoadTLS(dir); err != nil {
		return nil, err
	}
	c := w.config.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return w.current(), nil }
	return c, nil
}

// tlsWatch has the newest usable certificates of a directory.
type tlsWatch struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	config *tls.Config
	looked time.Time
	// tried is what the files were before they were last read.
	tried [3]os.FileInfo
}

// statTLS returns what the directory has of each file; nil is none.
func statTLS(dir string) (out [3]os.FileInfo) {
	for i, name := range []string{tlsCertFile, tlsKeyFile, tlsCAFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			out[i] = info
		}
	}
	return out
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// current returns the config for a handshake.
func (w *tlsWatch) current() *tls.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if now.Sub(w.looked) < tlsLookTime {
		return w.config
	}
	w.looked = now
	is := statTLS(w.dir)
	changed := false
	for i := range is {
		changed = changed || !sameFile(is[i], w.tried[i])
	}
	if !changed {
		return w.config
	}
	w.tried = is
	c, err := LoadTLS(w.dir)
	if err == nil {
		err = w.check(c, now)
	}
	if err != nil {
		w.log.Warn("nbd: changed TLS certificates cannot be used, those of before stay", "err", err)
		return w.config
	}
	w.log.Info("nbd: TLS certificates changed", "dir", w.dir, "expire", c.Certificates[0].Leaf.NotAfter)
	w.config = c
	return c
}

// check refuses what would be worse than the certificates in use.
func (w *tlsWatch) check(c *tls.Config, now time.Time) error {
	if w.config.ClientCAs != nil && c.ClientCAs == nil {
		return fmt.Errorf("%s: %w", filepath.Join(w.dir, tlsCAFile), fs.ErrNotExist)
	}
	if end := c.Certificates[0].Leaf.NotAfter; now.After(end) {
		return errors.New("the certificate expired at " + end.String())
	}
	return nil
}
