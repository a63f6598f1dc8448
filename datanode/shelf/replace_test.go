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
	"plinth/internal/id"
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

// TestCrashReplace loses power at any point of a replacement and of the start after it:
// the next try ends it, and no other drive is taken for one that has changed.
func TestCrashReplace(t *testing.T) {
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

// TestReplaceWhileOpen replaces a drive of a node that serves, and goes on with it.
func TestReplaceWhileOpen(t *testing.T) {
	opts, dir := small(vfs.Default), t.TempDir()
	s := fresh(t, dir, opts)
	store(t, s, 1, true)
	before := drives(t, s)
	path := filepath.Join(dir, spindleName(2))
	replace := func(n id.Spindle) error {
		return s.ReplaceSpindle(t.Context(), &datanode.ReplaceSpindleRequest{Spindle: n})
	}
	no := func(what string, says ...string) {
		t.Helper()
		refused(t, what, replace(2), datanode.ErrInvalid, says...)
	}
	no("of a drive that serves", "unmount", path)
	refused(t, "one that there is not", replace(4), datanode.ErrInvalid, "0 to 3")
	if d := drives(t, s)[2]; d != before[2] {
		t.Errorf("refused, it is %+v, was %+v", d, before[2])
	}
	old := path + ".old"
	move(t, path, old)
	no("without a directory", "there is no "+path)
	mkdir(t, path)
	write(t, filepath.Join(path, "letter"))
	no("on somebody's files", "letter")
	if err := os.Remove(filepath.Join(path, "letter")); err != nil {
		t.Fatal(err)
	}
	if d := drives(t, s)[2]; d.State != datanode.SpindleAbsent || d.Incarnation != before[2].Incarnation {
		t.Errorf("before it is replaced it is %+v", d)
	}
	if err := replace(2); err != nil {
		t.Fatal(err)
	}
	no("twice", "unmount")
	store(t, s, 2, true)
	commit(t, s, "a", "1")
	after := drives(t, s)
	for n, d := range after {
		want := int64(2)
		if n == 2 {
			want = 1
		}
		if d.State != datanode.SpindleOK || d.Fragments != want || (d.Incarnation == before[n].Incarnation) != (n != 2) {
			t.Errorf("spindle %d before: %+v, after: %+v", n, before[n], d)
		}
	}
	shut(t, s)
	refused(t, "of a node that is closed", replace(2), datanode.ErrClosed)
	s = open(t, dir, opts)
	for n, d := range drives(t, s) {
		if d != after[n] {
			t.Errorf("opened again spindle %d is %+v, was %+v", n, d, after[n])
		}
	}
	shut(t, s)
	move(t, path, path+".new")
	move(t, old, path)
	s = open(t, dir, opts)
	absent(t, s, 2, "was replaced")
	shut(t, s)
}

// TestCrashReplaceWhileOpen loses power at any point of a replacement in a node that serves.
// The spindle is then the former drive with what it had, or it is in another incarnation.
func TestCrashReplaceWhileOpen(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var kept, lost, made int
	for budget, done := int64(0), false; !done; budget += crashfs.OpCost {
		disk := crashfs.New()
		opts := small(disk)
		s := fresh(t, "/data", opts)
		store(t, s, 1, true)
		before := drives(t, s)
		path, old := "/data/"+spindleName(1), "/old"
		if err := errors.Join(disk.Rename(path, old), disk.MkdirAll(path, 0o700), vfsx.SyncDir(disk, path), vfsx.SyncDir(disk, "/data"), vfsx.SyncDir(disk, "/")); err != nil {
			t.Fatal(err)
		}
		disk.Limit(budget)
		err := s.ReplaceSpindle(t.Context(), &datanode.ReplaceSpindleRequest{Spindle: 1})
		if done = err == nil; !done && !disk.Crashed() {
			t.Fatalf("after %d bytes: %v", budget, err)
		}
		next := disk.Crash(rng, rng.IntN(101))
		s.Close() // with an error
		disk, opts.FS = next, next
		s = open(t, "/data", opts)
		d := drives(t, s)[1]
		if done && d.State != datanode.SpindleOK {
			t.Fatalf("a drive that was replaced is %+v", d)
		}
		if d.State == datanode.SpindleAbsent { // the former one comes back
			shut(t, s)
			if err := errors.Join(disk.RemoveAll(path), disk.Rename(old, path)); err != nil {
				t.Fatal(err)
			}
			s = open(t, "/data", opts)
			d = drives(t, s)[1]
		}
		switch {
		case d.State == datanode.SpindleOK && d.Incarnation == before[1].Incarnation && d.Fragments == 1:
			kept++
		case d.State == datanode.SpindleAbsent && strings.Contains(d.Reason, "was replaced") && d.Incarnation != before[1].Incarnation:
			lost++
		case d.State == datanode.SpindleOK && d.Incarnation != before[1].Incarnation && d.Fragments == 0:
			made++
		default:
			t.Errorf("after %d bytes: %+v, was %+v", budget, d, before[1])
		}
		shut(t, s)
	}
	if kept == 0 || lost == 0 || made == 0 {
		t.Errorf("the former drive %d times, none %d, the new one %d: the test shows too little", kept, lost, made)
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
