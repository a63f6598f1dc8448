package interop

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Sockets and a notification as systemd does them: who connects before the start
// is served, also by the next process on the same sockets.
func TestPassedSockets(t *testing.T) {
	dir := tempDir(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	local, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	notify, err := net.ListenPacket("unixgram", filepath.Join(dir, "n"))
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), local.(*net.UnixListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), programTime)
	defer cancel()
	for range 2 {
		early := exec.CommandContext(ctx, "nbdinfo", "--size", "nbd://"+tcp.Addr().String()+"/vm1")
		var size bytes.Buffer
		early.Stdout = &size
		if err := early.Start(); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		up := exec.CommandContext(ctx, "sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", executable, "up", "--data", filepath.Join(dir, "data"), "--nbd-socket", filepath.Join(dir, "not")}, small...)...)
		up.Env = append(environment(), "LISTEN_FDS=2", "NOTIFY_SOCKET="+filepath.Join(dir, "n"))
		up.ExtraFiles, up.Stderr = files, &said
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		err := notify.SetReadDeadline(time.Now().Add(startTime))
		if err == nil {
			var n int
			n, _, err = notify.ReadFrom(b)
			b = b[:n]
		}
		if err == nil && string(b) == "READY=1" {
			run(t, "qemu-io", "-f", "raw", "-c", "read 0 4096", "nbd+unix:///vm1?socket="+filepath.Join(dir, "s"))
		}
		eerr := early.Wait()
		_ = up.Process.Signal(os.Interrupt) // it runs: nothing else has ended it
		werr := up.Wait()
		if err != nil || string(b) != "READY=1" || eerr != nil || werr != nil {
			t.Fatalf("%q, %v, %v, %v\n%s", b, err, eerr, werr, &said)
		}
		if got := strings.TrimSpace(size.String()); got != "10737418240" {
			t.Errorf("size %q", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "not")); err == nil {
			t.Error("it opened a socket of its own")
		}
	}
}
