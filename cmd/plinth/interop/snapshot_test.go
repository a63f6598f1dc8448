package interop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth/nbd"
	"plinth/nbd/client"
)

// snapshotBytes is the size of a disk of these tests.
const snapshotBytes = 32 << 20

// open connects to an export until the test ends.
func (s *site) open(t *testing.T, export string, contexts ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), "unix", s.socket, export, client.Options{Form: client.Extended, Contexts: contexts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// leave ends a client in good form: the server has let it go.
func leave(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
}

// alone returns when a disk has no clients, which programs of others do not wait
// for when they end.
func (s *site) alone(t *testing.T, disk string) {
	t.Helper()
	for deadline := time.Now().Add(startTime); !strings.Contains(s.command(t, "disk", "show", disk, "--json"), `"clients": 0,`); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("clients of %s stay", disk)
		}
	}
}

// equalExport compares an export's whole content.
func (s *site) equalExport(t *testing.T, export string, want []byte) {
	t.Helper()
	out := filepath.Join(tempDir(t), "out")
	run(t, "nbdcopy", s.uri("unix", export), out)
	equalFile(t, out, want)
}

// verify requires that nothing is wrong.
func (s *site) verify(t *testing.T) {
	t.Helper()
	if out := s.command(t, "verify"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("verify says:\n%s", out)
	}
}

// Snapshots are copied out by qemu-img and nbdcopy while the disk is written, and
// stay what they were: after more snapshots, after a crash, and after others are
// removed.
func TestSnapshotConvert(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	s := start(t, filepath.Join(dir, "data"), small...)
	s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	l := startLoad(t, "unix", s.socket, "vm", make([]byte, snapshotBytes))
	then := map[string][]byte{}
	for i, name := range []string{"mon", "tue", "wed", "thu"} {
		l.await(t, 300)
		l.pause()
		then[name] = slices.Clone(l.model)
		if out := s.command(t, "snapshot", "create", "vm", name); out != "vm@"+name+"\n" {
			t.Errorf("snapshot create prints %q", out)
		}
		l.resume(t)
		file, uri := filepath.Join(dir, name), s.uri(networks[i%2], "vm@"+name)
		before := l.writes.Load()
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, file)
		equalFile(t, file, then[name])
		l.await(t, max(0, before+10-l.writes.Load()))
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri)
		s.equalExport(t, "vm@"+name, then[name])
	}
	s.command(t, "snapshot", "rm", "vm@tue")
	delete(then, "tue")
	l.pause()
	check := func() {
		t.Helper()
		for name, want := range then {
			s.equalExport(t, "vm@"+name, want)
		}
		s.equalExport(t, "vm", l.model)
	}
	check()
	c := s.open(t, "vm@mon")
	if err := c.WriteAt(t.Context(), []byte{1}, 0, false); !c.Info().ReadOnly() || err == nil {
		t.Errorf("a snapshot is written to: %v", err)
	}
	leave(t, c)
	leave(t, l.c)
	s.kill()
	s = start(t, s.data, small...)
	check()
	s.verify(t)
	s.stop(t)
	s = start(t, s.data, small...)
	check()
	s.stop(t)
}

// One writer goes round several disks, one write at a time. Whatever is in a
// snapshot of all, what was written before is in it too, and what was
// acknowledged before it was asked for.
func TestSnapshotOfGroup(t *testing.T) {
	const disks, blocks, blockBytes = 3, 64, 4096
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	var names []string
	var clients []*client.Client
	for i := range disks {
		names = append(names, fmt.Sprint("d", i))
		s.command(t, "disk", "create", names[i], fmt.Sprint(blocks*blockBytes))
		clients = append(clients, s.open(t, names[i]))
	}
	// Write i goes to disk i%disks, block i/disks%blocks.
	var begun, acked atomic.Int64
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		p := make([]byte, blockBytes)
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			for k := 0; k < len(p); k += 8 {
				binary.BigEndian.PutUint64(p[k:], uint64(i))
			}
			begun.Store(i)
			if err := clients[i%disks].WriteAt(t.Context(), p, i/disks%blocks*blockBytes, false); err != nil {
				ended <- err
				return
			}
			acked.Store(i)
		}
	}()
	type window struct{ from, to int64 }
	var groups []window
	for i := range 8 {
		from := acked.Load()
		s.command(t, append([]string{"snapshot", "create", "--name", fmt.Sprint("g", i)}, names...)...)
		groups = append(groups, window{from, begun.Load()})
		time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for i, w := range groups {
		var content [disks][]byte
		newest := int64(0)
		for d, name := range names {
			c := s.open(t, fmt.Sprintf("%s@g%d", name, i))
			content[d] = make([]byte, blocks*blockBytes)
			if err := c.ReadAt(t.Context(), content[d], 0); err != nil {
				t.Fatal(err)
			}
			leave(t, c)
			for at := 0; at < len(content[d]); at += blockBytes {
				newest = max(newest, int64(binary.BigEndian.Uint64(content[d][at:])))
			}
		}
		if newest < w.from || newest > w.to {
			t.Errorf("group %d ends with write %d; %d was acknowledged before, %d begun after", i, newest, w.from, w.to)
		}
		for n := newest; n > max(0, newest-disks*blocks); n-- {
			block := content[n%disks][n/disks%blocks*blockBytes:][:blockBytes]
			if got := int64(binary.BigEndian.Uint64(block)); got != n || !bytes.Equal(block, bytes.Repeat(block[:8], blockBytes/8)) {
				t.Errorf("group %d has write %d and lacks %d: there is %d", i, newest, n, got)
			}
		}
	}
	s.verify(t)
	s.stop(t)
}

