package crash

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/internal/failpoint"
	"plinth/internal/host"
	"plinth/nbd/client"
)

// startTimeMax bounds a start with its replay, on a busy machine.
const startTimeMax = 60 * time.Second

// buildDir is where the program was built, for TestMain to remove.
var buildDir string

// buildPlinth builds the program once for all tests.
var buildPlinth = sync.OnceValues(func() (string, error) {
	var err error
	if buildDir, err = os.MkdirTemp("", "p"); err != nil {
		return "", err
	}
	path := filepath.Join(buildDir, "plinth")
	if out, err := exec.Command("go", "build", "-o", path, "plinth/cmd/plinth").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build plinth: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// site is a data directory that processes serve one after the other.
type site struct {
	dir  string // short: sockets lie in it
	args []string
}

// newSite returns a small site: logs fill up and checkpoints are due soon.
func newSite(t testing.TB, dir string) *site {
	t.Helper()
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "p"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if !t.Failed() {
				os.RemoveAll(dir)
			}
		})
	}
	return &site{dir: dir, args: []string{
		"--data", filepath.Join(dir, "d"), "--log-size", "16M", "--spindle-size", "96M",
		"--destage-interval", "100ms", "--checkpoint-updates", "2000", "--idle-time", "500ms",
	}}
}

func (s *site) path(name ...string) string {
	return filepath.Join(append([]string{s.dir, "d"}, name...)...)
}

// command returns another command of the program on the site.
func (s *site) command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := buildPlinth()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, append(args, s.args...)...)
}

// life is one process.
type life struct {
	site *site
	cmd  *exec.Cmd
	out  bytes.Buffer  // what it printed; for after gone
	gone chan struct{} // closed when it has ended
	api  *api.Client

	// last is what the API said last; guarded until gone and polled.
	mu     sync.Mutex
	last   []host.DiskInfo
	polled chan struct{}
}

// start starts the program; point arms a failpoint, or is empty.
func (s *site) start(t testing.TB, point string) *life {
	t.Helper()
	l := &life{site: s, gone: make(chan struct{}), polled: make(chan struct{})}
	l.cmd = s.command(t, "up", "--nbd", "")
	l.cmd.Env = append(os.Environ(), failpoint.Variable+"="+point)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	var err error
	if l.api, err = api.NewClient(api.Address{Unix: s.path("api.sock")}, api.ClientOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = l.cmd.Wait() // ended reads the state
		close(l.gone)
	}()
	go l.poll()
	return l
}

// poll asks for the counters until the process is gone.
func (l *life) poll() {
	defer close(l.polled)
	defer l.api.Close()
	for {
		select {
		case <-l.gone:
			return
		case <-time.After(30 * time.Millisecond):
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if disks, err := l.api.Disks(ctx); err == nil {
			l.mu.Lock()
			l.last = disks
			l.mu.Unlock()
		}
		cancel()
	}
}

// dead reports whether the process has ended, giving it a moment to.
func (l *life) dead() bool {
	select {
	case <-l.gone:
		return true
	case <-time.After(20 * time.Second):
		return false
	}
}

// dial connects to a disk; it waits for the process to serve. An error means
// that the process has ended.
func (l *life) dial(t testing.TB, disk string) (*client.Client, error) {
	t.Helper()
	deadline := time.Now().Add(startTimeMax)
	for {
		c, err := client.Dial(context.Background(), "unix", l.site.path("nbd.sock"), disk, client.Options{})
		if err == nil {
			return c, nil
		}
		select {
		case <-l.gone:
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			l.kill(t)
			t.Fatalf("it does not serve %s: %v\n%s", disk, err, l.tail())
		}
	}
}

// kill ends the process, if its failpoint has not, and fails the test if it
// ended in any other way.
func (l *life) kill(t testing.TB) {
	t.Helper()
	_ = l.cmd.Process.Kill()
	<-l.gone
	<-l.polled
	if ws := l.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended by itself: %v\n%s", l.cmd.ProcessState, l.tail())
	}
}

// stop ends the process in good order.
func (l *life) stop(t testing.TB) {
	t.Helper()
	_ = l.cmd.Process.Signal(syscall.SIGTERM)
	<-l.gone
	<-l.polled
	if !l.cmd.ProcessState.Success() {
		t.Fatalf("the process did not stop well: %v\n%s", l.cmd.ProcessState, l.tail())
	}
}

// tail is the end of what the process printed; it is gone.
func (l *life) tail() string {
	const most = 6000
	b := l.out.Bytes()
	return string(b[max(0, len(b)-most):])
}
