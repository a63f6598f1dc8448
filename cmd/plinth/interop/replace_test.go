package interop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReplacedDrive is an operator's day: a drive fails, a new one is mounted in its place,
// plinth restores what it had, and then two others go.
func TestReplacedDrive(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, small...)
	content := filepath.Join(t.TempDir(), "content")
	noise := make([]byte, 64<<20)
	fill(rand.New(rand.NewPCG(1, 2)), noise)
	must(t, os.WriteFile(content, noise, 0o600))
	s.command(t, "disk", "create", "vm2", "64M")
	run(t, "nbdcopy", content, s.uri("unix", "vm2"))
	s.stop(t)
	spindle := func(n string) string { return filepath.Join(data, "datanode", "spindle-"+n) }
	must(t, os.Rename(spindle("03"), spindle("03")+".old"))
	must(t, os.Mkdir(spindle("03"), 0o700))

	s = start(t, data, small...)
	if out := s.command(t, "status"); !strings.Contains(out, "11 of 12 ok") || !strings.Contains(out, "plinth spindle replace 3") {
		t.Errorf("status with an empty directory:\n%s", out)
	}
	interrupt(t, s)
	if _, complaint, code := plinth(t, nil, "spindle", "replace", "4", "--data", data); code != 1 || !strings.Contains(complaint, "unmount") {
		t.Errorf("replace of a drive that serves: %d, %s", code, complaint)
	}
	if out, complaint, code := plinth(t, nil, "spindle", "replace", "3", "--data", data); code != 0 || !strings.Contains(out, "new drive") {
		t.Fatalf("replace: %d, %s%s", code, out, complaint)
	}

	s = start(t, data, small...)
	s.rebuilt(t)
	s.command(t, "verify")
	for _, n := range []string{"00", "11"} {
		must(t, os.RemoveAll(spindle(n)))
	}
	interrupt(t, s)
	s = start(t, data, small...)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", content, s.uri("tcp", "vm2"))

	// The old drive is no help any more, nor any harm.
	interrupt(t, s)
	must(t, os.Rename(spindle("03"), spindle("03")+".new"))
	must(t, os.Rename(spindle("03")+".old", spindle("03")))
	s = start(t, data, small...)
	if out := s.command(t, "status"); !strings.Contains(out, "was replaced") {
		t.Errorf("status with the old drive:\n%s", out)
	}
	interrupt(t, s)
}

// TestReplacedWhileServing replaces a drive under load, in a plinth up and in a plinth
// datanode: nothing is stopped, and when it is whole other drives may go. With two hosts both
// restore.
func TestReplacedWhileServing(t *testing.T) {
	t.Run("up", func(t *testing.T) {
		t.Parallel()
		data := filepath.Join(tempDir(t), "data")
		s := start(t, data, append(small, "--ram-cache", "0")...)
		if _, complaint, code := plinth(t, nil, "spindle", "replace", "3", "--data", data); code != 1 || !strings.Contains(complaint, "unmount") {
			t.Errorf("replace of a drive that serves: %d, %s", code, complaint)
		}
		replaceUnderLoad(t, s, filepath.Join(data, "datanode"), []string{"00", "11"}, "--data", data)
	})
	t.Run("datanode", func(t *testing.T) {
		t.Parallel()
		p := newSplit(t, 1)
		p.join(t, "host", "h1")
		p.join(t, "host", "h2")
		s, other, dir := p.host(t, "h1"), p.host(t, "h2"), p.nodes[0].dir
		if _, complaint, code := plinth(t, nil, "spindle", "replace", "3", "--dir", dir); code != 1 || !strings.Contains(complaint, "in use") || !strings.Contains(complaint, "a host's API") {
			t.Errorf("replace in the directory of a data node that runs: %d, %s", code, complaint)
		}
		replaceUnderLoad(t, s, dir, []string{"00"}, "--api", s.api)
		// Which layouts have anything is chance.
		if r := statusOf(t, other).Rebuild; len(r.Hosts) != 2 || r.Hosts[0].Fragments+r.Hosts[1].Fragments != r.Fragments {
			t.Errorf("not both hosts took part: %+v", r)
		}
		interrupt(t, other)
	})
}

// replaceUnderLoad replaces spindle 3 of a site whose data node is in dir, and has others go
// when it is whole.
func replaceUnderLoad(t *testing.T, s *site, dir string, others []string, flags ...string) {
	content, noise := filepath.Join(t.TempDir(), "content"), make([]byte, 32<<20)
	fill(rand.New(rand.NewPCG(1, 2)), noise)
	must(t, os.WriteFile(content, noise, 0o600))
	s.command(t, "disk", "create", "still", "32M")
	run(t, "nbdcopy", "--flush", content, s.uri("unix", "still"))
	s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	l := startLoad(t, "unix", s.socket, "vm", make([]byte, snapshotBytes))
	l.await(t, 300)
	spindle := func(n string) string { return filepath.Join(dir, "spindle-"+n) }
	must(t, os.Rename(spindle("03"), spindle("03")+".old"))
	must(t, os.Mkdir(spindle("03"), 0o700))
	out, complaint, code := plinth(t, nil, append([]string{"spindle", "replace"}, append(flags, "3")...)...)
	if code != 0 || !strings.Contains(out, "new drive") {
		t.Fatalf("replace: %d, %s%s\n%s", code, out, complaint, s.said)
	}
	l.await(t, 300)
	s.rebuilt(t)
	l.pause()
	s.verify(t)
	for _, n := range others {
		must(t, os.RemoveAll(spindle(n)))
	}
	s.equalExport(t, "vm", l.model)
	s.equalExport(t, "still", noise)
	interrupt(t, s)
}

// rebuilt waits until spindle 3 is whole again.
func (s *site) rebuilt(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var st struct {
			Rebuild struct {
				Ended     *time.Time
				Fragments int
			}
			Warnings []string
		}
		if err := json.Unmarshal([]byte(s.command(t, "status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		if st.Rebuild.Ended != nil && len(st.Warnings) == 0 {
			if st.Rebuild.Fragments == 0 {
				t.Error("nothing was restored: the test shows nothing")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not rebuilt after a minute: %+v\n%s", st, s.said)
		}
	}
	if out := s.command(t, "status"); !strings.Contains(out, "restored on spindles [3]") {
		t.Errorf("status after it:\n%s", out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// interrupt ends plinth, which has said that spindles do not serve.
func interrupt(t *testing.T, s *site) {
	t.Helper()
	must(t, s.cmd.Process.Signal(os.Interrupt))
	select {
	case <-s.done:
	case <-time.After(stopTime):
		t.Fatalf("plinth up does not stop\n%s", s.said)
	}
	if s.err != nil {
		t.Fatalf("plinth up ended with %v\n%s", s.err, s.said)
	}
}
