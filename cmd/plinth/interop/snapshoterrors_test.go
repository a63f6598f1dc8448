package interop

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// What snapshots, clones and disks refuse, each in one line, and that nothing has
// changed by it.
func TestSnapshotRefusals(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	for _, disk := range []string{"a", "b"} {
		s.command(t, "disk", "create", disk, fmt.Sprint(snapshotBytes))
		for _, name := range []string{"one", "two"} {
			s.command(t, "snapshot", "create", disk, name)
		}
	}
	// What is mapped comes a moment later than the rest.
	list := func() string {
		var out strings.Builder
		for l := range strings.Lines(s.command(t, "snapshot", "ls") + s.command(t, "disk", "ls")) {
			fields := strings.Fields(l)
			fmt.Fprintln(&out, fields[:2], fields[len(fields)-1])
		}
		return out.String()
	}
	before := list()
	long := strings.Repeat("x", 129)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"snapshot", "create"}, "usage: plinth snapshot create"},
		{[]string{"snapshot", "create", "none"}, `disk "none": no such disk`},
		{[]string{"snapshot", "create", "none", "b"}, `disk "none": no such disk`},
		{[]string{"snapshot", "create", "a", "b", "none"}, `disk "none": no such disk`},
		{[]string{"snapshot", "create", "a", "one"}, "name is taken"},
		{[]string{"snapshot", "create", "a", "b", "--name", "two"}, "name is taken"},
		{[]string{"snapshot", "create", "a", "a"}, `"a" is named twice`},
		{[]string{"snapshot", "create", "a", "b", "a"}, `"a" is named twice`},
		{[]string{"snapshot", "create", "a", "x@y"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "x,since=one"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "x\ny"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "x\x1b[2J"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "x/y"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", ".."}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "ü"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", long}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "--name", ""}, "--name is empty"},
		{[]string{"snapshot", "create", "a", "--name", "-x"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "create", "a", "new", "--label", "color"}, "write KEY=VALUE"},
		{[]string{"snapshot", "create", "a", "new", "--label", long + "=1"}, "use a key of 1 to 64 bytes"},
		{[]string{"snapshot", "create", "a", "new", "--label", "x=a\nb"}, "printable"},
		{[]string{"snapshot", "create", "a", "new", "--expire", "tomorrow"}, "--expire"},
		{[]string{"snapshot", "create", "a", "new", "--expire", "-1h"}, "--expire"},
		{[]string{"snapshot", "ls", "none"}, "no such disk"},
		{[]string{"snapshot", "ls", "a", "b"}, "unexpected argument"},
		{[]string{"snapshot", "show", "a"}, "write DISK@SNAPSHOT"},
		{[]string{"snapshot", "show", "a@none"}, "no such snapshot"},
		{[]string{"snapshot", "rm", "a"}, "write DISK@SNAPSHOT"},
		{[]string{"snapshot", "rm", "a@"}, "write DISK@SNAPSHOT"},
		{[]string{"snapshot", "rm", "a@none"}, "no such snapshot"},
		{[]string{"snapshot", "rm", "none@one"}, "no such disk"},
		{[]string{"snapshot", "rm", "a@one@one"}, "no such snapshot"},
		{[]string{"snapshot", "rm", "a@one\n"}, "no such snapshot"},
		{[]string{"snapshot", "rename", "a@one", "two"}, "name is taken"},
		{[]string{"snapshot", "rename", "a@one", "x@y"}, "use 1 to 128 letters"},
		{[]string{"snapshot", "rename", "a@none", "three"}, "no such snapshot"},
		{[]string{"snapshot", "rollback", "a@none"}, "no such snapshot"},
		{[]string{"clone", "a@none", "c"}, "no such snapshot"},
		{[]string{"clone", "none@one", "c"}, "no such disk"},
		{[]string{"clone", "a", "c"}, "write DISK@SNAPSHOT"},
		{[]string{"clone", "a@one", "b"}, "name is taken"},
		{[]string{"clone", "a@one", "c@d"}, "use 1 to 128 letters"},
		{[]string{"clone", "a@one"}, "usage: plinth clone"},
		{[]string{"diff", "a@one", "b@two"}, "two disks"},
		{[]string{"diff", "a@two", "a@one"}, "not older"},
		{[]string{"diff", "a@one", "a@one"}, "not older"},
		{[]string{"diff", "a@none", "a@two"}, "no such snapshot"},
		{[]string{"disk", "rm", "a"}, "2 snapshots"},
		{[]string{"disk", "rename", "a", "b"}, "name is taken"},
		{[]string{"disk", "rename", "a", "a@b"}, "use 1 to 128 letters"},
		{[]string{"disk", "rename", "none", "c"}, "no such disk"},
		{[]string{"disk", "create", "a@one", "1G"}, "use 1 to 128 letters"},
		{[]string{"reclaim", "now"}, "unexpected argument"},
	} {
		s.refused(t, c.want, c.args...)
	}
	if after := list(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	s.stop(t)
}

