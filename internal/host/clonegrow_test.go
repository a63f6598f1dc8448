package host_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
)

// refusing is a node that records no checkpoints for a while.
type refusing struct {
	datanode.Node
	refuse atomic.Bool
}

func (n *refusing) RegistryCommit(ctx context.Context, r *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	if n.refuse.Load() && slices.ContainsFunc(r.Puts, func(p datanode.Put) bool { return strings.HasPrefix(p.Key, "ckpt/") }) {
		return nil, errRegistry
	}
	return n.Node.RegistryCommit(ctx, r)
}

// TestCloneAtOnce makes a clone of a snapshot that is in no checkpoint: it serves
// from its parent's map until there is one, through passes and snapshots of it,
// and a restart meanwhile makes one first.
func TestCloneAtOnce(t *testing.T) {
	for _, end := range []string{"grown", "restarted", "removed"} {
		t.Run(end, func(t *testing.T) {
			s := openSite(t, siteOptions(t))
			one, part := noise(1, 256<<10), noise(2, 5000)
			s.write("vm", noise(3, 256<<10))
			n := &refusing{Node: s.Node}
			s.behind(n)
			s.put("vm", 0, one)
			s.snap("vm", "mon")
			s.put("vm", 0, noise(4, 256<<10))
			n.refuse.Store(true)
			s.clone("vm", "mon", "new")
			s.has("new", one)
			s.put("new", 1000, part)
			want := slices.Concat(one[:1000], part, one[6000:])
			s.has("new", want)
			s.snap("new", "tue")
			s.ok(s.device("new", func(d nbd.Device) error { return d.Trim(t.Context(), 128<<10, 64<<10, false) }))
			now := bytes.Clone(want)
			clear(now[128<<10 : 192<<10])
			s.has("new", now)
			short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := s.Host.RemoveDiskWithSnapshots(short, "vm"); !errors.Is(err, host.ErrInUse) {
				t.Errorf("removal of a disk that a clone reads: %v", err)
			}
			s.ok(s.Host.RemoveSnapshot(t.Context(), "vm", "mon", false))
			_ = s.Host.Sweep(t.Context())
			s.has("new", now)
			switch end {
			case "grown":
				n.refuse.Store(false)
			case "restarted":
				s.restart()
			case "removed":
				s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "new"))
				n.refuse.Store(false)
				s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
				s.sweep()
				if bytes, index := s.stored(); bytes != 0 || index.Segments != 0 {
					t.Errorf("%d bytes in %d segments are left", bytes, index.Segments)
				}
				return
			}
			s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm")) // waits for the clone
			s.has("new", now)
			s.has("new@tue", want)
			s.sweep()
			s.sweep()
			s.has("new", now)
			s.has("new@tue", want)
			if info := s.info("new"); info.CloneOf != 0 {
				t.Errorf("a clone that has passed: %+v", info)
			}
			s.verified()
			s.restart()
			s.has("new", now)
			s.has("new@tue", want)
		})
	}
}

// TestVerifyWhileRebuilding loses the index and verifies while a clone cannot
// state yet what it needs: what the lists lack is not called wrong.
func TestVerifyWhileRebuilding(t *testing.T) {
	s := openSite(t, siteOptions(t))
	same := noise(1, 256<<10)
	s.write("first", same)
	s.write("vm", same) // which holds what the first one wrote
	s.ok(s.Host.Quiesce(t.Context()))
	s.ok(s.Close())
	dir, opts := filepath.Join(s.opts.Dir, "datanode"), s.opts.Node
	var err error
	opts.PoolID, err = shelf.PoolID(vfs.Default, dir)
	s.ok(err)
	s.ok(os.RemoveAll(filepath.Join(dir, "index")))
	node, err := shelf.Recover(t.Context(), dir, opts)
	s.ok(err)
	s.ok(node.Close())
	s.Site, err = standalone.Open(context.WithoutCancel(t.Context()), s.opts)
	s.ok(err)

	n := &refusing{Node: s.Node}
	s.behind(n)
	n.refuse.Store(true)
	s.put("vm", 0, noise(2, 4096))
	s.snap("vm", "mon")
	s.clone("vm", "mon", "new")
	s.ok(s.Host.Sweep(t.Context()))
	r, err := s.Host.Verify(t.Context(), host.VerifyOptions{Strict: true})
	s.ok(err)
	if !r.Rebuilding || !r.OK() {
		t.Errorf("while the index is rebuilt: %+v", r)
	}
	n.refuse.Store(false)
	for deadline := time.Now().Add(time.Minute); r.Rebuilding; {
		s.ok(s.Host.Sweep(t.Context()))
		r, err = s.Host.Verify(t.Context(), host.VerifyOptions{})
		s.ok(err)
		if time.Now().After(deadline) {
			t.Fatal("the index does not become complete")
		}
	}
	s.verified()
}

// TestRemoveBaseOfClosedClone restarts with a clone that reads its parent, and no
// checkpoint can be made of that: the clone does not open, and the parent stays
// until the clone has what it needs.
func TestRemoveBaseOfClosedClone(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one, part := noise(1, 256<<10), noise(2, 5000)
	s.write("vm", noise(3, 256<<10))
	n := &refusing{Node: s.Node}
	s.behind(n)
	s.put("vm", 0, one)
	s.snap("vm", "mon")
	n.refuse.Store(true)
	s.clone("vm", "mon", "new")
	s.put("new", 1000, part)
	s.behind(n)
	if err := s.device("new", func(nbd.Device) error { return nil }); err == nil {
		t.Fatal("a clone that has no map opens")
	}
	if err := s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"); err == nil {
		t.Fatal("a disk is removed that a clone still needs")
	}
	n.refuse.Store(false)
	s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
	s.behind(n)
	s.has("new", slices.Concat(one[:1000], part, one[6000:]))
	s.sweep()
	s.verified()
}
