package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"plinth/internal/failpoint"
)

// authority is a running "plinth cluster serve".
type authority struct {
	dir, addr string
	cmd       *exec.Cmd
	said      *bytes.Buffer // complete once done is closed
	done      chan struct{}
}

var servingCA = regexp.MustCompile(`msg=serving ca=(\S+)`)

// serveCluster answers for the authority of a folder until the test ends.
func serveCluster(t *testing.T, dir string, env ...string) *authority {
	t.Helper()
	a := &authority{dir: dir, said: new(bytes.Buffer), done: make(chan struct{})}
	a.cmd = exec.Command(executable, "cluster", "serve", "--dir", dir, "--listen", "127.0.0.1:0")
	a.cmd.Env = append(environment(), env...)
	errs, err := a.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(errs)
		for lines.Scan() {
			fmt.Fprintln(a.said, lines.Text())
			if m := servingCA.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m[1]
			}
		}
		_ = a.cmd.Wait() // its status is read from the process
		close(a.done)
	}()
	t.Cleanup(a.kill)
	select {
	case a.addr = <-ready:
	case <-a.done:
		t.Fatalf("plinth cluster serve ended\n%s", a.said)
	case <-time.After(startTime):
		t.Fatal("plinth cluster serve does not serve")
	}
	return a
}

func (a *authority) kill() {
	_ = a.cmd.Process.Kill() // fails for one that has ended
	<-a.done
}

// cluster runs a command of the cluster, which must succeed.
func cluster(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, complaint, code := plinth(t, nil, append(append([]string{"cluster"}, args...), "--dir", dir)...)
	if code != 0 {
		t.Fatalf("plinth cluster %q --dir %s: status %d\n%s%s", args, dir, code, out, complaint)
	}
	return out
}

// member makes one in a folder of its own.
func (a *authority) member(t *testing.T, role, name string) string {
	t.Helper()
	dir := filepath.Join(tempDir(t), name)
	cluster(t, dir, "join", a.token(t, role, name), "--ca-server", a.addr)
	return dir
}

func (a *authority) token(t *testing.T, role, name string) string {
	t.Helper()
	return strings.TrimSpace(cluster(t, a.dir, "token", "create", "--role", role, "--name", name))
}