// refused runs a command that must be refused in one line.
func (s *site) refused(t *testing.T, want string, args ...string) {
	t.Helper()
	out, complaint, code := plinth(t, []string{"PLINTH_API=" + s.api}, args...)
	if oneLine(t, complaint, code, want); out != "" {
		t.Errorf("%q prints %q", args, out)
	}
}

// A snapshot that is an export, by itself or in a pair, is not removed, nor what
// it belongs to; with --wait it is, when the last client has left.
func TestSnapshotInUse(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "a", fmt.Sprint(snapshotBytes))
	for _, name := range []string{"one", "two", "three"} {
		s.command(t, "snapshot", "create", "a", name)
	}
	single, pair := s.open(t, "a@one"), s.open(t, "a@two,since=one", "qemu:dirty-bitmap:one")
	const busy = "in use"
	for _, args := range [][]string{
		{"snapshot", "rm", "a@one"}, {"snapshot", "rm", "a@two"}, {"snapshot", "rename", "a@one", "four"}, {"disk", "rename", "a", "b"},
		{"disk", "rm", "a", "--snapshots"},
	} {
		s.refused(t, busy, args...)
	}
	s.command(t, "snapshot", "rm", "a@three")
	disk := s.open(t, "a")
	s.refused(t, busy, "snapshot", "rollback", "a@one")
	s.refused(t, busy, "disk", "rename", "a", "b")
	leave(t, disk)
	s.command(t, "snapshot", "rollback", "a@one") // its readers do not mind
	if err := single.ReadAt(t.Context(), make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.command(t, "snapshot", "rm", "--wait", "a@one")
	}()
	for _, c := range []interface{ Size() int64 }{single, pair} {
		select {
		case <-done:
			t.Fatalf("removed under a client of %d bytes", c.Size())
		case <-time.After(300 * time.Millisecond):
		}
		if c == interface{ Size() int64 }(single) {
			leave(t, single)
		}
	}
	leave(t, pair)
	<-done
	s.refused(t, "no such snapshot", "snapshot", "show", "a@one")
	s.command(t, "disk", "rm", "a", "--snapshots")
	s.verify(t)
	s.stop(t)
}

// Disks are cloned while they are removed: either there is a whole clone, or none.
func TestCloneOfRemoved(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	clones := 0
	for i := range 6 {
		disk, clone := fmt.Sprint("d", i), fmt.Sprint("c", i)
		s.command(t, "disk", "create", disk, fmt.Sprint(snapshotBytes))
		c := s.open(t, disk)
		want := make([]byte, 1<<20)
		for k := range want {
			want[k] = byte(k>>8) + byte(i)
		}
		if err := c.WriteAt(t.Context(), want, 0, false); err != nil {
			t.Fatal(err)
		}
		leave(t, c)
		s.command(t, "snapshot", "create", disk, "s")
		var both sync.WaitGroup
		both.Go(func() { plinth(t, []string{"PLINTH_API=" + s.api}, "disk", "rm", disk, "--snapshots") })
		time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		_, complaint, code := plinth(t, []string{"PLINTH_API=" + s.api}, "clone", disk+"@s", clone)
		both.Wait()
		// Where the clone was first, the disk may have been in use.
		plinth(t, []string{"PLINTH_API=" + s.api}, "disk", "rm", disk, "--snapshots")
		s.refused(t, "no such disk", "disk", "show", disk)
		if code != 0 {
			oneLine(t, complaint, code, "no such")
			s.refused(t, "no such disk", "disk", "show", clone)
			continue
		}
		clones++
		s.equalExport(t, clone, append(want, make([]byte, snapshotBytes-len(want))...))
	}
	t.Logf("%d of 6 clones were made", clones)
	s.command(t, "reclaim")
	s.verify(t)
	s.stop(t)
}
