package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// oneLine requires status 1 and exactly one line with the text.
func oneLine(t *testing.T, complaint string, code int, text string) {
	t.Helper()
	if code != 1 || !strings.HasPrefix(complaint, "plinth: ") || strings.Count(complaint, "\n") != 1 || !strings.Contains(complaint, text) {
		t.Errorf("status %d and not one line with %q:\n%s", code, text, complaint)
	}
}

// What is wrong before a pool is made leaves nothing behind.
func TestBadSettings(t *testing.T) {
	dir := tempDir(t)
	data := filepath.Join(dir, "data")
	long := filepath.Join(dir, strings.Repeat("x", 108))
	open := filepath.Join(dir, "open")
	write(t, open, []byte("secret\n"), 0o644)
	for _, c := range []struct {
		args string // of up
		want string
	}{
		{"--spindles 0", "--spindles is at least 1"},
		{"--spindles -1", "--spindles is at least 1"},
		{"--spindles 1", "it takes 2"},
		{"--spindles 1025", "a data node has 1 to 1024"},
		{"--spindles many", "--help"},
		{"--ec 8+2 --spindles 9", "need 10 spindles"},
		{"--ec 0+2", "each part is at least 1"},
		{"--ec 8", "not of the form 8+2"},
		{"--log-size 1M", "--log-size is at least"},
		{"--log-size 1.5G", "write a whole number"},
		{"--log-size -1", "write a whole number"},
		{"--spindle-size 1M", "--spindle-size is at least"},
		{"--buffer-size 0", "--buffer-size is at least 1M"},
		{"--ram-cache 4K", "--ram-cache is 0, or at least 1M"},
		{"--cache-size 1G", "--cache-size needs --cache"},
		{"--destage-interval 2", "--help"},
		{"--destage-interval -2s", "--destage-interval is at least"},
		{"--checkpoint-updates 0", "--checkpoint-updates is at least 1"},
		{"--idle-time 0s", "--idle-time is at least"},
		{"--nbd nowhere", "not of the form HOST:PORT"},
		{"--nbd 127.0.0.1:65536", "not of the form HOST:PORT"},
		{"--nbd-socket " + long, "choose a shorter one"},
		{"--api nowhere", "neither unix:PATH nor HOST:PORT"},
		{"--api unix:", "needs a path"},
		{"--api unix:" + long, "choose a shorter one"},
		{"--api 0.0.0.0:0", "needs TLS"},
		{"--api 127.0.0.1:0 --api-cert " + open, "both a certificate and a key"},
		{"--passphrase-file " + dir + "/none", "no such file"},
		{"--passphrase-file " + open, "chmod 600"},
		{"--root-key " + open, "chmod 600"},
		{"--data " + open, "is not a directory: choose another with --data"},
		{"--bogus", "see plinth up --help"},
		{"more", `unexpected argument "more"`},
	} {
		args := append([]string{"up", "--data", data, "--nbd", "127.0.0.1:0"}, strings.Fields(c.args)...)
		out, complaint, code := plinth(t, nil, args...)
		oneLine(t, complaint, code, c.want)
		if out != "" {
			t.Errorf("%s prints %q", c.args, out)
		}
		if _, err := os.Stat(data); err == nil && !strings.Contains(c.args, "--root-key") {
			t.Errorf("%s leaves a data directory", c.args)
		}
		os.RemoveAll(data)
	}
	_, complaint, code := plinth(t, nil, "up", "--data", data, "--nbd", "127.0.0.1:0", "--log-size", "1P")
	oneLine(t, complaint, code, "choose smaller sizes or a larger file system")
}

