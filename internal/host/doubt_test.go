package host_test

import (
	"errors"
	"testing"

	"plinth/internal/host"
)

// TestRemoveParentOfDoubtfulClone removes a disk of which a clone may have been
// recorded: what that needs stays until it is known.
func TestRemoveParentOfDoubtfulClone(t *testing.T) {
	for _, after := range []bool{true, false} {
		s := openSite(t, siteOptions(t))
		one, two := noise(1, 256<<10), noise(2, 256<<10)
		s.write("vm", one)
		s.snap("vm", "old")
		n := &doubtful{Node: s.Node, prefix: "name/", after: after, mute: true}
		s.behind(n)
		n.armed.Store(true)
		if _, err := s.Host.Clone(s.Context(), "vm", "old", "new"); err == nil {
			t.Fatal("a clone that nobody knows of was made")
		}
		n.silent.Store(false)
		if !after { // its number is free
			s.write("other", two)
		}
		s.ok(s.Host.RemoveDiskWithSnapshots(s.Context(), "vm"))
		s.sweep()
		s.restart()
		if after {
			s.has("new", one)
		} else {
			s.has("other", two)
		}
		s.sweep()
		s.verified()
	}
}

// TestRollbackToDoubtful rolls back to a snapshot whose removal seemed to fail.
func TestRollbackToDoubtful(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one, two := noise(1, 256<<10), noise(2, 256<<10)
	s.write("vm", one)
	s.snap("vm", "old")
	s.put("vm", 0, two)
	n := &doubtful{Node: s.Node, prefix: "snap/", after: true, mute: true}
	s.behind(n)
	n.armed.Store(true)
	if err := s.Host.RemoveSnapshot(s.Context(), "vm", "old", false); err == nil {
		t.Fatal("a removal of which nobody knows went well")
	}
	n.silent.Store(false)
	if _, err := s.Host.Rollback(s.Context(), "vm", "old"); !errors.Is(err, host.ErrUnknownSnapshot) {
		t.Fatalf("a rollback to a snapshot that is gone: %v", err)
	}
	s.has("vm", two)
}
