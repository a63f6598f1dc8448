package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/internal/host"
	"plinth/internal/standalone"
	"plinth/nbd"
)

// snap makes a snapshot of one disk.
func (s *site) snap(disk, name string) host.SnapshotInfo {
	s.Helper()
	made, err := s.Host.CreateSnapshots(s.Context(), host.SnapshotSpec{Disks: []string{disk}, Name: name})
	s.ok(err)
	return made[0]
}

// put writes at an offset of a disk.
func (s *site) put(disk string, off int64, p []byte) {
	s.Helper()
	s.ok(s.device(disk, func(d nbd.Device) error { return d.WriteAt(s.Context(), p, off, false) }))
}

// restart closes the pool and opens it again.
func (s *site) restart() {
	s.Helper()
	s.ok(s.Close())
	var err error
	s.Site, err = standalone.Open(context.WithoutCancel(s.Context()), s.opts)
	s.ok(err)
}

// verified walks everything.
func (s *site) verified() {
	s.Helper()
	r, err := s.Host.Verify(s.Context(), host.VerifyOptions{})
	s.ok(err)
	for i, f := range r.Findings {
		if s.Errorf("verify: %+v", f); i == 4 {
			s.Fatalf("and %d more", len(r.Findings)-5)
		}
	}
}

// names lists a disk's snapshots.
func (s *site) names(disk string) []string {
	s.Helper()
	infos, err := s.Host.Snapshots(disk)
	s.ok(err)
	var out []string
	for _, i := range infos {
		out = append(out, i.Name)
	}
	return out
}

