package host_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth/datanode"
	"plinth/internal/host"
	"plinth/nbd"
)

// names returns the names of a disk's snapshots at its host.
func (m *member) names(disk string) []string {
	m.r.Helper()
	all, err := m.Snapshots(disk)
	m.r.ok(err)
	var out []string
	for _, s := range all {
		out = append(out, s.Name)
	}
	return out
}

// group makes a snapshot of disks of several hosts; a machine that stalls may be late for
// it, and then nothing is made.
func (m *member) group(name string, disks ...string) []host.SnapshotInfo {
	m.r.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		made, err := m.CreateSnapshots(m.r.Context(), host.SnapshotSpec{Disks: disks, Name: name, Labels: map[string]string{"job": "test"}})
		if err == nil {
			return made
		}
		if !errors.Is(err, host.ErrBusy) || time.Now().After(deadline) {
			m.r.Fatal(err)
		}
		m.r.Log(err)
	}
}

// TestGroupOfTwoHosts has hosts ask for snapshots of disks that are each other's, and
// refuses what cannot be.
func TestGroupOfTwoHosts(t *testing.T) {
	r := openRack(t)
	a, b, c := r.host("a", longTTL), r.host("b", longTTL), r.host("c", longTTL)
	one, two, other := noise(1, 256<<10), noise(2, 128<<10), noise(3, 256<<10)
	a.create("one", one)
	b.create("two", two)
	for _, m := range []*member{a, b, c} {
		m.sees("one", map[bool]string{true: "ok", false: "a"}[m == a])
		m.sees("two", map[bool]string{true: "ok", false: "b"}[m == b])
	}
	for i, m := range []*member{a, b, c} {
		name := "by-" + m.name
		made := m.group(name, "two", "one")
		if len(made) != 2 || made[0].Disk != "two" || made[0].Bytes != 128<<10 || made[1].Disk != "one" || made[1].Bytes != 256<<10 ||
			made[0].Group != made[0].ID || made[1].Group != made[0].ID || made[1].Name != name || made[0].Labels["job"] != "test" {
			t.Fatalf("made %+v", made)
		}
		a.has("one@"+name, one) // at once
		b.has("two@"+name, two)
		if got := len(a.names("one")); got != i+1 {
			t.Errorf("%d snapshots, want %d", got, i+1)
		}
		r.ok(a.write("one", other))
		r.ok(b.write("two", other[:128<<10]))
		a.has("one@"+name, one)
		b.has("two@"+name, two)
		r.ok(a.write("one", one))
		r.ok(b.write("two", two))
	}
	made, err := c.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"one", "two"}}) // named by the time
	r.ok(err)
	if _, err := b.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"two", "one"}, Name: "by-c"}); !errors.Is(err, host.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := b.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"two", "three"}, Name: "x"}); !errors.Is(err, host.ErrUnknownDisk) {
		t.Errorf("a disk that there is not: %v", err)
	}

	// What the disk's host makes itself is newer.
	after, err := b.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"two"}, Name: "after"})
	r.ok(err)
	if after[0].ID <= made[1].ID {
		t.Errorf("snapshot %d of disk two is newer than %d", after[0].ID, made[1].ID)
	}
	r.ok(b.device("two@after,since=by-c", func(nbd.Device) error { return nil }))

	// The next owner has them too, and they are removed like any.
	r.ok(a.MoveDisk(t.Context(), "one", "b"))
	b.sees("one", "ok")
	b.has("one@by-a", one)
	r.ok(b.RemoveSnapshot(t.Context(), "one", "by-a", true))
	if got := b.names("one"); slices.Contains(got, "by-a") || len(got) != 3 {
		t.Errorf("snapshots %v", got)
	}
	r.noGroups()
	r.ok(c.Close())
	r.quiet(a, b)
}

// noGroups fails for rows of groups that stay.
func (r *rack) noGroups() {
	r.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		all, err := r.node.RegistryList(r.Context(), &datanode.RegistryListRequest{Prefix: "group/"})
		r.ok(err)
		if len(all.Entries) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("rows of groups stay: %v", all.Entries[0].Key)
		}
	}
}

// deaf is a node whose registry shows a host no groups, or takes nothing of them.
type deaf struct {
	datanode.Node
	watches, commits atomic.Bool
}

func (d *deaf) RegistryWatch(ctx context.Context, q *datanode.RegistryWatchRequest) (*datanode.RegistryWatchReply, error) {
	reply, err := d.Node.RegistryWatch(ctx, q)
	for q.Prefix == "group/" && d.watches.Load() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	return reply, err
}

func (d *deaf) RegistryCommit(ctx context.Context, q *datanode.RegistryTxn) (*datanode.RegistryCommitReply, error) {
	if len(q.Puts) == 1 && strings.HasPrefix(q.Puts[0].Key, "group/") {
		for d.commits.Load() && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		if ctx.Err() != nil {
			return nil, datanode.Errorf(datanode.ErrTimeout, "deaf")
		}
	}
	return d.Node.RegistryCommit(ctx, q)
}

// TestGroupWithoutAnAnswer has a host not hear of a group, or not be heard: nothing is made, the
// error says who it was, and the disks go on.
func TestGroupWithoutAnAnswer(t *testing.T) {
	r := openRack(t)
	d := &deaf{Node: r.node}
	a, b := r.host("a", longTTL), r.openOn(d, "b", host.Options{LeaseTTL: longTTL})
	one, two := noise(1, 64<<10), noise(2, 64<<10)
	a.create("one", one)
	b.create("two", two)
	a.sees("two", "b")
	for _, flag := range []*atomic.Bool{&d.watches, &d.commits} {
		flag.Store(true)
		_, err := a.CreateSnapshots(t.Context(), host.SnapshotSpec{Disks: []string{"one", "two"}, Name: "s"})
		if !errors.Is(err, host.ErrBusy) || !strings.Contains(err.Error(), "host b") || !strings.Contains(err.Error(), "nothing was made") {
			t.Errorf("a group that a host does not answer: %v", err)
		}
		r.ok(a.write("one", two))
		r.ok(b.write("two", one))
		flag.Store(false)
		r.noGroups()
	}
	if got := append(a.names("one"), b.names("two")...); len(got) > 0 {
		t.Errorf("snapshots that were not made: %v", got)
	}
	a.group("s", "one", "two")
	a.has("one@s", two)
	b.has("two@s", one)
	r.noGroups()
	r.quiet(a, b)
}
