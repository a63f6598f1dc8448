package failpoint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	for _, p := range slices.Concat(Points, SnapshotPoints, FilePoints) {
		if got, n, err := parse(string(p)); got != p || n != 1 || err != nil {
			t.Errorf("%s: %s, %d, %v", p, got, n, err)
		}
		if got, n, err := parse(string(p) + ":12"); got != p || n != 12 || err != nil {
			t.Errorf("%s:12: %s, %d, %v", p, got, n, err)
		}
	}
	for _, text := range []string{"", "result:", "result:0", "result:-1", "result:x", "nowhere", ":1"} {
		if _, _, err := parse(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestReach runs itself as the process that dies: at the third time of the armed
// point, and not at other points.
func TestReach(t *testing.T) {
	const child = "FAILPOINT_TEST_CHILD"
	if os.Getenv(child) != "" {
		Reach(Result)
		for i := range 4 {
			Reach(Record)
			fmt.Print(i)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReach$")
	cmd.Env = append(os.Environ(), child+"=1", Variable+"=record:3")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || string(out) != "01" {
		t.Errorf("printed %q and ended with %v", out, err)
	}
	cmd = exec.Command(os.Args[0], "-test.run=^TestReach$")
	cmd.Env = append(os.Environ(), Variable+"=nowhere")
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("an unknown point ended with %v", err)
	}
}