// Clones begin as the snapshot, go their own way, and survive their parents, in
// any order; a disk goes back to what it was.
func TestClonesAndRollback(t *testing.T) {
	dir := tempDir(t)
	s := start(t, filepath.Join(dir, "data"), small...)
	content := func(seed uint64) []byte {
		p := make([]byte, snapshotBytes)
		rng := rand.New(rand.NewPCG(seed, 0))
		for at := 0; at < len(p); at += 4 << 20 {
			fill(rng, p[at:at+1<<20])
		}
		return p
	}
	put := func(disk string, p []byte) {
		t.Helper()
		file := filepath.Join(dir, "in")
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, s.uri("unix", disk))
	}
	base, other := content(1), content(2)
	s.command(t, "disk", "create", "a", fmt.Sprint(snapshotBytes))
	put("a", base)
	s.command(t, "snapshot", "create", "a", "s1")
	s.command(t, "clone", "a@s1", "b")
	put("a", other)
	s.command(t, "snapshot", "create", "a", "s2")
	s.equalExport(t, "b", base)
	s.command(t, "snapshot", "create", "b", "s1")
	s.command(t, "clone", "b@s1", "c")
	put("b", content(3))
	s.equalExport(t, "c", base)

	s.command(t, "disk", "resize", "a", fmt.Sprint(2*snapshotBytes))
	s.alone(t, "a")
	s.command(t, "snapshot", "rollback", "a@s1")
	s.equalExport(t, "a", base)
	s.equalExport(t, "a@s2", other)
	s.alone(t, "a")
	s.command(t, "snapshot", "rollback", "a@s2")
	s.equalExport(t, "a", other)
	s.command(t, "snapshot", "rename", "a@s1", "first")
	s.command(t, "disk", "rename", "c", "d")
	if out := s.command(t, "snapshot", "ls"); strings.Contains(out, "a@s1") || !strings.Contains(out, "a@first") || !strings.Contains(out, "b@s1") {
		t.Errorf("snapshot ls:\n%s", out)
	}

	s.alone(t, "a")
	s.command(t, "disk", "rm", "a", "--snapshots")
	s.command(t, "snapshot", "rm", "b@s1")
	s.command(t, "disk", "rm", "b")
	s.equalExport(t, "d", base)
	s.kill()
	s = start(t, s.data, small...)
	s.equalExport(t, "d", base)
	s.command(t, "reclaim", "--full")
	s.equalExport(t, "d", base)
	s.verify(t)
	s.stop(t)
}

// What an export of a snapshot says, and what no export is.
func TestSnapshotExports(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	s.command(t, "snapshot", "create", "vm", "mon")
	s.command(t, "snapshot", "create", "vm1", "mon")
	s.command(t, "snapshot", "create", "vm", "tue")
	if exports := list(t, s.uri("unix", "")); len(exports) != 2 || exports["vm"] != snapshotBytes {
		t.Errorf("listed: %v", exports)
	}
	for export, bitmap := range map[string]string{"vm@mon": "", "vm@tue": "", "vm@tue,since=mon": "mon"} {
		out := string(run(t, "nbdinfo", s.uri("tcp", export)))
		if !strings.Contains(out, "is_read_only: true") || !strings.Contains(out, "can_multi_conn: true") || !strings.Contains(out, "base:allocation") {
			t.Errorf("nbdinfo of %s:\n%s", export, out)
		}
		if strings.Count(out, "qemu:dirty-bitmap:") != len(bitmap)/3 || !strings.Contains(out, bitmap) {
			t.Errorf("bitmaps of %s:\n%s", export, out)
		}
	}
	for _, name := range []string{
		"vm@", "@mon", "vm@none", "none@mon", "vm@mon@mon", "vm@tue,", "vm@tue,since=", "vm@tue,since=none", "vm@mon,since=tue", "vm@tue,since=tue",
		"vm@tue,since=mon,since=mon", "vm@tue,until=mon", "vm@tue, since=mon", "vm@tue,since=vm1@mon", "vm,since=mon", "vm@mon\n", "vm @mon",
	} {
		_, err := client.Dial(t.Context(), "unix", s.socket, name, client.Options{})
		if err == nil || !strings.Contains(err.Error(), nbd.ErrUnknownExport.Error()) && !strings.Contains(err.Error(), "no export") {
			t.Errorf("export %q: %v", name, err)
		}
	}
	s.stop(t)
}
