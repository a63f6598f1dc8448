package shelf

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/spindle"
	"plinth/internal/id"
	"plinth/internal/vfsx/crashfs"
)

// serves wants a node to have so many spindles, which all serve, each as another drive.
func serves(t testing.TB, s *Shelf, count int) []datanode.SpindleStatus {
	t.Helper()
	all, seen := drives(t, s), map[uint64]bool{}
	if len(all) != count {
		t.Fatalf("%d spindles, want %d", len(all), count)
	}
	for n, d := range all {
		if int(d.Spindle) != n || d.State != datanode.SpindleOK || d.Incarnation == 0 || seen[d.Incarnation] {
			t.Errorf("spindle %d is %+v", n, d)
		}
		seen[d.Incarnation] = true
	}
	return all
}

func TestAddSpindle(t *testing.T) {
	opts, dir := small(vfs.Default), t.TempDir()
	s := fresh(t, dir, opts)
	serves(t, s, 4)
	commit(t, s, "a", "1")
	_, err := AddSpindle(dir, opts)
	refused(t, "to a node that is open", err, ErrLocked)

	// While it serves.
	add := func(n int) error {
		return s.AddSpindle(t.Context(), &datanode.AddSpindleRequest{Spindle: id.Spindle(n)})
	}
	for _, n := range []int{0, 3, 5, 65535} {
		refused(t, "under another number", add(n), datanode.ErrInvalid, "the next one is 4")
	}
	path := filepath.Join(dir, spindleName(4))
	mkdir(t, path)
	write(t, filepath.Join(path, "letter"))
	refused(t, "on somebody's files", add(4), datanode.ErrInvalid, "letter")
	serves(t, s, 4)
	if err := os.Remove(filepath.Join(path, "letter")); err != nil {
		t.Fatal(err)
	}
	if err := add(4); err != nil {
		t.Fatal(err)
	}
	five := serves(t, s, 5)
	refused(t, "twice", add(4), datanode.ErrInvalid, "the next one is 5")
	shut(t, s)

	// While nobody has it open, in a directory that is made, or that an interrupted try left.
	path = filepath.Join(dir, spindleName(5))
	spindleOpts := spindle.Options{PoolID: opts.PoolID, SizeBytes: opts.SpindleBytes}
	if err := spindle.CreateOne(vfs.Default, path, 5, spindleOpts); err != nil {
		t.Fatal(err)
	}
	if n, err := AddSpindle(dir, opts); err != nil || n != 5 {
		t.Fatal(n, err)
	}
	s = open(t, dir, opts)
	six := serves(t, s, 6)
	for n := range five {
		if five[n].Incarnation != six[n].Incarnation {
			t.Errorf("spindle %d was %+v and is %+v", n, five[n], six[n])
		}
	}
	if got := value(t, s, "a"); got != "1" {
		t.Errorf("the registry has %q", got)
	}
	shut(t, s)

	// The superblock counts it, and the roster does not know it yet.
	old, err := os.ReadFile(filepath.Join(dir, rosterName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AddSpindle(dir, opts); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, rosterName), old, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = open(t, dir, opts)
		serves(t, s, 7)
		shut(t, s)
	}
}

// What hosts may reserve follows from the pool's stripes, however many spindles there are.
func TestWidthIsThePools(t *testing.T) {
	opts, dir := small(vfs.Default), t.TempDir()
	opts.WidthOf = func(layouts []byte) (int, error) { return int(layouts[0]), nil }
	s := fresh(t, dir, opts)
	free := func() int64 {
		t.Helper()
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.FreeBytes
	}
	by3 := free()
	commit(t, s, datanode.LayoutsKey, "\x02")
	if got := free(); got != by3/3*2 {
		t.Errorf("%d bytes are free for stripes of 2, %d for 3", got, by3)
	}
	shut(t, s)
	s = open(t, dir, opts)
	if got := free(); got != by3/3*2 {
		t.Errorf("%d bytes are free after a start", got)
	}
	shut(t, s)
}

// Whatever a crash leaves of an addition, the node is whole, and the next try ends it.
func TestCrashAdd(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	for budget, done := int64(0), false; !done; budget += crashfs.OpCost {
		disk := crashfs.New()
		opts := small(disk)
		s := fresh(t, "/data", opts)
		before := drives(t, s)
		shut(t, s)
		disk.Limit(budget)
		_, err := AddSpindle("/data", opts)
		if done = err == nil; !done && !disk.Crashed() {
			t.Fatalf("after %d bytes: %v", budget, err)
		}
		disk = disk.Crash(rng, rng.IntN(101))
		opts.FS = disk
		s = open(t, "/data", opts)
		has := len(drives(t, s))
		if has != 5 && (done || has != 4) {
			t.Fatalf("after %d bytes: %d spindles", budget, has)
		}
		if has == 4 {
			err := s.AddSpindle(t.Context(), &datanode.AddSpindleRequest{Spindle: 4})
			if err != nil {
				t.Fatalf("again after %d bytes: %v", budget, err)
			}
		}
		store(t, s, 1, true)
		shut(t, s)
		s = open(t, "/data", opts)
		for n, d := range serves(t, s, 5) {
			if n < 4 && d.Incarnation != before[n].Incarnation {
				t.Errorf("after %d bytes: spindle %d: %+v, was %+v", budget, n, d, before[n])
			}
		}
		shut(t, s)
	}
}
