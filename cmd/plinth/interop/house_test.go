package interop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// programTime bounds each run of a program of others.
	programTime = 2 * time.Minute
	// startTime and stopTime bound a start and a stop of plinth.
	startTime = 30 * time.Second
	stopTime  = 30 * time.Second
)

// executable is the program under test.
var executable string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "p")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		executable = filepath.Join(dir, "plinth")
		if out, err := exec.Command("go", "build", "-o", executable, "plinth/cmd/plinth").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// small are the settings of a pool for tests: 1.2 GiB of data, quick to destage.
var small = []string{
	"--nbd", "127.0.0.1:0", "--spindle-size", "128M", "--log-size", "256M", "--destage-interval", "200ms", "--idle-time", "1s",
}

// tempDir returns a folder whose path is short enough for sockets.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// site is a running "plinth up" or "plinth host".
type site struct {
	data             string
	tcp, socket, api string
	cmd              *exec.Cmd
	said             *bytes.Buffer // complete once done is closed
	done             chan struct{}
	err              error // of the process, once done is closed
}

var serving = regexp.MustCompile(`msg=serving nbd=(\S+) nbd-socket=(\S+) api=(\S+)`)

// start runs plinth up on a data directory and waits until it serves. The test
// ends it with stop or kill; otherwise its end does.
func start(t *testing.T, data string, args ...string) *site {
	t.Helper()
	s := launch(t, data, args...)
	if s.socket == "" {
		t.Fatalf("plinth up: %v\n%s", s.err, s.said)
	}
	return s
}

// launch is start that accepts a refusal: the socket is then empty.
func launch(t *testing.T, data string, args ...string) *site {
	t.Helper()
	return launchAgent(t, data, append([]string{"up", "--data", data}, args...)...)
}

// launchAgent is launch for any command line that serves from a directory.
func launchAgent(t *testing.T, data string, words ...string) *site {
	t.Helper()
	s := &site{data: data, said: new(bytes.Buffer), done: make(chan struct{})}
	s.cmd = exec.Command(executable, words...)
	s.cmd.Env = environment()
	errs, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan []string, 1)
	go func() {
		lines := bufio.NewScanner(errs)
		for lines.Scan() {
			fmt.Fprintln(s.said, lines.Text())
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m
			}
		}
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	t.Cleanup(s.kill)
	select {
	case m := <-ready:
		s.tcp, s.socket, s.api = m[1], m[2], m[3]
	case <-s.done:
	case <-time.After(startTime):
		s.kill()
		t.Fatalf("plinth %s does not serve\n%s", words[0], s.said)
	}
	return s
}

// environment is the test's own, without what directs plinth.
func environment() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PLINTH_") {
			out = append(out, v)
		}
	}
	return out
}

// kill ends it as a crash would, if it runs.
func (s *site) kill() {
	_ = s.cmd.Process.Kill() // fails for one that has ended
	<-s.done
}

// stop ends it as Ctrl-C does, which a wrapper may pass on twice: status 0 is
// required.
func (s *site) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	_ = s.cmd.Process.Signal(os.Interrupt) // fails if it has ended
	select {
	case <-s.done:
	case <-time.After(stopTime):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // says where it hangs
		<-s.done
		t.Fatalf("plinth up does not stop\n%s", s.said)
	}
	if s.err != nil || strings.Contains(s.said.String(), "level=ERROR") {
		t.Fatalf("plinth up ended with %v\n%s", s.err, s.said)
	}
}

// command runs a plinth command against the site, which must succeed, and
// returns its output.
func (s *site) command(t *testing.T, args ...string) string {
	t.Helper()
	out, complaint, code := plinth(t, []string{"PLINTH_API=" + s.api}, args...)
	if code != 0 {
		t.Fatalf("plinth %q: status %d\n%s%s", args, code, out, complaint)
	}
	return out
}

// plinth runs a command and returns what it writes and its status.
func plinth(t *testing.T, env []string, args ...string) (out, complaint string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTime)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, executable, args...)
	cmd.Env = append(environment(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// networks are the kinds of socket that every disk is served on.
var networks = []string{"unix", "tcp"}

// uri names a disk, or with "" the server.
func (s *site) uri(network, disk string) string {
	if network == "unix" {
		return "nbd+unix:///" + disk + "?socket=" + s.socket
	}
	return "nbd://" + s.tcp + "/" + disk
}

// run runs a program of others to its end and returns its output. It fails the
// test if the program does.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programTime)
	defer cancel()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, &out, &complaints)
	}
	return out.Bytes()
}
