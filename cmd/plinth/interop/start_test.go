package interop

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// With defaults but for the port: a first disk within seconds, Ctrl-C, and a
// second start that finds everything, also without the host's directory.
func TestFirstStart(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	began := time.Now()
	s := start(t, data, "--nbd", "127.0.0.1:0")
	t.Logf("the first start took %v", time.Since(began))
	exports := list(t, s.uri("unix", ""))
	if len(exports) != 1 || exports["vm1"] != 10<<30 {
		t.Fatalf("a new pool serves %v", exports)
	}
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 1234567 100001", s.uri("tcp", "vm1"))
	s.stop(t)
	for _, name := range []string{"root.key", "host", "datanode"} {
		info, err := os.Stat(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", name, info.Mode())
		}
	}
	for range 2 {
		s = start(t, data, "--nbd", "127.0.0.1:0")
		out := run(t, "qemu-io", "-f", "raw", "-c", "read -P 0x5a 1234567 100001", s.uri("unix", "vm1"))
		if strings.Contains(string(out), "failed") {
			t.Fatalf("after a restart:\n%s", out)
		}
		s.stop(t)
		if err := os.RemoveAll(filepath.Join(data, "host")); err != nil {
			t.Fatal(err)
		}
	}
}

// A client that stays does not keep Ctrl-C from working.
func TestStopWithClient(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	client := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 1M", "-c", "sleep 60000", s.uri("unix", "vm1"))
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = client.Process.Kill()
		_ = client.Wait() // it was killed
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var disk struct{ Clients int }
		if err := json.Unmarshal([]byte(s.command(t, "disk", "show", "vm1", "--json")), &disk); err != nil {
			t.Fatal(err)
		}
		if disk.Clients == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the client does not attach")
		}
	}
	_, complaint, code := plinth(t, nil, "disk", "rm", "vm1", "--api", s.api)
	oneLine(t, complaint, code, `disk "vm1": in use: disconnect its clients first`)
	s.stop(t)
}

// list returns names and sizes of what nbdinfo says a server exports.
func list(t *testing.T, uri string) map[string]int64 {
	t.Helper()
	var answer struct {
		Exports []struct {
			Name string `json:"export-name"`
			Size int64  `json:"export-size"`
		} `json:"exports"`
	}
	if err := json.Unmarshal(run(t, "nbdinfo", "--list", "--json", uri), &answer); err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, e := range answer.Exports {
		out[e.Name] = e.Size
	}
	return out
}

func TestList(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "b.2", "1G", "--chunk", "64K")
	s.command(t, "disk", "create", "--cipher", "aes-256-xts", "c-3", "64T", "--durability=stable")
	s.command(t, "disk", "resize", "b.2", "2G")
	for _, network := range networks {
		got := list(t, s.uri(network, ""))
		if len(got) != 3 || got["vm1"] != 10<<30 || got["b.2"] != 2<<30 || got["c-3"] != 64<<40 {
			t.Errorf("over %s: %v", network, got)
		}
	}
	s.command(t, "disk", "rm", "b.2")
	if got := list(t, s.uri("unix", "")); len(got) != 2 {
		t.Errorf("after rm: %v", got)
	}
	s.stop(t)
}
