package shelf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// refused fails the test unless err is want and says the rest.
func refused(t *testing.T, what string, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%s: %q does not say %q", what, err, s)
		}
	}
}

// open opens a node that is there.
func open(t testing.TB, dir string, opts Options) *Shelf {
	t.Helper()
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shut(t testing.TB, s *Shelf) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestForeignDirectories(t *testing.T) {
	opts := small(crashfs.New())
	_, err := Open(t.Context(), "/nothing", opts)
	refused(t, "no directory", err, ErrNoNode, "/nothing", "create")
	if there, _ := exists(opts.FS, "/nothing"); there {
		t.Error("a refused open made the directory")
	}
	p := place{opts.FS, "/letters"}
	populate(t, p, "letters/ letters/one")
	refused(t, "create among letters", Create(p.dir, opts), ErrExists, "letters", "of its own")
	if names, err := opts.FS.List(p.dir); err != nil || len(names) != 1 {
		t.Errorf("a refused create left %v, %v", names, err)
	}
	shut(t, fresh(t, "/data", opts))
	refused(t, "create over a node", Create("/data", opts), ErrExists, "/data")
	other := opts
	other.PoolID[3] = 9
	_, err = Open(t.Context(), "/data", other)
	refused(t, "another pool", err, ErrForeign, "/data")
	for _, change := range []func(*Options){
		func(o *Options) { o.Spindles = 5 }, func(o *Options) { o.LogBytes *= 2 }, func(o *Options) { o.SpindleBytes *= 2 },
	} {
		sized := opts
		change(&sized)
		if s, err := Open(t.Context(), "/data", sized); err == nil || !strings.Contains(err.Error(), "leave the setting out") {
			t.Errorf("other sizes: %v", err)
			if err == nil {
				shut(t, s)
			}
		}
	}
	unsized := Options{PoolID: opts.PoolID, FS: opts.FS}
	shut(t, open(t, "/data", unsized))
}

func TestNewerAndDamagedSuperblock(t *testing.T) {
	opts := small(crashfs.New())
	shut(t, fresh(t, "/data", opts))
	good := superblock{opts.PoolID, opts.Spindles, opts.LogBytes, opts.SpindleBytes}.encode()
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   error
	}{
		{"version", func(b []byte) { b[8] = 2; mend(b) }, ErrNewer},
		{"feature", func(b []byte) { b[11] = 1; mend(b) }, ErrNewer},
		{"damage", func(b []byte) { b[20]++ }, ErrDamaged},
		{"foreign", func(b []byte) { b[0]++ }, ErrForeign},
	} {
		bad := append([]byte(nil), good...)
		c.change(bad)
		f, err := opts.FS.Create("/data/node", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(bad)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), "/data", opts)
		refused(t, c.name, err, c.want, "/data/node")
		_, err = Recover(t.Context(), "/data", opts)
		refused(t, c.name, err, c.want, "/data/node")
		refused(t, c.name, Create("/data", opts), ErrExists)
	}
}

func TestTwoOpens(t *testing.T) {
	for _, fs := range []vfs.FS{crashfs.New(), vfs.Default} {
		opts, dir := small(fs), "/data"
		if fs == vfs.Default {
			dir = t.TempDir()
		}
		s := fresh(t, dir, opts)
		_, err := Open(t.Context(), dir, opts)
		refused(t, "second open", err, ErrLocked, dir, "stop it")
		_, err = Recover(t.Context(), dir, opts)
		refused(t, "recover of an open node", err, ErrLocked, dir)
		if _, err := s.Status(t.Context()); err != nil {
			t.Errorf("the first one after the second: %v", err)
		}
		shut(t, s)
		shut(t, s)
		s = open(t, dir, opts)
		shut(t, s)
	}
}

// TestOtherProcess is run again by TestLockAcrossProcesses.
func TestOtherProcess(t *testing.T) {
	dir := os.Getenv("PLINTH_SHELF_TEST_DIR")
	if dir == "" {
		return
	}
	s, err := Open(t.Context(), dir, small(vfs.Default))
	fmt.Printf("opened: %t, locked: %t\n", err == nil, errors.Is(err, ErrLocked))
	if s != nil {
		shut(t, s)
	}
}

func TestLockAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	s := fresh(t, dir, small(vfs.Default))
	again := func() string {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOtherProcess$", "-test.v")
		cmd.Env = append(os.Environ(), "PLINTH_SHELF_TEST_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := again(); !strings.Contains(out, "opened: false, locked: true") {
		t.Errorf("while it is open: %s", out)
	}
	shut(t, s)
	if out := again(); !strings.Contains(out, "opened: true") {
		t.Errorf("after the close: %s", out)
	}
}

func TestClosedNodeRefuses(t *testing.T) {
	s := fresh(t, "/data", small(crashfs.New()))
	ctx := t.Context()
	_, err := s.Fence(ctx, &datanode.FenceRequest{Disk: 1, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, s)
	calls := map[string]func() error{
		"Fence":  func() error { _, err := s.Fence(ctx, &datanode.FenceRequest{Disk: 1, Epoch: 2}); return err },
		"Sync":   func() error { return s.Sync(ctx, &datanode.SyncRequest{Disk: 1, Epoch: 1}) },
		"Append": func() error { _, err := s.Append(ctx, appending(1, 1, "x")); return err },
		"Reserve": func() error {
			return s.Reserve(ctx, &datanode.ReserveRequest{Host: "a", Bytes: 1})
		},
		"Publish":     func() error { return s.Publish(ctx, &datanode.PublishRequest{}) },
		"RegistryGet": func() error { _, err := s.RegistryGet(ctx, &datanode.RegistryGetRequest{Key: "a"}); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, datanode.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// appending is an append of one operation.
func appending(disk id.Disk, pos id.Pos, data string) *datanode.AppendRequest {
	return &datanode.AppendRequest{
		Disk: disk, Epoch: 1, Records: []datanode.Record{{Pos: pos, Type: 1, Data: []byte(data)}},
	}
}

func TestTooLargeForTheFileSystem(t *testing.T) {
	opts := small(vfs.Default)
	opts.SpindleBytes = 1 << 49
	dir := filepath.Join(t.TempDir(), "node")
	refused(t, "half a petabyte per spindle", Create(dir, opts), ErrTooLarge, dir, "choose smaller sizes")
	opts.SpindleBytes = 16 << 20
	shut(t, fresh(t, dir, opts))
}

// A spindle that is taken away shows within ten seconds though nobody reads it,
// is served as absent from then on, and is not made again by an open.
func TestRemovedSpindle(t *testing.T) {
	t.Parallel()
	opts, dir := small(vfs.Default), t.TempDir()
	s := fresh(t, dir, opts)
	gone := filepath.Join(dir, spindleName(2))
	if err := os.RemoveAll(gone); err != nil {
		t.Fatal(err)
	}
	state := func(s *Shelf) datanode.SpindleStatus {
		status, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.Spindles[2]
	}
	for start := time.Now(); state(s).State == datanode.SpindleOK; time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("not seen after a minute")
		}
	}
	commit(t, s, "a", "1")
	shut(t, s)
	s = open(t, dir, opts)
	if got := state(s); got.State != datanode.SpindleAbsent || got.Reason == "" {
		t.Errorf("after an open: %+v", got)
	}
	if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Errorf("the directory was made again: %v", err)
	}
	if got := value(t, s, "a"); got != "1" {
		t.Errorf("the registry has %q", got)
	}
	shut(t, s)
}

func commit(t testing.TB, s *Shelf, key, value string) {
	t.Helper()
	_, err := s.RegistryCommit(context.Background(), &datanode.RegistryTxn{Puts: []datanode.Put{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
}

func value(t testing.TB, s *Shelf, key string) string {
	t.Helper()
	reply, err := s.RegistryGet(context.Background(), &datanode.RegistryGetRequest{Key: key})
	if err != nil {
		t.Errorf("get %s: %v", key, err)
		return ""
	}
	return string(reply.Value)
}

func TestReplacedLockFile(t *testing.T) {
	dir := t.TempDir()
	s := fresh(t, dir, small(vfs.Default))
	if err := s.Held(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, lockName)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.checkLock()
	if err := s.Held(); !errors.Is(err, datanode.ErrClosed) {
		t.Errorf("with another lock file: %v", err)
	}
}