// A cluster's life: begun, joined, renewed, revoked, its authority changed.
func TestCluster(t *testing.T) {
	dir := filepath.Join(tempDir(t), "admin")
	cluster(t, dir, "init", "--name", "root1", "--san", "127.0.0.1")
	a := serveCluster(t, dir)
	token := a.token(t, "host", "h1")
	h1 := filepath.Join(tempDir(t), "h1")
	if out := cluster(t, h1, "join", token, "--ca-server", a.addr); !strings.Contains(out, "/host/h1\n") {
		t.Errorf("joined as\n%s", out)
	}
	dn1 := a.member(t, "datanode", "dn1")
	other := filepath.Join(tempDir(t), "other")
	cluster(t, other, "init")
	foreign := strings.TrimSpace(cluster(t, other, "token", "create", "--role", "host", "--name", "h2"))

	nobody := filepath.Join(tempDir(t), "nobody")
	for want, args := range map[string][]string{
		"used by another machine":           {"join", token, "--ca-server", a.addr, "--dir", nobody},
		"somebody in between":               {"join", foreign, "--ca-server", a.addr, "--dir", nobody},
		"copy all of it":                    {"join", token[:40], "--ca-server", a.addr, "--dir", nobody},
		"connection refused":                {"join", foreign, "--ca-server", "127.0.0.1:1", "--dir", nobody},
		"is host/h1 of cluster":             {"join", foreign, "--ca-server", a.addr, "--dir", h1},
		"--ca-server: address":              {"join", foreign, "--ca-server", "x", "--dir", nobody},
		"host/h1 is a member":               {"token", "create", "--role", "host", "--name", "h1", "--dir", dir},
		"role \"shelf\" is none of":         {"token", "create", "--role", "shelf", "--name", "h1", "--dir", dir},
		"name \"H 1\"":                      {"token", "create", "--role", "host", "--name", "H 1", "--dir", dir},
		"choose another folder":             {"init", "--dir", dir},
		"plinth cluster init makes one":     {"serve", "--dir", dn1},
		"no member of a cluster":            {"cert", "renew", "--dir", nobody + "x"},
		"is the authority's own member":     {"cert", "revoke", "admin/root1", "--dir", dir},
		"is not of the form ROLE/NAME":      {"cert", "revoke", "h1", "--dir", dir},
		"serial \"1\" is not":               {"cert", "revoke", "host/h1", "--serial", "1", "--dir", dir},
		"no change of the authority":        {"rotate-ca", "--abort", "--dir", dir},
		"--data: ":                          {"init", "--data", nobody, "--dir", nobody + "y"},
		"certificates hold for":             {"init", "--lifetime", "1s", "--dir", nobody + "y"},
		"is neither an IP address nor a ho": {"init", "--san", "A_B", "--dir", nobody + "y"},
	} {
		_, complaint, code := plinth(t, nil, append([]string{"cluster"}, args...)...)
		oneLine(t, complaint, code, want)
	}

	var before, after struct{ Serial string }
	decode(t, cluster(t, h1, "cert", "ls", "--json"), &before)
	cluster(t, h1, "cert", "renew", "--if-due")
	decode(t, cluster(t, h1, "cert", "renew", "--json"), &after)
	if before.Serial == after.Serial || before.Serial == "" {
		t.Errorf("serial %q, renewed %q", before.Serial, after.Serial)
	}

	// The change of authority waits for who has not followed.
	for _, step := range []string{"announce", "switch", "retire"} {
		if out := cluster(t, dir, "rotate-ca"); !strings.HasPrefix(out, "done: "+step) {
			t.Fatalf("rotate-ca, where %s was due:\n%s", step, out)
		}
		if out := cluster(t, dir, "rotate-ca", "--check"); step != "retire" && (!strings.Contains(out, "datanode/dn1") || !strings.Contains(out, "host/h1")) {
			t.Errorf("after %s nobody is waited for:\n%s", step, out)
		}
		for _, d := range []string{h1, dn1} {
			cluster(t, d, "cert", "renew", "--if-due")
		}
	}
	cluster(t, dir, "cert", "revoke", "host/h1")
	_, complaint, code := plinth(t, nil, "cluster", "cert", "renew", "--dir", h1)
	oneLine(t, complaint, code, "certificate revoked: that of host/h1")
	cluster(t, dn1, "cert", "renew")
	if out := cluster(t, dir, "cert", "ls"); !strings.Contains(out, "datanode/dn1") || !strings.Contains(out, "all until") {
		t.Errorf("certificates:\n%s", out)
	}
	// A name that was revoked joins anew, in the old folder.
	cluster(t, h1, "join", a.token(t, "host", "h1"), "--ca-server", a.addr, "--replace")

	if err := os.Chmod(filepath.Join(h1, "identity.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, complaint, code = plinth(t, nil, "cluster", "cert", "renew", "--dir", h1)
	oneLine(t, complaint, code, "run: chmod 600")

	if err := a.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-a.done
	if code := a.cmd.ProcessState.ExitCode(); code != 0 || strings.Contains(a.said.String(), "level=ERROR") {
		t.Errorf("plinth cluster serve ended with %d\n%s", code, a.said)
	}
}

// A cluster is for the pool of a plinth up.
func TestClusterOfPool(t *testing.T) {
	data := filepath.Join(tempDir(t), "data")
	start(t, data, small...).stop(t)
	one, two := filepath.Join(tempDir(t), "a"), filepath.Join(tempDir(t), "b")
	var first, second struct{ Cluster string }
	decode(t, cluster(t, one, "init", "--data", data, "--json"), &first)
	decode(t, cluster(t, two, "init", "--data", data, "--json"), &second)
	if first != second || len(first.Cluster) != 32 {
		t.Errorf("clusters %q and %q of one pool", first.Cluster, second.Cluster)
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// Every command is killed between any two steps of its files, and then goes on, or
// is given again, as if nothing had been.
func TestClusterCommandsKilled(t *testing.T) {
	dir := filepath.Join(tempDir(t), "admin")
	kills := 0
	// killed runs a command that dies at its n-th step of a kind, for n from 1 until it
	// has no more; before each it calls prepare for the command, after each check.
	killed := func(prepare func() []string, check func(args []string)) {
		t.Helper()
		for _, point := range failpoint.FilePoints {
			for n := 1; ; n++ {
				args := append([]string{"cluster"}, prepare()...)
				cmd := exec.CommandContext(t.Context(), executable, args...)
				cmd.Env = append(environment(), fmt.Sprintf("%s=%s:%d", failpoint.Variable, point, n))
				out, err := cmd.CombinedOutput()
				status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
				if died := ok && status.Signaled() && status.Signal() == syscall.SIGKILL; !died {
					if err != nil {
						t.Fatalf("%q with no step %d at %s: %v\n%s", args, n, point, err, out)
					}
					check(args)
					break
				}
				kills++
				check(args)
				if n > 20 {
					t.Fatalf("%q has no end of steps", args)
				}
			}
		}
	}
	again := func(args []string) {
		t.Helper()
		if out, complaint, code := plinth(t, nil, args...); code != 0 {
			t.Fatalf("%q given again: %s%s", args, out, complaint)
		}
	}

	var fresh string
	killed(func() []string {
		fresh = filepath.Join(tempDir(t), "fresh")
		return []string{"init", "--dir", fresh}
	}, func(args []string) {
		if _, complaint, code := plinth(t, nil, args...); code != 0 && !strings.Contains(complaint, "choose another folder") {
			t.Errorf("init given again: %s", complaint)
		}
		cluster(t, fresh, "cert", "ls")
		cluster(t, fresh, "token", "create", "--role", "host", "--name", "h1")
	})

	cluster(t, dir, "init")
	a := serveCluster(t, dir)
	count := 0
	name := func() string { count++; return fmt.Sprintf("m%d", count) }
	killed(func() []string {
		n := name()
		fresh = filepath.Join(tempDir(t), n)
		return []string{"join", a.token(t, "host", n), "--ca-server", a.addr, "--dir", fresh}
	}, func(args []string) {
		if _, complaint, code := plinth(t, nil, args...); code != 0 && !strings.Contains(complaint, "already: join in another folder") {
			t.Errorf("join given again: %s", complaint)
		}
		cluster(t, fresh, "cert", "renew")
		if entries, err := os.ReadDir(fresh); err != nil || len(entries) != 4 {
			t.Errorf("the folder holds %v, %v", entries, err)
		}
	})

	dn := a.member(t, "datanode", "dn1")
	killed(func() []string { return []string{"cert", "renew", "--dir", dn} }, again)
	killed(func() []string { return []string{"cert", "renew", "--dir", dir} }, again)
	killed(func() []string {
		return []string{"token", "create", "--role", "host", "--name", name(), "--dir", dir}
	}, again)
	killed(func() []string {
		n := name()
		a.member(t, "host", n)
		return []string{"cert", "revoke", "host/" + n, "--dir", dir}
	}, again)
	for _, m := range members(t, dir) {
		if strings.HasPrefix(m, "host/") {
			cluster(t, dir, "cert", "revoke", m)
		}
	}
	// Of one step after another: whatever was killed, the next call goes on, and the
	// member follows.
	killed(func() []string { return []string{"rotate-ca", "--dir", dir} }, func([]string) {
		cluster(t, dn, "cert", "renew", "--if-due")
		cluster(t, dn, "cert", "renew", "--if-due")
		again([]string{"cluster", "rotate-ca", "--dir", dir})
		cluster(t, dn, "cert", "renew", "--if-due")
	})
	if kills < 20 {
		t.Errorf("only %d kills", kills)
	}
	t.Logf("%d kills", kills)
}

// The authority is killed while somebody joins or renews: the same call again gets
// what it wants.
func TestClusterServerKilled(t *testing.T) {
	dir := filepath.Join(tempDir(t), "admin")
	cluster(t, dir, "init")
	for i, point := range failpoint.FilePoints {
		name := fmt.Sprintf("h%d", i)
		a := &authority{dir: dir}
		token := a.token(t, "host", name)
		h := filepath.Join(tempDir(t), name)
		a = serveCluster(t, dir, failpoint.Variable+"="+string(point))
		if _, complaint, code := plinth(t, nil, "cluster", "join", token, "--ca-server", a.addr, "--dir", h); code != 1 {
			t.Errorf("joined at an authority that was killed: %d, %s", code, complaint)
		}
		<-a.done
		a = serveCluster(t, dir)
		cluster(t, h, "join", token, "--ca-server", a.addr)
		a.kill()
		a = serveCluster(t, dir, failpoint.Variable+"="+string(point))
		if _, _, code := plinth(t, nil, "cluster", "cert", "renew", "--ca-server", a.addr, "--dir", h); code != 1 {
			t.Error("renewed at an authority that was killed")
		}
		<-a.done
		a = serveCluster(t, dir)
		cluster(t, h, "cert", "renew", "--ca-server", a.addr)
		a.kill()
	}
}

// members lists those of an authority, once each.
func members(t *testing.T, dir string) (out []string) {
	t.Helper()
	var info struct {
		Certificates []struct{ Role, Name string }
	}
	decode(t, cluster(t, dir, "cert", "ls", "--json"), &info)
	seen := map[string]bool{}
	for _, c := range info.Certificates {
		if m := c.Role + "/" + c.Name; !seen[m] {
			seen[m] = true
			out = append(out, m)
		}
	}
	return out
}
