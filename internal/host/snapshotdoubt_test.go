package host_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"plinth/datanode"
	"plinth/internal/host"
)

// doubtful is a node whose registry answers changes of some keys with an error:
// before the change is made, after it, or after it and mute from then on.
type doubtful struct {
	datanode.Node
	prefix string
	after  bool
	mute   bool
	armed  atomic.Bool
	silent atomic.Bool
}

var errRegistry = errors.New("the registry's disk has a cough")

func (n *doubtful) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	hit := slices.ContainsFunc(r.Puts, func(p datanode.Put) bool { return strings.HasPrefix(p.Key, n.prefix) }) ||
		slices.ContainsFunc(r.Deletes, func(key string) bool { return strings.HasPrefix(key, n.prefix) })
	if !hit || !n.armed.Swap(false) {
		return n.Node.RegistryCommit(ctx, r)
	}
	if n.after {
		if _, err := n.Node.RegistryCommit(ctx, r); err != nil {
			return nil, err
		}
	}
	n.silent.Store(n.mute)
	return nil, errRegistry
}

func (n *doubtful) RegistryGet(ctx context.Context, r *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	if n.silent.Load() {
		return nil, errRegistry
	}
	return n.Node.RegistryGet(ctx, r)
}

// TestSimDoubtfulRegistry has each change of snapshots and clones answered with an
// error, although it was made or not: it is as if the answer had been right, and
// where nobody can know, nothing that may exist is given up.
func TestSimDoubtfulRegistry(t *testing.T) {
	one := noise(1, 256<<10)
	changes := map[string]struct {
		prefix string
		change func(s *site) error
		made   func(s *site) bool
	}{
		"create": {"snap/", func(s *site) error {
			_, err := s.Host.CreateSnapshots(s.Context(), host.SnapshotSpec{Disks: []string{"vm"}, Name: "new"})
			return err
		}, func(s *site) bool { return slices.Contains(s.names("vm"), "new") }},
		"remove": {"snap/", func(s *site) error {
			return s.Host.RemoveSnapshot(s.Context(), "vm", "old", false)
		}, func(s *site) bool { return !slices.Contains(s.names("vm"), "old") }},
		"rename": {"snap/", func(s *site) error {
			return s.Host.RenameSnapshot(s.Context(), "vm", "old", "new")
		}, func(s *site) bool { return slices.Contains(s.names("vm"), "new") }},
		"clone": {"name/", func(s *site) error {
			_, err := s.Host.Clone(s.Context(), "vm", "old", "new")
			return err
		}, func(s *site) bool { _, err := s.Host.Disk("new"); return err == nil }},
		"rename disk": {"name/", func(s *site) error {
			_, err := s.Host.RenameDisk(s.Context(), "vm", "new")
			return err
		}, func(s *site) bool { _, err := s.Host.Disk("new"); return err == nil }},
	}
	for what, c := range changes {
		for _, mode := range []string{"before", "after", "unknown"} {
			t.Run(what+" "+mode, func(t *testing.T) {
				s := openSite(t, siteOptions(t))
				s.write("vm", one)
				s.snap("vm", "old")
				n := &doubtful{Node: s.Node, prefix: c.prefix, after: mode != "before", mute: mode == "unknown"}
				s.behind(n)
				n.armed.Store(true)
				err := c.change(s)
				n.silent.Store(false)
				if mode == "after" != (err == nil) {
					t.Fatalf("the answer: %v", err)
				}
				if mode != "unknown" && c.made(s) != (mode == "after") {
					t.Errorf("the change was made: %v", c.made(s))
				}
				s.sweep()
				s.sweep()
				s.restart()
				if c.made(s) != (mode != "before") {
					t.Errorf("after a restart the change was made: %v", c.made(s))
				}
				disk := "vm"
				if _, err := s.Host.Disk(disk); err != nil {
					disk = "new"
				}
				for _, name := range s.names(disk) {
					s.has(disk+"@"+name, one)
				}
				if what == "clone" && mode != "before" {
					s.has("new", one)
				}
				s.has(disk, one)
				s.sweep()
				s.verified()
				if mode != "unknown" { // the change can be made, or made again
					if err := c.change(s); (err == nil) != (mode == "before") {
						t.Errorf("once more: %v", err)
					}
				}
			})
		}
	}
}
