package shelf

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/internal/vfsx"
	"plinth/internal/vfsx/crashfs"
)

// drives returns the states of a node's spindles.
func drives(t testing.TB, s *Shelf) []datanode.SpindleStatus {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Spindles
}

// absent fails the test unless spindle n is absent for a reason.
func absent(t testing.TB, s *Shelf, n int, reason string) {
	t.Helper()
	if d := drives(t, s)[n]; d.State != datanode.SpindleAbsent || !strings.Contains(d.Reason, reason) {
		t.Errorf("spindle %d is %s: %q, want it absent: %q", n, d.State, d.Reason, reason)
	}
}

func TestReplaceSpindle(t *testing.T) {
	opts, dir := small(vfs.Default), t.TempDir()
	s := fresh(t, dir, opts)
	before := drives(t, s)
	commit(t, s, "a", "1")
	path := filepath.Join(dir, spindleName(2))
	refused(t, "of a node that is open", ReplaceSpindle(dir, 2, opts), ErrLocked)
	shut(t, s)

	no := func(what string, says ...string) {
		t.Helper()
		refused(t, what, ReplaceSpindle(dir, 2, opts), ErrNotReplaced, says...)
	}
	no("of a drive that serves", "unmount", path)
	refused(t, "one that there is not", ReplaceSpindle(dir, 4, opts), ErrNotReplaced, "0 to 3")
	old := path + ".old"
	move(t, path, old)
	no("without a directory", "there is no "+path)
	mkdir(t, path)
	s = open(t, dir, opts)
	absent(t, s, 2, "plinth spindle replace 2") // an empty directory alone is no new drive
	shut(t, s)
	write(t, filepath.Join(path, "letter"))
	no("on somebody's files", "letter")
	if err := os.Remove(filepath.Join(path, "letter")); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(path, lostFound))
	write(t, filepath.Join(path, "spindle.new")) // of a replacement that was interrupted
	if err := ReplaceSpindle(dir, 2, opts); err != nil {
		t.Fatal(err)
	}
	no("twice", "unmount")
	s = open(t, dir, opts)
	after := drives(t, s)
	for n := range after {
		if after[n].State != datanode.SpindleOK || after[n].Incarnation == 0 ||
			(after[n].Incarnation == before[n].Incarnation) != (n != 2) {
			t.Errorf("spindle %d before: %+v, after: %+v", n, before[n], after[n])
		}
	}
	if got := value(t, s, "a"); got != "1" {
		t.Errorf("the registry has %q", got)
	}
	shut(t, s)

	// The old drive comes back late.
	move(t, path, path+".new")
	move(t, old, path)
	s = open(t, dir, opts)
	absent(t, s, 2, "was replaced")
	shut(t, s)
	no("by the former one", "holds")
	move(t, path, old)
	move(t, path+".new", path)
	s = open(t, dir, opts)
	if d := drives(t, s)[2]; d != after[2] {
		t.Errorf("the new drive is %+v, was %+v", d, after[2])
	}
	shut(t, s)
}

func move(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOlderCopy puts a copy in a spindle's place that was made before the node's last
// start: it serves, under another incarnation. Two spindles in each other's place do not.
func TestOlderCopy(t *testing.T) {
	opts, dir := small(vfs.Default), t.TempDir()
	s := fresh(t, dir, opts)
	path := filepath.Join(dir, spindleName(1))
	if err := os.CopyFS(path+".copy", os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	before := drives(t, s)
	store(t, s, 1, true)
	shut(t, s)
	for n := range 2 { // the second time it is what it was
		s = open(t, dir, opts)
		for i, d := range drives(t, s) {
			if d.State != datanode.SpindleOK || d.Incarnation != before[i].Incarnation {
				t.Errorf("start %d, spindle %d: %+v, was %+v", n, i, d, before[i])
			}
		}
		shut(t, s)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	move(t, path+".copy", path)
	var incarnation uint64
	for n := range 2 {
		s = open(t, dir, opts)
		d := drives(t, s)[1]
		if d.State != datanode.SpindleOK || d.Incarnation == before[1].Incarnation || n > 0 && d.Incarnation != incarnation {
			t.Errorf("start %d of the older copy: %+v, was %+v", n, d, before[1])
		}
		incarnation = d.Incarnation
		shut(t, s)
	}
	other := filepath.Join(dir, spindleName(0))
	move(t, path, path+".away")
	move(t, other, path)
	move(t, path+".away", other)
	s = open(t, dir, opts)
	absent(t, s, 0, "is spindle 1")
	absent(t, s, 1, "is spindle 0")
	shut(t, s)
}

// TestRosterOfOlderPrograms: a node without a roster takes its drives as they are; a
// damaged one it does not open.
func TestRosterOfOlderPrograms(t *testing.T) {
	opts := small(crashfs.New())
	shut(t, fresh(t, "/data", opts))
	if err := opts.FS.Remove("/data/" + rosterName); err != nil {
		t.Fatal(err)
	}
	s := open(t, "/data", opts)
	was := drives(t, s)
	shut(t, s)
	s = open(t, "/data", opts)
	for i, d := range drives(t, s) {
		if d != was[i] || d.Incarnation == 0 {
			t.Errorf("spindle %d: %+v, was %+v", i, d, was[i])
		}
	}
	shut(t, s)
	p := place{opts.FS, "/data"}
	if err := p.writeFile(rosterName, []byte(rosterMagic+"\x01\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), "/data", opts)
	refused(t, "a damaged roster", err, ErrDamaged, "remove the file")
}

// TestReplaceCrash loses power at any point of a replacement and of the start after it:
// the next try ends it, and no other drive is taken for one that has changed.
func TestReplaceCrash(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for budget, done := int64(0), false; !done; budget += crashfs.OpCost {
		disk := crashfs.New()
		opts := small(disk)
		s := fresh(t, "/data", opts)
		before := drives(t, s)
		shut(t, s)
		path := "/data/" + spindleName(1)
		if err := errors.Join(disk.RemoveAll(path), disk.MkdirAll(path, 0o700), vfsx.SyncDir(disk, path), vfsx.SyncDir(disk, "/data")); err != nil {
			t.Fatal(err)
		}
		disk.Limit(budget)
		err := ReplaceSpindle("/data", 1, opts)
		if done = err == nil; !done && !disk.Crashed() {
			t.Fatalf("after %d bytes: %v", budget, err)
		}
		disk = disk.Crash(rng, rng.IntN(101))
		opts.FS = disk
		err = ReplaceSpindle("/data", 1, opts)
		if err != nil && !strings.Contains(err.Error(), "unmount") || done && err == nil {
			t.Fatalf("again after %d bytes: %v", budget, err)
		}
		s = open(t, "/data", opts)
		for n, d := range drives(t, s) {
			if d.State != datanode.SpindleOK || (d.Incarnation == before[n].Incarnation) != (n != 1) {
				t.Errorf("after %d bytes: spindle %d: %+v, was %+v", budget, n, d, before[n])
			}
		}
		shut(t, s)
	}
}

func FuzzRoster(f *testing.F) {
	pool := [16]byte{1}
	f.Add((&roster{[16]byte{2}, []seat{{}, {known: true, identity: 5, incarnation: 6, opens: 7}}}).encode(pool))
	f.Add((&roster{}).encode(pool))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRoster(b, pool); err == nil && string(r.encode(pool)) != string(b) {
			t.Errorf("%x is %+v, which is %x", b, r, r.encode(pool))
		}
	})
}