func noise(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// TestSnapshots makes, lists, renames and removes snapshots, before and after a
// restart.
func TestSnapshots(t *testing.T) {
	s := openSite(t, siteOptions(t))
	one, two, three := noise(1, 1<<20), noise(2, 1<<20), noise(3, 1<<20)
	s.write("vm", one)
	made, err := s.Host.CreateSnapshots(t.Context(), host.SnapshotSpec{
		Disks: []string{"vm"}, Name: "mon", Labels: map[string]string{"why": "test"}, Expires: time.Now().Add(time.Hour),
	})
	s.ok(err)
	s.put("vm", 0, two)
	s.snap("vm", "tue")
	s.put("vm", 0, three)
	check := func() {
		t.Helper()
		s.has("vm@mon", one)
		s.has("vm@tue", two)
		s.has("vm", three)
		infos, err := s.Host.Snapshots("vm")
		s.ok(err)
		if len(infos) != 2 || infos[0].Name != "mon" || infos[1].Name != "tue" || infos[0].Bytes != 1<<20 || infos[0].State != "ok" ||
			infos[0].ID != made[0].ID || !maps.Equal(infos[0].Labels, made[0].Labels) || !infos[0].Expires.Equal(*made[0].Expires) {
			t.Errorf("snapshots: %+v", infos)
		}
	}
	check()
	s.restart()
	check()
	s.ok(s.Host.Quiesce(t.Context()))
	s.ok(s.Host.Sweep(t.Context()))
	check()
	s.verified()
	s.restart()
	check()
	s.ok(s.Host.RenameSnapshot(t.Context(), "vm", "mon", "old"))
	s.has("vm@old", one)
	s.ok(s.Host.RemoveSnapshot(t.Context(), "vm", "tue", false))
	if got := s.names("vm"); !slices.Equal(got, []string{"old"}) {
		t.Errorf("snapshots: %q", got)
	}
	s.ok(s.Host.Sweep(t.Context()))
	s.has("vm@old", one)
	s.has("vm", three)
	s.restart()
	s.has("vm@old", one)
	s.snap("vm", "tue") // the name is free again
	s.has("vm@tue", three)
	s.verified()
	if err := s.Host.RemoveDisk(t.Context(), "vm"); !errors.Is(err, host.ErrInUse) {
		t.Errorf("removal of a disk with snapshots: %v", err)
	}
	s.ok(s.Host.RemoveDiskWithSnapshots(t.Context(), "vm"))
	s.ok(s.Host.Sweep(t.Context()))
	if bytes, index := s.stored(); bytes != 0 || index.Segments != 0 {
		t.Errorf("%d bytes in %d segments are left", bytes, index.Segments)
	}
}

// TestSnapshotsAtOneInstant marks several disks under writes: each pair of
// snapshots shows one point in the order of the writes.
func TestSnapshotsAtOneInstant(t *testing.T) {
	s := openSite(t, siteOptions(t))
	disks := []string{"a", "b", "c"}
	for _, d := range disks {
		s.write(d, make([]byte, 64<<10))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- func() error {
			// Round n writes n to all, one after the other.
			for n := byte(1); ctx.Err() == nil; n++ {
				for _, d := range disks {
					if err := s.device(d, func(d nbd.Device) error {
						return d.WriteAt(context.WithoutCancel(ctx), bytes.Repeat([]byte{n}, 512), 512, false)
					}); err != nil {
						return err
					}
				}
			}
			return nil
		}()
	}()
	for i := range 20 {
		made, err := s.Host.CreateSnapshots(ctx, host.SnapshotSpec{Disks: disks, Name: fmt.Sprint("g", i)})
		s.ok(err)
		for _, m := range made {
			if m.Group != made[0].ID || m.Name != made[0].Name {
				t.Errorf("of a group: %+v", m)
			}
		}
	}
	cancel()
	s.ok(<-done)
	for i := range 20 {
		var seen []byte
		for _, d := range disks {
			var p [512]byte
			s.ok(s.device(fmt.Sprint(d, "@g", i), func(d nbd.Device) error { return d.ReadAt(t.Context(), p[:], 512) }))
			seen = append(seen, p[0])
		}
		a, b, c := seen[0], seen[1], seen[2]
		if a-b > 1 || b-c > 1 || a-c > 1 {
			t.Errorf("group %d is of no instant: %v", i, seen)
		}
	}
}

// TestBadSnapshots asks for what is refused.
func TestBadSnapshots(t *testing.T) {
	s := openSite(t, siteOptions(t))
	ctx := t.Context()
	s.write("vm", noise(1, 64<<10))
	s.write("other", noise(2, 64<<10))
	s.snap("vm", "mon")
	s.snap("vm", "tue")
	long := strings.Repeat("x", 129)
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprint("d", i)
	}
	create := func(spec host.SnapshotSpec) error {
		_, err := s.Host.CreateSnapshots(ctx, spec)
		return err
	}
	named := func(name string, disks ...string) error {
		return create(host.SnapshotSpec{Disks: disks, Name: name})
	}
	labeled := func(k, v string) error {
		return create(host.SnapshotSpec{Disks: []string{"vm"}, Labels: map[string]string{k: v}})
	}
	clone := func(disk, snapshot, to string) error {
		_, err := s.Host.Clone(ctx, disk, snapshot, to)
		return err
	}
	rename := func(name, to string) error {
		_, err := s.Host.RenameDisk(ctx, name, to)
		return err
	}
	diff := func(from, to string, off, limit int64) error {
		_, err := s.Host.Diff(ctx, "vm", from, to, off, limit)
		return err
	}
	rollback := func(disk, snapshot string) error {
		_, err := s.Host.Rollback(ctx, disk, snapshot)
		return err
	}
	open := func(name string) error {
		return s.device(name, func(nbd.Device) error { return nil })
	}
	labels := make(map[string]string)
	for i := range 17 {
		labels[fmt.Sprint(i)] = ""
	}
	for what, c := range map[string]struct{ err, want error }{
		"no disks":            {named("x"), host.ErrInvalid},
		"unknown disk":        {named("x", "vm", "no"), host.ErrUnknownDisk},
		"disk twice":          {named("x", "vm", "vm"), host.ErrInvalid},
		"many disks":          {named("x", many...), host.ErrInvalid},
		"taken":               {named("mon", "vm"), host.ErrExists},
		"taken on one":        {named("mon", "other", "vm"), host.ErrExists},
		"@":                   {named("a@b", "vm"), host.ErrInvalid},
		",":                   {named("a,b", "vm"), host.ErrInvalid},
		"control":             {named("a\nb", "vm"), host.ErrInvalid},
		"NUL":                 {named("a\x00", "vm"), host.ErrInvalid},
		"slash":               {named("a/b", "vm"), host.ErrInvalid},
		"dot first":           {named("..", "vm"), host.ErrInvalid},
		"long":                {named(long, "vm"), host.ErrInvalid},
		"snapshot as disk":    {named("x", "vm@mon"), host.ErrUnknownDisk},
		"past expiry":         {create(host.SnapshotSpec{Disks: []string{"vm"}, Expires: time.Now().Add(-time.Second)}), host.ErrInvalid},
		"empty label":         {labeled("", "v"), host.ErrInvalid},
		"long label":          {labeled(strings.Repeat("k", 65), ""), host.ErrInvalid},
		"long value":          {labeled("k", strings.Repeat("v", 257)), host.ErrInvalid},
		"label of two lines":  {labeled("k", "a\nb"), host.ErrInvalid},
		"label of no text":    {labeled("k", "\xff"), host.ErrInvalid},
		"many labels":         {create(host.SnapshotSpec{Disks: []string{"vm"}, Labels: labels}), host.ErrInvalid},
		"rm of none":          {s.Host.RemoveSnapshot(ctx, "vm", "no", false), host.ErrUnknownSnapshot},
		"rm of no disk":       {s.Host.RemoveSnapshot(ctx, "no", "mon", true), host.ErrUnknownDisk},
		"rename of none":      {s.Host.RenameSnapshot(ctx, "vm", "no", "x"), host.ErrUnknownSnapshot},
		"rename to taken":     {s.Host.RenameSnapshot(ctx, "vm", "mon", "tue"), host.ErrExists},
		"rename to itself":    {s.Host.RenameSnapshot(ctx, "vm", "mon", "mon"), host.ErrExists},
		"rename to bad":       {s.Host.RenameSnapshot(ctx, "vm", "mon", "a@b"), host.ErrInvalid},
		"clone of none":       {clone("vm", "no", "new"), host.ErrUnknownSnapshot},
		"clone of no disk":    {clone("no", "mon", "new"), host.ErrUnknownDisk},
		"clone to taken":      {clone("vm", "mon", "other"), host.ErrExists},
		"clone to bad":        {clone("vm", "mon", "a@b"), host.ErrInvalid},
		"disk to taken":       {rename("vm", "other"), host.ErrExists},
		"disk to bad":         {rename("vm", "a,b"), host.ErrInvalid},
		"disk of none":        {rename("no", "new"), host.ErrUnknownDisk},
		"rollback to none":    {rollback("vm", "no"), host.ErrUnknownSnapshot},
		"rollback of none":    {rollback("no", "mon"), host.ErrUnknownDisk},
		"diff of none":        {diff("mon", "no", 0, 0), host.ErrUnknownSnapshot},
		"diff backwards":      {diff("tue", "mon", 0, 0), host.ErrInvalid},
		"diff beyond":         {diff("mon", "tue", 1<<20, 0), host.ErrInvalid},
		"diff below":          {diff("mon", "tue", -1, 0), host.ErrInvalid},
		"diff of many":        {diff("mon", "tue", 0, 1<<20), host.ErrInvalid},
		"export of none":      {open("vm@no"), nbd.ErrUnknownExport},
		"export of no disk":   {open("no@mon"), nbd.ErrUnknownExport},
		"export of nothing":   {open("vm@"), nbd.ErrUnknownExport},
		"export, two at":      {open("vm@mon@tue"), nbd.ErrUnknownExport},
		"export since none":   {open("vm@tue,since=no"), nbd.ErrUnknownExport},
		"export since empty":  {open("vm@tue,since="), nbd.ErrUnknownExport},
		"export since itself": {open("vm@tue,since=tue"), nbd.ErrUnknownExport},
		"export backwards":    {open("vm@mon,since=tue"), nbd.ErrUnknownExport},
		"export since twice":  {open("vm@tue,since=mon,since=mon"), nbd.ErrUnknownExport},
		"export with more":    {open("vm@tue,mon"), nbd.ErrUnknownExport},
		"list of no disk":     {func() error { _, err := s.Host.Snapshots("no"); return err }(), host.ErrUnknownDisk},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if got := s.names("vm"); !slices.Equal(got, []string{"mon", "tue"}) || len(s.names("other")) != 0 || len(s.Host.Disks()) != 2 {
		t.Errorf("after all refusals: %q, %q", got, s.names("other"))
	}
	for range 3 { // names of one second
		s.snap("other", "")
	}
	if got := s.names("other"); len(got) != 3 || slices.Contains(got, "") {
		t.Errorf("names by time: %q", got)
	}
}

// TestSnapshotInUse has a client of a snapshot, and one of its disk.
func TestSnapshotInUse(t *testing.T) {
	s := openSite(t, siteOptions(t))
	ctx := t.Context()
	s.write("vm", noise(1, 64<<10))
	s.snap("vm", "mon")
	s.snap("vm", "tue")
	x := host.Exports{Host: s.Host}
	_, release, err := x.Open(ctx, "vm@tue,since=mon")
	s.ok(err)
	infos, err := s.Host.Snapshots("vm")
	s.ok(err)
	if infos[0].Clients != 1 || infos[1].Clients != 1 {
		t.Errorf("clients: %+v", infos)
	}
	inUse := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, host.ErrInUse) {
			t.Errorf("%s while in use: %v", what, err)
		}
	}
	inUse("rm", s.Host.RemoveSnapshot(ctx, "vm", "mon", false))
	inUse("rename", s.Host.RenameSnapshot(ctx, "vm", "tue", "x"))
	inUse("rm of the disk", s.Host.RemoveDiskWithSnapshots(ctx, "vm"))
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	err = s.Host.RemoveSnapshot(short, "vm", "mon", true)
	inUse("rm that waits", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("rm that waits: %v", err)
	}
	removed := make(chan error)
	go func() { removed <- s.Host.RemoveSnapshot(ctx, "vm", "mon", true) }()
	select {
	case err := <-removed:
		t.Fatalf("rm did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	_, again, err := x.Open(ctx, "vm@mon") // others may come until the last has left
	s.ok(err)
	release()
	select {
	case err := <-removed:
		t.Fatalf("rm did not wait for the second: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	again()
	s.ok(<-removed)
	if got := s.names("vm"); !slices.Equal(got, []string{"tue"}) {
		t.Errorf("snapshots: %q", got)
	}
	_, release, err = x.Open(ctx, "vm")
	s.ok(err)
	_, err = s.Host.Rollback(ctx, "vm", "tue")
	inUse("rollback", err)
	_, err = s.Host.RenameDisk(ctx, "vm", "new")
	inUse("rename of the disk", err)
	release()
	go func() { removed <- s.Host.RemoveSnapshot(ctx, "vm", "tue", true) }()
	s.ok(<-removed)
}

// TestExpiry removes a snapshot whose time has come, but not while it is in use.
func TestExpiry(t *testing.T) {
	opts := siteOptions(t)
	opts.Host.IdleTime = 40 * time.Millisecond
	s := openSite(t, opts)
	s.write("vm", noise(1, 64<<10))
	for _, name := range []string{"used", "free"} {
		_, err := s.Host.CreateSnapshots(t.Context(), host.SnapshotSpec{
			Disks: []string{"vm"}, Name: name, Expires: time.Now().Add(3 * time.Second),
		})
		s.ok(err)
	}
	s.snap("vm", "kept")
	_, release, err := host.Exports{Host: s.Host}.Open(t.Context(), "vm@used")
	s.ok(err)
	wait := func(want ...string) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if slices.Equal(s.names("vm"), want) {
				return
			}
		}
		t.Fatalf("snapshots: %q, want %q", s.names("vm"), want)
	}
	wait("used", "kept")
	release()
	wait("kept")
}