// A data directory that is not this program's to open is refused, unchanged.
func TestBadDirectory(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	s := start(t, data, small...)
	refused := func(want string, args ...string) {
		t.Helper()
		_, complaint, code := plinth(t, nil, append([]string{"up", "--nbd", "127.0.0.1:0", "--data", data}, args...)...)
		oneLine(t, complaint, code, want)
	}
	refused("another process has")
	s.qemuIO(t, "unix", []string{"write -P 1 0 1M"})
	s.stop(t)
	refused("leave the setting out", "--spindles", "13")
	refused("leave the setting out", "--spindle-size", "1G")
	refused("leave the setting out", "--log-size", "1G")
	refused("leave the setting out", "--ec", "4+2")
	refused("is itself a data node's directory", "--data", filepath.Join(data, "datanode"))

	other := filepath.Join(filepath.Dir(data), "other")
	start(t, other, small...).stop(t)
	refused("wrong root key", "--root-key", filepath.Join(other, "root.key"))
	refused("--root-key", "--root-key", filepath.Join(other, "none"))
	key := filepath.Join(data, "root.key")
	damaged(t, key, func(b []byte) { b[30] ^= 1 }, func() { refused("root.key") })

	node := filepath.Join(data, "datanode", "node")
	damaged(t, node, func(b []byte) { b[8]++ }, func() { refused("newer") })
	damaged(t, node, func(b []byte) { copy(b, "SOMETHIN") }, func() { refused("not begin with") })
	damaged(t, node, func(b []byte) { b[40]++ }, func() { refused("checksum") })

	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	refused("cannot be read without its root key: put the file back")
	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}
	_, complaint, code := plinth(t, nil, "recover", "--data", filepath.Join(data, "none"))
	oneLine(t, complaint, code, "no data node")

	// After all this it is as it was.
	s = start(t, data, small...)
	s.qemuIO(t, "unix", []string{"read -P 1 0 1M"})
	s.stop(t)
}

func TestPassphrase(t *testing.T) {
	dir := tempDir(t)
	data, right, wrong := filepath.Join(dir, "data"), filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	write(t, right, []byte("correct horse\nnot this line\n"), 0o600)
	write(t, wrong, []byte("wrong horse\n"), 0o600)
	s := start(t, data, append(small, "--passphrase-file", right)...)
	s.stop(t)
	if _, err := os.Stat(filepath.Join(data, "root.key")); err == nil {
		t.Error("there is a root key beside a passphrase")
	}
	_, complaint, code := plinth(t, nil, "up", "--nbd", "127.0.0.1:0", "--data", data, "--passphrase-file", wrong)
	oneLine(t, complaint, code, "wrong root key or passphrase")
	if strings.Contains(complaint, "horse") {
		t.Errorf("a passphrase is printed: %s", complaint)
	}
	_, complaint, code = plinth(t, nil, "up", "--nbd", "127.0.0.1:0", "--data", data)
	oneLine(t, complaint, code, "--passphrase-file")
	start(t, data, append(small, "--passphrase-file", right)...).stop(t)
}

func TestBadCommands(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	env := []string{"PLINTH_API=" + s.api}
	for _, c := range [][2]string{
		{"disk create vm1 1G", `disk "vm1": name is taken`},
		{"disk create -- -vm 1G", "use 1 to 128 letters"},
		{"disk create a/b 1G", "use 1 to 128 letters"},
		{"disk create " + strings.Repeat("n", 129) + " 1G", "use 1 to 128 letters"},
		{"disk create vm2 0", "use a multiple of 4 KiB"},
		{"disk create vm2 4097", "use a multiple of 4 KiB"},
		{"disk create vm2 2P", "at most 1 PiB"},
		{"disk create vm2 1e9", "write a whole number"},
		{"disk create vm2 99999999999999999999", "write a whole number"},
		{"disk create vm2", "usage: plinth disk create [options] NAME SIZE"},
		{"disk create vm2 1G 2G", `unexpected argument "2G"`},
		{"disk create vm2 1G --chunk 5K", "chunk"},
		{"disk create vm2 1G --chunk 128K", "chunk"},
		{"disk create vm2 1G --cipher rot13", "rot13"},
		{"disk create vm2 1G --durability later", "neither flush nor stable"},
		{"disk create vm2 1G --bogus", "see plinth disk create --help"},
		{"disk resize vm1 1G", "disks only grow"},
		{"disk resize vm2 1G", `disk "vm2": no such disk`},
		{"disk show help", `disk "help": no such disk`},
		{"disk rm vm2", `disk "vm2": no such disk`},
		{"disk lend vm1", `no command "lend"`},
		{"disk move vm1", "usage: plinth disk move"},
		{"stat", `no command "stat"`},
		{"completion tcsh", "bash, zsh and fish"},
		{"status --api unix:" + s.data + "/none", "is it running?"},
		{"status --api 127.0.0.1:1", "is it running?"},
		{"status --api nowhere", "neither unix:PATH nor HOST:PORT"},
		{"status --token-file " + s.data + "/none", "no such file"},
	} {
		out, complaint, code := plinth(t, env, strings.Fields(c[0])...)
		oneLine(t, complaint, code, c[1])
		if out != "" {
			t.Errorf("%s prints %q", c[0], out)
		}
	}
	for _, args := range []string{
		"disk create vm2 1G --json", "disk ls --json", "disk show vm2 --json", "disk resize vm2 2G --json", "disk rm vm2 --json",
		"status --json", "verify --json",
	} {
		if out := s.command(t, strings.Fields(args)...); !json.Valid([]byte(out)) {
			t.Errorf("%s prints no JSON: %s", args, out)
		}
	}
	s.stop(t)
}

