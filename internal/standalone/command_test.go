package standalone

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"plinth/nbd/client"
)

// program builds the command once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "plinth")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "plinth")
	out, err := exec.Command("go", "build", "-o", path, "plinth/cmd/plinth").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built {
		if path, err := program(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

var built bool

// up is a running plinth.
type up struct {
	testing.TB
	path, api, socket string
	cmd               *exec.Cmd

	mu  sync.Mutex // for what follows
	log strings.Builder
}

// Write takes what the program prints.
func (u *up) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.Write(p)
}

// said returns all that it has printed.
func (u *up) said() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.String()
}

// connect opens a disk over NBD.
func (u *up) connect(name string) *client.Client {
	u.Helper()
	c, err := client.Dial(u.Context(), "unix", u.socket, name, client.Options{})
	if err != nil {
		u.Fatal(err)
	}
	return c
}

// startUp runs plinth up on a directory until the test ends or stop is called.
func startUp(t testing.TB, dir string, flags ...string) *up {
	t.Helper()
	built = true
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "p") // short, as a socket's path must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	u := &up{TB: t, path: path, api: "unix:" + filepath.Join(sockets, "api"), socket: filepath.Join(sockets, "nbd")}
	u.cmd = exec.Command(path, append([]string{
		"up", "--data", dir, "--nbd", "", "--nbd-socket", u.socket, "--api", u.api, "--idle-time", "1h",
	}, flags...)...)
	u.cmd.Stdout, u.cmd.Stderr = u, u
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, code := u.run("status"); code == 0 {
			return u
		}
		if time.Now().After(deadline) {
			t.Fatalf("plinth up does not answer after 30 s")
		}
	}
}

// run runs a command against it and returns its output and exit status.
func (u *up) run(args ...string) (string, int) {
	u.Helper()
	cmd := exec.Command(u.path, args...)
	cmd.Env = append(os.Environ(), "PLINTH_API="+u.api)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		u.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// stop ends it as Ctrl-C does.
func (u *up) stop() { u.end(syscall.SIGINT) }

func (u *up) end(sig os.Signal) {
	if u.cmd.ProcessState != nil {
		return
	}
	if err := u.cmd.Process.Signal(sig); err != nil {
		u.Error(err)
	}
	err := u.cmd.Wait()
	if sig == syscall.SIGINT && err != nil {
		u.Errorf("plinth up: %v\n%s", err, u.said())
	}
}

// verifyByCommand tests that plinth verify names what was planted and fails.
func verifyByCommand(t testing.TB, dir string, want []planted) {
	t.Helper()
	u := startUp(t, dir)
	out, code := u.run("verify")
	if code != 1 {
		t.Errorf("plinth verify ends with status %d, want 1", code)
	}
	for _, w := range want {
		if n := strings.Count(out, w.kind+": "+w.where+": "); n != 1 {
			t.Errorf("plinth verify names %s, %s %d times:\n%s", w.kind, w.where, n, out)
		}
	}
	u.stop()
}

// statusByCommand tests that plinth status names the spindles that are absent.
func statusByCommand(t testing.TB, dir string, lost []int) {
	t.Helper()
	u := startUp(t, dir)
	out, code := u.run("status")
	for _, n := range lost {
		if line := fmt.Sprintf("spindle %d (%s) is absent", n, spindleDir(dir, n)); code != 0 || strings.Count(out, line) != 1 {
			t.Errorf("plinth status ends with %d and does not say %q once:\n%s", code, line, out)
		}
	}
	if out, code := u.run("verify"); code != 1 {
		t.Errorf("plinth verify ends with %d without 2 spindles:\n%s", code, out)
	}
	u.stop()
}
