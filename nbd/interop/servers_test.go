package interop

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"plinth/nbd/nbdtest"
)

// start runs a server program until the test ends, and returns a dial function
// for its unix socket.
func start(t *testing.T, socket, program string, args ...string) func(context.Context) (net.Conn, error) {
	t.Helper()
	var complaints bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stderr = &complaints
	// It must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s says:\n%s", program, &complaints)
		}
	})
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := dial(t.Context()); err == nil {
			conn.Close()
			return dial
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", program, err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen", program)
		}
	}
}

// The suite that our server is held to holds for servers that our client has
// never met: so it states the protocol and not our habits.
func TestNbdkit(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	dial := start(t, socket, "nbdkit", "--foreground", "--unix", socket, "memory", strconv.Itoa(nbdtest.DeviceBytesMin+4096))
	nbdtest.Run(t, nbdtest.Target{Dial: dial})
}

func TestQemuNbd(t *testing.T) {
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, nbdtest.DeviceBytesMin+4096); err != nil {
		t.Fatal(err)
	}
	dial := start(t, socket, "qemu-nbd", "--persistent", "--shared=16", "--format=raw", "--export-name=disk", "--socket="+socket, file)
	nbdtest.Run(t, nbdtest.Target{Dial: dial, Export: "disk", Unknown: "none"})
}