// Over TCP the token is needed and its file is printed.
func TestTCPAPI(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), append(small, "--api", "127.0.0.1:0")...)
	env := []string{"PLINTH_API=" + s.api}
	_, complaint, code := plinth(t, env, "status")
	oneLine(t, complaint, code, "--token-file")
	token := filepath.Join(s.data, "api.token")
	s.command(t, "status", "--token-file", token)
	other := filepath.Join(filepath.Dir(s.data), "token")
	write(t, other, bytes.Repeat([]byte("x"), 64), 0o600)
	_, complaint, code = plinth(t, env, "status", "--token-file", other)
	oneLine(t, complaint, code, "wants its bearer token")
	s.stop(t)
}

// The bash script offers commands, flags and disks.
func TestCompletion(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "database", "1G")
	s.command(t, "snapshot", "create", "database", "monday")
	s.command(t, "snapshot", "create", "database", "tuesday")
	for _, c := range []struct{ line, want string }{
		{"plinth d", "datanode disk diff detach"},
		{"plinth attach datab", "database database@monday database@tuesday"},
		{"plinth snapshot re", "rename"},
		{"plinth snapshot create da", "database"},
		{"plinth snapshot rm da", "database@monday database@tuesday"},
		{"plinth snapshot rm database@", "@monday @tuesday"},
		{"plinth clone database@m", "@monday"},
		{"plinth diff database@monday database@t", "@tuesday"},
		{"plinth snapshot rm --wa", "--wait"},
		{"plinth disk r", "resize rename rm"},
		{"plinth disk show da", "database"},
		{"plinth disk rm --js", "--json"},
		{"plinth up --spindle-", "--spindle-size"},
	} {
		// Bash takes "@" for a word of its own, and completes from there.
		words := strings.Fields(strings.ReplaceAll(c.line, "@", " @ "))
		script := `set -e; PATH=` + filepath.Dir(executable) + `:$PATH; export PLINTH_API=` + s.api + `
			source <(plinth completion bash)
			COMP_WORDS=(` + strings.Join(words, " ") + `); COMP_CWORD=` + fmt.Sprint(len(words)-1) + `
			_plinth; echo "${COMPREPLY[@]}"`
		if got := strings.TrimSpace(string(run(t, "bash", "-c", script))); got != c.want {
			t.Errorf("%q is completed with %q, want %q", c.line, got, c.want)
		}
	}
	s.stop(t)
}

// The bar is for terminals only.
func TestProgress(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	_, complaint, code := plinth(t, []string{"PLINTH_API=" + s.api}, "verify")
	if code != 0 || complaint != "" {
		t.Errorf("verify: status %d, and says %q", code, complaint)
	}
	s.stop(t)
}

func write(t *testing.T, path string, content []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, content, mode); err != nil {
		t.Fatal(err)
	}
}

// damaged changes a file, calls f, and puts the file back.
func damaged(t *testing.T, path string, change func([]byte), f func()) {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(was)
	change(b)
	write(t, path, b, 0o600)
	f()
	write(t, path, was, 0o600)
}
