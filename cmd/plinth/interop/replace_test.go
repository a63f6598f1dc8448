package interop

import (
	"encoding/json"
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
	if _, complaint, code := plinth(t, nil, "spindle", "replace", "3", "--data", data); code != 1 || !strings.Contains(complaint, "in use") {
		t.Errorf("replace while plinth runs: %d, %s", code, complaint)
	}
	interrupt(t, s)
	if _, complaint, code := plinth(t, nil, "spindle", "replace", "4", "--data", data); code != 1 || !strings.Contains(complaint, "unmount") {
		t.Errorf("replace of a drive that serves: %d, %s", code, complaint)
	}
	if out, complaint, code := plinth(t, nil, "spindle", "replace", "3", "--data", data); code != 0 || !strings.Contains(out, "new drive") {
		t.Fatalf("replace: %d, %s%s", code, out, complaint)
	}

	s = start(t, data, small...)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var st struct {
			Rebuild struct {
				Ended    *time.Time
				Restored []int
			}
			Warnings []string
		}
		if err := json.Unmarshal([]byte(s.command(t, "status", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		if st.Rebuild.Ended != nil && len(st.Warnings) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not rebuilt after a minute: %+v\n%s", st, s.said)
		}
	}
	if out := s.command(t, "status"); !strings.Contains(out, "restored on spindles [3]") {
		t.Errorf("status after it:\n%s", out)
	}
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
