package pki

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plinth/internal/failpoint"
)

const (
	identityFile  = "identity.pem"
	trustFile     = "trust"
	memberFile    = "member.json"
	joiningFile   = "joining.pem"
	authorityFile = "authority.json"
	lockFile      = "lock"

	tmpPrefix = ".tmp-"

	// lockTimeMax is far more than any change of a file takes.
	lockTimeMax  = 10 * time.Second
	lockPollTime = 5 * time.Millisecond
)

// checkDir refuses a folder that others may use.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("folder %s has mode %04o and is %w; run: chmod 700 %s", dir, mode, ErrPermissions, dir)
	}
	return nil
}

// makeDir makes a folder of mode 0700, durably, or checks the one that is there.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return checkDir(dir)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// readPrivate reads a whole file of at most max bytes that only its owner may use.
func readPrivate(path string, max int) ([]byte, error) {
	// Looked at before it is opened: opening a named pipe would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil { // of what was opened, whatever the path means by now
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o and is %w; run: chmod 600 %s", path, mode, ErrPermissions, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(max)+1))
	if err == nil && len(b) > max {
		err = fmt.Errorf("%s: %w: more than %d bytes", path, ErrCorrupt, max)
	}
	return b, err
}

// writePrivate replaces a file whole, mode 0600, durably: after a crash the old one
// is there or the new one. The caller holds the folder's lock.
func writePrivate(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*") // which makes it 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	failpoint.Reach(failpoint.FileWritten)
	if err := os.Rename(tmp.Name(), path); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	failpoint.Reach(failpoint.FileNamed)
	return syncDir(filepath.Dir(path))
}

// removePrivate takes a file away, if there is one.
func removePrivate(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir gives this process alone the right to write in a folder, and takes away
// what crashes left there. It waits for at most lockTimeMax.
func lockDir(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockTimeMax); ; time.Sleep(lockPollTime) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("lock %s, which another plinth uses: %w", dir, err), f.Close())
		}
	}
	if err := removeLeftovers(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

func removeLeftovers(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// locked runs f under the lock of a folder.
func locked(dir string, f func() error) error {
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f(), unlock())
}

// decodeStrict reads one JSON value: no unknown field, nothing after it.
func decodeStrict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more follows the end", ErrCorrupt)
	}
	return nil
}

// decodeVersioned is decodeStrict for a file, whose version is looked at first: a
// newer one may have fields that this program does not know.
func decodeVersioned(text []byte, format string, version int, v any) error {
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(text, &head); err != nil || head.Format != format {
		return fmt.Errorf("%w: not a %s", ErrCorrupt, format)
	}
	if head.Version != version {
		return fmt.Errorf("%w: %s of version %d, this program knows %d", ErrUnsupported, format, head.Version, version)
	}
	return decodeStrict(text, v)
}
