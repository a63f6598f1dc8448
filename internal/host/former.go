package host

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/internal/vfsx"
)

// What proves that a host's former self is dead, so that its lease may be ended at
// once. A life of an agent has a random number. It takes a lock of its directory,
// which the kernel gives free when the process ends, however that happens, and notes
// its number there, durably, before the registry has it. So a number that is found
// there by who has the lock now is that of a life that is over. A directory may
// be copied, with a whole machine or beside it, and the lock then excludes
// nobody: what is noted counts only in the run of the machine, and in the file,
// in which it was.

const (
	lockName    = "lock"
	livesName   = "lives"
	livesMax    = 16 // more are forgotten, and waited for
	livesBytes  = 4096
	lifeBytes   = 16
	bootIDPath  = "/proc/sys/kernel/random/boot_id"
	livesFormat = 1
)

// newLife draws the number of a life.
func newLife() string {
	b := make([]byte, lifeBytes)
	rand.Read(b) // never fails: the runtime ends the process instead
	return hex.EncodeToString(b)
}

// lives is the file of a directory's lives, as JSON.
type lives struct {
	Version int `json:"version"`
	// Boot is the run of the machine, Lock the file that was locked: what the
	// numbers are good for.
	Boot  string   `json:"boot"`
	Lock  string   `json:"lock"`
	Lives []string `json:"lives"`
}

// home is a directory that this life has locked.
type home struct {
	fs   vfs.FS
	dir  string
	lock io.Closer
	now  lives
}

// openHome locks a directory and notes a life in it. over are the lives that are
// known to be over. Close ends the lock.
func openHome(fs vfs.FS, dir, life string) (h *home, over []string, err error) {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	path := fs.PathJoin(dir, lockName)
	lock, err := fs.Lock(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: another process serves from %s: %w", ErrInUse, dir, err)
	}
	h = &home{fs: fs, dir: dir, lock: lock}
	if h.now.Lock, err = fileID(fs, path); err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	boot, _ := os.ReadFile(bootIDPath) // without one nothing that is noted counts later
	h.now.Version, h.now.Boot = livesFormat, strings.TrimSpace(string(boot))
	if before, err := h.read(); err == nil && before.Boot == h.now.Boot && h.now.Boot != "" && before.Lock == h.now.Lock {
		over = before.Lives
	}
	all := append([]string{life}, over...)
	if err := h.note(all[:min(len(all), livesMax)]); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("note this life in %s: %w", dir, err), h.Close())
	}
	return h, over, nil
}

// alone notes that the registry has no session of a life before this one.
func (h *home) alone() error { return h.note(h.now.Lives[:1]) }

func (h *home) Close() error { return h.lock.Close() }

func (h *home) read() (*lives, error) {
	f, err := h.fs.Open(h.fs.PathJoin(h.dir, livesName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, livesBytes))
	if err != nil {
		return nil, err
	}
	var l lives
	if err := json.Unmarshal(b, &l); err != nil || l.Version != livesFormat {
		return nil, fmt.Errorf("%s is not a list of lives: %w", livesName, err)
	}
	return &l, nil
}

// note replaces the file, durably.
func (h *home) note(all []string) error {
	h.now.Lives = slices.Clone(all)
	b, err := json.Marshal(&h.now)
	if err != nil {
		return err
	}
	path := h.fs.PathJoin(h.dir, livesName)
	f, err := h.fs.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(b))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := h.fs.Rename(path+".new", path); err != nil {
		return err
	}
	return vfsx.SyncDir(h.fs, h.dir)
}

// fileID names a file among those of this run of the machine; a file system in
// memory has no names for them, and no copies either.
func fileID(fs vfs.FS, path string) (string, error) {
	info, err := fs.Stat(path)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", nil
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino), nil
}
