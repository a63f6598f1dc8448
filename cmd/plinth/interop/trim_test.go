package interop

import (
	"context"
	"flag"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth/bench"
	"plinth/internal/api"
	"plinth/nbd/client"
)

// readTime is how long each kind of read is measured (just trim).
var readTime = flag.Duration("read-time", 20*time.Millisecond, "how long TestTrimWhole measures each kind of read")

const (
	wholeBytes     = 64 << 40
	trimStepBytes  = 2 << 30
	trimsInFlight  = 128
	trimFilledSize = 64 << 20
	readRounds     = 3
)

// A disk of 64 TiB is trimmed whole over NBD, by one extended request and by
// 32,768 of 2 GiB, 128 of them in flight. What was written is gone; what is
// written then is there. How long that takes, and how reads compare with those
// of a disk without trims, is for the log: just trim.
func TestTrimWhole(t *testing.T) {
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	fresh, c := s.openWhole(t, "fresh"), s.openWhole(t, "whole")
	s.fillStart(t, fresh)
	s.fillStart(t, c)
	timed(t, "one trim of 64 TiB, with FUA", func() error { return c.Trim(t.Context(), 0, wholeBytes, true) })
	s.checkTrimmed(t, c)
	s.fillStart(t, c)
	compareReads(t, "after one trim", fresh, c)
	timed(t, "32,768 trims of 2 GiB, and a flush", func() error { return trimBySteps(t.Context(), c) })
	s.checkTrimmed(t, c)
	s.fillStart(t, c)
	compareReads(t, "after 32,768 trims", fresh, c)
	s.stop(t)
}

// openWhole makes a disk of 64 TiB and connects to it.
func (s *site) openWhole(t *testing.T, disk string) *client.Client {
	t.Helper()
	s.command(t, "disk", "create", disk, "64T")
	c, err := client.Dial(t.Context(), "unix", s.socket, disk, client.Options{Form: client.Extended, InFlightMax: trimsInFlight})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if c.Form() != client.Extended || c.Size() != wholeBytes {
		t.Fatalf("form %v of %d bytes", c.Form(), c.Size())
	}
	return c
}

func timed(t *testing.T, what string, f func() error) {
	t.Helper()
	began := time.Now()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %v", what, time.Since(began).Round(time.Microsecond))
}

// trimBySteps trims everything by many requests, and flushes.
func trimBySteps(ctx context.Context, c *client.Client) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var jobs sync.WaitGroup
	for range trimsInFlight {
		jobs.Go(func() {
			for off := next.Add(trimStepBytes) - trimStepBytes; off < wholeBytes; off = next.Add(trimStepBytes) - trimStepBytes {
				if err := c.Trim(ctx, off, trimStepBytes, false); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	jobs.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return c.Flush(ctx)
}

// checkTrimmed finds that nothing is allocated, and reads some of it.
func (s *site) checkTrimmed(t *testing.T, c *client.Client) {
	t.Helper()
	timed(t, "until it is in the map's checkpoint", func() error { s.quiesce(t); return nil })
	for off := int64(0); off < wholeBytes; {
		status, err := c.BlockStatus(t.Context(), off, wholeBytes-off, false)
		if err != nil {
			t.Fatal(err)
		}
		from := off
		for _, run := range status[0].Runs {
			if run.Status != 3 { // a hole that reads as zeros
				t.Fatalf("at %d, %d bytes have status %d", off, run.N, run.Status)
			}
			off += int64(run.N)
		}
		if off == from {
			t.Fatalf("no status at %d", off)
		}
	}
	p := make([]byte, 1<<20)
	for off := int64(0); off < trimFilledSize; off += int64(len(p)) {
		if err := c.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
		for i, b := range p {
			if b != 0 {
				t.Fatalf("byte %d is %d after a trim", off+int64(i), b)
			}
		}
	}
}

// fillStart writes the disk's beginning and checks that it is there.
func (s *site) fillStart(t *testing.T, c *client.Client) {
	t.Helper()
	cfg := bench.Config{
		Workload: bench.RandRead, Bytes: trimFilledSize, Fill: true, Verify: true, Compressible: 50, Runtime: time.Millisecond,
		Settle: func(context.Context) error { s.quiesce(t); return nil },
	}
	if _, err := bench.Run(t.Context(), cfg, c); err != nil {
		t.Fatal(err)
	}
}

// compareReads measures reads of 4 KiB where data is and all over, of two disks
// in turn.
func compareReads(t *testing.T, when string, fresh, trimmed *client.Client) {
	t.Helper()
	for where, bytes := range map[string]int64{"of data": trimFilledSize, "anywhere": wholeBytes} {
		for _, depth := range []int{1, 32} {
			cfg := bench.Config{Workload: bench.RandRead, Bytes: bytes, Depth: depth, Runtime: *readTime}
			var rates [2][]float64
			for range readRounds {
				for i, c := range []*client.Client{fresh, trimmed} {
					r, err := bench.Run(t.Context(), cfg, c)
					if err != nil {
						t.Fatal(err)
					}
					rate := 0.0
					if r.Read != nil { // or else none ended in time, on a busy machine
						rate = r.Read.IOPS
					}
					rates[i] = append(rates[i], rate)
				}
			}
			for i := range rates {
				slices.Sort(rates[i])
			}
			was, is := rates[0][readRounds/2], rates[1][readRounds/2]
			t.Logf("%s, reads %s, depth %d: %.0f/s, of a disk without trims %.0f/s, ratio %.2f", when, where, depth, is, was, is/was)
		}
	}
}

// quiesce has the site destage and checkpoint all that it has.
func (s *site) quiesce(t *testing.T) {
	t.Helper()
	address, err := api.ParseAddress(s.api)
	if err != nil {
		t.Fatal(err)
	}
	c, err := api.NewClient(address, api.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Quiesce(t.Context()); err != nil {
		t.Fatal(err)
	}
}
