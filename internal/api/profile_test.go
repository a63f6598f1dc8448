package api

import (
	"bytes"
	"io"
	"testing"

	"github.com/google/pprof/profile"
)

func TestProfile(t *testing.T) {
	s := newServer(t)
	for _, kind := range profileKinds {
		resp := s.ask("GET", prefix+"/profile?seconds=1&kind="+kind, "")
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: status %d, %v: %s", kind, resp.StatusCode, err, b)
		}
		p, err := profile.Parse(bytes.NewReader(b))
		if err != nil || len(p.SampleType) == 0 {
			t.Errorf("%s: not a profile: %v", kind, err)
		} else if kind == profileCPU && p.DurationNanos < 1e9 {
			t.Errorf("a CPU profile of %d ns, not of a second", p.DurationNanos)
		}
	}
}

// A profile that is under way is not cut short by the next.
func TestProfileIsOneAtATime(t *testing.T) {
	s := newServer(t)
	first := make(chan int)
	go func() { first <- s.ask("GET", prefix+"/profile?seconds=2", "").StatusCode }()
	resp := s.ask("GET", prefix+"/profile?seconds=1", "")
	other := <-first
	if resp.StatusCode == 200 { // this one came first
		if other != 503 {
			t.Errorf("the other: status %d", other)
		}
		return
	}
	wantError(t, "the later one", resp, 503, "busy")
	if other != 200 {
		t.Errorf("the one under way: status %d", other)
	}
}
