package planted

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	root = "../.."
	// checkTimeMax bounds one check. One that does not end has caught nothing.
	checkTimeMax = 10 * time.Minute
)

var wanted = flag.String("planted", "", "TestBugsCaught: the bugs whose names match; empty: none")

// bug is text that occurs once in a file, and what takes its place.
type bug struct {
	name     string
	file     string
	old, new string
	// checks are to fail, one of them at least: "package test [arguments]".
	checks []string
}

// plant returns the file with the bug in it.
func (b *bug) plant(t *testing.T) []byte {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(root, b.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(source, []byte(b.old)); n != 1 {
		t.Fatalf("%s: %s has the text of the bug %d times, not once: say what the bug is now", b.name, b.file, n)
	}
	return bytes.Replace(source, []byte(b.old), []byte(b.new), 1)
}

func TestBugsApply(t *testing.T) {
	names := map[string]bool{}
	for i := range bugs {
		b := &bugs[i]
		if b.plant(t); b.old == b.new || len(b.checks) == 0 || names[b.name] {
			t.Errorf("%s: it changes nothing, nothing looks for it, or another has its name", b.name)
		}
		names[b.name] = true
	}
}

func TestBugsCaught(t *testing.T) {
	if *wanted == "" {
		t.Log("none asked for: -planted REGEXP")
		return
	}
	match, err := regexp.Compile(*wanted)
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for i := range bugs {
		if b := &bugs[i]; match.MatchString(b.name) {
			t.Run(b.name, func(t *testing.T) { b.look(t, here) })
		}
	}
}

// look plants the bug and runs its checks until one fails.
func (b *bug) look(t *testing.T, here string) {
	dir := t.TempDir()
	planted, overlay := filepath.Join(dir, "planted.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(here, b.file): planted}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{planted: b.plant(t), overlay: replace} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, check := range b.checks {
		f := strings.Fields(check)
		program := filepath.Join(dir, "check.test")
		build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", overlay, "-o", program, "./"+f[0])
		build.Dir = here
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("with the bug %s does not compile: %v\n%s", f[0], err, out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), checkTimeMax)
		began := time.Now()
		run := exec.CommandContext(ctx, program, append([]string{"-test.run", f[1], "-test.v"}, f[2:]...)...)
		run.Dir, run.WaitDelay = filepath.Join(here, f[0]), time.Second
		out, err := run.CombinedOutput()
		late := ctx.Err() != nil
		cancel()
		if late {
			t.Logf("%s: %s has no end in %v", b.name, check, checkTimeMax)
		} else if err != nil {
			t.Logf("| %s | %s | %s | %.0f s |", b.name, check, reason(out), time.Since(began).Seconds())
			return
		}
	}
	t.Errorf("%s is not caught by %q", b.name, b.checks)
}

var (
	// telling is a line that says why a test failed, failed the test that did.
	telling = regexp.MustCompile(`(?m)^\s+\w+_test\.go:\d+: (?:\s*)(.*)$|^(panic: .*)$`)
	failed  = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
)

// reason returns how a check failed: the test and its last message.
func reason(out []byte) string {
	text := "failed"
	if all := telling.FindAllSubmatch(out, -1); len(all) > 0 {
		last := all[len(all)-1]
		text = string(last[1]) + string(last[2])
	}
	if m := failed.FindSubmatch(out); m != nil {
		text = string(m[1]) + ": " + text
	}
	return strings.ReplaceAll(text[:min(len(text), 160)], "|", "/")
}
