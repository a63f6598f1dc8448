package nbd

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A client that never answers in time is polled ever more rarely.
func TestPollGivesUpWhatDoesNotHelp(t *testing.T) {
	if pollersMax == 0 {
		t.Skip("one processor: nothing is polled")
	}
	var p poll
	var polled []int // the waits in which it was polled
	for i := range 300 {
		tries := 0
		if p.wait(func() bool { tries++; return false }) {
			t.Fatal("a poll without success reports one")
		}
		if tries > 0 {
			polled = append(polled, i)
		}
	}
	want := []int{0, 2, 6, 14, 30, 62, 126, 191, 256}
	if !slices.Equal(polled, want) {
		t.Fatalf("polled in waits %v, want %v", polled, want)
	}
	for !p.wait(func() bool { return true }) {
	}
	if tries := 0; !p.wait(func() bool { tries++; return tries == 2 }) || tries != 2 {
		t.Errorf("after a success: %d tries, want success at the second", tries)
	}
	if n := pollers.Load(); n != 0 {
		t.Errorf("%d goroutines poll when none does", n)
	}
}

// No more than half of the processors poll at once.
func TestPollLeavesProcessors(t *testing.T) {
	pollers.Add(pollersMax)
	defer pollers.Add(-pollersMax)
	var p poll
	if p.wait(func() bool { t.Error("polled"); return true }) {
		t.Error("success without a try")
	}
	if p.skips != 0 {
		t.Errorf("%d waits are skipped after one that had no processor", p.skips)
	}
}

func TestSocketPollsAndSleeps(t *testing.T) {
	a, b := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	near, far := newSocket(a).(*socket), newSocket(b).(*socket)
	near.eager = true
	go func() {
		defer far.CloseWrite()
		for i := range 200 {
			if i%20 == 0 {
				time.Sleep(time.Millisecond) // so that some polls fail
			}
			if _, err := far.Write([]byte{byte(i)}); err != nil {
				return
			}
			far.Read(make([]byte, 1))
		}
	}()
	got := make([]byte, 1)
	for i := range 200 {
		if _, err := near.Read(got); err != nil || got[0] != byte(i) {
			t.Fatalf("read %d: %d, %v", i, got[0], err)
		}
		if _, err := near.Write(got); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := near.Read(got); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
	near.SetReadDeadline(time.Unix(1, 0))
	if _, err := near.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
}
