package interop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// space is what status --json says of it.
func (s *site) space(t *testing.T) (stored, free int64) {
	t.Helper()
	var status struct {
		Space struct {
			Stored int64 `json:"stored_bytes"`
			Free   int64 `json:"free_bytes"`
		}
	}
	if err := json.Unmarshal([]byte(s.command(t, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	return status.Space.Stored, status.Space.Free
}

// Snapshots share their segments' chunks with what was overwritten since. When one
// in two goes, what only they had is planned, moved apart and freed, while others
// stay what they are; at the end nothing is left over, and the figures say so.
func TestReclaim(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	model := make([]byte, snapshotBytes)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	then := map[string][]byte{}
	for i := range 6 {
		c := s.open(t, "vm")
		for at := 0; at < len(model); at += 4096 {
			if i > 0 && rng.IntN(4) > 0 {
				continue
			}
			for k := at; k < at+4096; k += 8 { // which does not compress
				copy(model[k:], fmt.Sprintf("%08x", rng.Uint32()))
			}
			if err := c.WriteAt(t.Context(), model[at:at+4096], int64(at), false); err != nil {
				t.Fatal(err)
			}
		}
		leave(t, c)
		name := fmt.Sprint("s", i)
		s.command(t, "snapshot", "create", "vm", name)
		then[name] = append([]byte(nil), model...)
	}
	s.command(t, "reclaim")
	full, _ := s.space(t)
	if out := s.command(t, "snapshot", "show", "vm@s2"); !strings.Contains(out, "32M  as of") || !strings.Contains(out, "exclusive") {
		t.Errorf("snapshot show:\n%s", out)
	}
	for _, name := range []string{"s0", "s2", "s4"} {
		s.command(t, "snapshot", "rm", "vm@"+name)
		delete(then, name)
	}
	s.command(t, "reclaim")
	plan := s.command(t, "reclaim", "--full", "--dry-run")
	if !strings.Contains(plan, "segment") || !strings.Contains(plan, "live") {
		t.Errorf("reclaim --dry-run:\n%s", plan)
	}
	t.Logf("plan: %s", plan[strings.LastIndex(strings.TrimSpace(plan), "\n")+1:])
	for range 2 {
		t.Log(strings.TrimSpace(s.command(t, "reclaim", "--full")))
	}
	left, _ := s.space(t)
	if left >= full*9/10 {
		t.Errorf("%d bytes are stored, %d before", left, full)
	}
	if out := s.command(t, "verify", "--leaks"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("verify --leaks:\n%s", out)
	}
	for name, want := range then {
		s.equalExport(t, "vm@"+name, want)
	}
	s.equalExport(t, "vm", model)
	s.alone(t, "vm")
	s.command(t, "disk", "rm", "vm", "--snapshots")
	for range 2 {
		s.command(t, "reclaim", "--full")
	}
	if empty, _ := s.space(t); empty > full/20 {
		t.Errorf("%d bytes are stored with no data left, %d at most", empty, full)
	}
	s.stop(t)
}

// Snapshots whose time has come go by themselves, but not under a client.
func TestSnapshotExpiry(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "vm", fmt.Sprint(snapshotBytes))
	s.command(t, "snapshot", "create", "vm", "used", "--expire", "8s")
	c := s.open(t, "vm@used")
	s.command(t, "snapshot", "create", "vm", "later", "--expire", "1h")
	s.command(t, "snapshot", "create", "vm", "soon", "--expire", "8s")
	gone := func(name string) bool { return !strings.Contains(s.command(t, "snapshot", "ls", "vm"), name) }
	wait := func(name string) {
		t.Helper()
		for deadline := time.Now().Add(startTime); !gone(name); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s stays", name)
			}
		}
	}
	wait("soon")
	if gone("used") || gone("later") {
		t.Error("a snapshot has gone that is in use or not due")
	}
	leave(t, c)
	wait("used")
	s.stop(t)
}
