package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"plinth/internal/api"
	"plinth/internal/host"
)

// TestCrashLoss kills the program under load and takes the host's directory
// away; then the data node's index and registry with two of twelve spindles.
// Both times all disks are complete after the next start, the second time after
// plinth recover, which is itself killed some times first; so are their snapshots
// and clones.
func TestCrashLoss(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s, f := newSite(t, ""), newFleet("vm1", "vm2")
	begin(t, s)
	k := newKeeper(f, seed)
	k.life(t, s, "")
	k.collect(t, s)

	loadAndKill(t, s, f, rng, 2*time.Second)
	remove(t, s.path("host"))
	before := loadAndKill(t, s, f, rng, time.Second)

	for _, name := range []string{"index", "spindle-03", "spindle-07"} {
		remove(t, s.path("datanode", name))
	}
	out, err := s.command(t, "up", "--nbd", "").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "plinth recover") {
		t.Fatalf("a start without the index: %v\n%s", err, out)
	}
	for range 4 {
		interrupt(t, s, time.Duration(rng.Int64N(int64(300*time.Millisecond))))
	}
	after := recoverSite(t, s)
	if !after.Node.Index.Complete || after.PoolID != before.PoolID || !slices.Equal(disksOf(after), disksOf(before)) {
		t.Errorf("recovered pool %s, index complete %t, disks %v; it was pool %s, disks %v", after.PoolID,
			after.Node.Index.Complete, disksOf(after), before.PoolID, disksOf(before))
	}
	loadAndKill(t, s, f, rng, time.Second)

	l := s.start(t, "")
	if !f.check(t, l) || !k.settle(t, l) {
		t.Fatalf("the process died\n%s", l.tail())
	}
	verifyBut(t, l, "unreachable")
	l.stop(t)
	if len(k.snaps) < 3 || len(k.clones) < 1 {
		t.Errorf("%d snapshots and %d clones are left", len(k.snaps), len(k.clones))
	}
	t.Logf("%d operations, %d segments in the rebuilt index, %d snapshots and %d clones", f.ops.Load(), after.Node.Index.Segments, len(k.snaps), len(k.clones))
}

// begin makes the disks, and one that is written and removed again: nothing of
// it may come back.
func begin(t *testing.T, s *site) {
	t.Helper()
	ctx := context.Background()
	l := s.start(t, "")
	c, err := l.dial(t, "vm1")
	if err != nil {
		t.Fatal(err, l.tail())
	}
	c.Close()
	for _, name := range []string{"vm2", "old"} {
		if _, err := l.api.CreateDisk(ctx, api.CreateDisk{Name: name, Bytes: diskBytes}); err != nil {
			t.Fatal(err)
		}
	}
	if c, err = l.dial(t, "old"); err != nil {
		t.Fatal(err, l.tail())
	}
	p := make([]byte, 4<<20)
	fillSectors(p, 0, 1<<40)
	if err := c.WriteAt(ctx, p, 0, true); err != nil {
		t.Fatal(err)
	}
	if err := l.api.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Disconnect(ctx); err != nil {
		t.Fatal(err)
	}
	// The server may see the end of a connection after the client.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = l.api.RemoveDisk(ctx, "old"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	l.kill(t)
}

// loadAndKill is one life: check, load, death. It returns what the pool said of
// itself.
func loadAndKill(t *testing.T, s *site, f *fleet, rng *rand.Rand, load time.Duration) *host.Status {
	t.Helper()
	l := s.start(t, "")
	if !f.check(t, l) {
		l.kill(t)
		t.Fatalf("the process died\n%s", l.tail())
	}
	wait := f.load(t, l, rng.Uint64())
	time.Sleep(load + rand.N(load/2))
	status, err := l.api.Status(context.Background())
	l.kill(t)
	wait()
	if err != nil || t.Failed() {
		t.Fatalf("%v\n%s", err, l.tail())
	}
	return status
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// interrupt starts to recover and kills that.
func interrupt(t *testing.T, s *site, after time.Duration) {
	t.Helper()
	cmd := s.command(t, "recover")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed, or was done before
}

// recoverSite recovers, and sees that nothing is reclaimed before every disk has
// stated what it needs.
func recoverSite(t *testing.T, s *site) *host.Status {
	t.Helper()
	cmd := s.command(t, "recover", "--json", "--verbose")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	var status host.Status
	err := cmd.Run()
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &status)
	}
	if err != nil {
		t.Fatalf("recover: %v\n%s%s", err, out.Bytes(), log.Bytes())
	}
	complete := strings.Index(log.String(), "the index is complete again")
	if freed := strings.Index(log.String(), "reclaimed segments"); complete < 0 || freed >= 0 && freed < complete {
		t.Errorf("recover reclaimed before the index was complete:\n%s", log.Bytes())
	}
	return &status
}

// disksOf returns what must be the same of each disk after any loss.
func disksOf(s *host.Status) (out []host.DiskInfo) {
	for _, d := range s.Disks {
		out = append(out, host.DiskInfo{
			Name: d.Name, ID: d.ID, Bytes: d.Bytes, Chunk: d.Chunk, Cipher: d.Cipher, Created: d.Created, State: d.State,
		})
	}
	return out
}

// verifyBut fails the test for findings of other kinds.
func verifyBut(t *testing.T, l *life, expected string) {
	t.Helper()
	report, err := l.api.Verify(context.Background(), host.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Kind != expected {
			t.Errorf("verify: %+v", f)
		}
	}
}
