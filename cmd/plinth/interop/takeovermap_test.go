package interop

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var takeoverGiB = flag.Float64("takeover-gib", 0.25, "TestTakeoverOfMap: how much of the disk is mapped, in GiB")

// Every chunk of a disk is mapped, its host is killed under writes, and a client of
// another host reads: by the checkpoint and the log's tail, before the map is there.
func TestTakeoverOfMap(t *testing.T) {
	t.Parallel()
	const pattern, piece = 64 << 20, 4 << 20
	bytes := int64(*takeoverGiB*(1<<30)) / pattern * pattern
	p := &pair{split: newSplit(t, 1, "--log-size", "256M", "--spindle-size", fmt.Sprint(int64(512<<20)+bytes/4096*50))}
	args := append(slices.Clone(hostLease), "--ram-cache", "64M")
	for _, name := range []string{"h1", "h2"} {
		p.join(t, "host", name)
		h := p.host(t, name, args...)
		if h.socket == "" {
			t.Fatalf("plinth host: %v\n%s", h.err, h.said)
		}
		p.hosts = append(p.hosts, h)
	}
	p.move(t, p.hosts[0], 0)
	p.hosts[0].command(t, "disk", "resize", "vm1", fmt.Sprint(max(bytes, 64<<30)))

	// What is written is the same again and again, so that the map alone is large.
	content := make([]byte, pattern)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(content)
	began := time.Now()
	var writing sync.WaitGroup
	for w := range int64(2) {
		c := dialDisk(t, p.hosts[0])
		writing.Go(func() {
			defer c.Close()
			for off := w * piece; off < bytes; off += 2 * piece {
				if err := c.WriteAt(t.Context(), content[off%pattern:][:piece], off, false); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Errorf("flush: %v", err)
			}
		})
	}
	writing.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d chunks are mapped after %.0f s", bytes/4096, time.Since(began).Seconds())
	p.mapped(t)

	reader := dialDisk(t, p.hosts[1])
	defer reader.Close()
	got := make([]byte, 4096)
	read := func() (took time.Duration) {
		off := rand.Int64N(bytes/4096) * 4096
		start := time.Now()
		if err := reader.ReadAt(t.Context(), got, off); err != nil {
			t.Fatalf("read: %v", err)
		}
		if took = time.Since(start); string(got) != string(content[off%pattern:][:4096]) {
			t.Fatalf("other bytes at %d", off)
		}
		return took
	}
	read()
	writer := dialDisk(t, p.hosts[0])
	writing.Go(func() { // the log's tail
		defer writer.Close()
		for i := int64(0); ; i++ {
			off := i * 17 % (bytes / 4096) * 4096
			if writer.WriteAt(t.Context(), content[off%pattern:][:4096], off, false) != nil {
				return
			}
		}
	})
	time.Sleep(2 * time.Second)
	killed := time.Now()
	p.hosts[0].kill()
	ended := make(chan time.Duration, 1)
	writing.Go(func() { ended <- p.leaseEnd(t, p.hosts[1], killed) })
	read()
	first := time.Since(killed)
	var next []time.Duration
	for range 1000 {
		next = append(next, read())
	}
	slices.Sort(next)
	writing.Wait()
	lease := <-ended
	t.Logf("first read %.2f s after SIGKILL, %.2f s after the lease ended (TTL 4 s); the next 1,000: median %v, p99 %v, longest %v",
		first.Seconds(), (first - lease).Seconds(), next[500], next[990], next[999])
	p.hosts[1].command(t, "verify")
}

// mapped waits until a checkpoint has all that was written: no other one follows.
func (p *pair) mapped(t *testing.T) {
	t.Helper()
	last, since := int64(0), time.Now()
	for deadline := time.Now().Add(waitMax); ; time.Sleep(100 * time.Millisecond) {
		var d struct {
			Stats struct {
				Checkpoints   int64 `json:"checkpoints"`
				BufferedBytes int64 `json:"buffered_bytes"`
			} `json:"stats"`
		}
		out := p.hosts[0].command(t, "disk", "show", "vm1", "--json")
		if err := json.Unmarshal([]byte(out), &d); err != nil {
			t.Fatal(err)
		}
		if n := d.Stats.Checkpoints; n != last || d.Stats.BufferedBytes > 0 {
			last, since = n, time.Now()
		}
		if last > 0 && time.Since(since) > 3*time.Second {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no checkpoint is made:\n%s", out)
		}
	}
}

// leaseEnd returns how long after an instant a host has seen that nobody owns vm1.
func (p *pair) leaseEnd(t *testing.T, h *site, since time.Time) time.Duration {
	for deadline := time.Now().Add(waitMax); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var d struct{ State, Reason string }
		out, _, _ := plinth(t, []string{"PLINTH_API=" + h.api}, "disk", "show", "vm1", "--json")
		if json.Unmarshal([]byte(out), &d) == nil && !strings.Contains(d.Reason, "h1") {
			return time.Since(since)
		}
	}
	t.Error("the lease of a host that was killed does not end")
	return 0
}
